"""The whole core with its memory behind AXI: every token is right, and all the host writes."""
import os
import random
import tempfile
from dataclasses import replace

import cocotb
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from bench import simulate, start
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiBus, AxiRam

from meadowlark.link.driver import Driver
from meadowlark.quant.golden import GoldenModel
from meadowlark.run.prepare import Source
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.sampler.sampler_golden import logits_crc
from meadowlark_hdl.core import Core
from meadowlark_hdl.memory.axi import Axi4, AxiMaster
from random_model import random_model
from test_axi import pause, quiet

BASE, SIZE = 0x7_0000, 1 << 18
CONFIG = Config(W=8, P=4, bus_bytes=8, act_words=128, residual_values=1024, score_depth=128,
                rope_pairs=512, tile_beats=64, tile_rows=16, prog_depth=256, context=64,
                fifo_words=128, burst_words=64)
PROMPT, TOKENS = [0, 17, 33, 5, 90, 41], 4


class Chip(wiring.Component):
    """Core and AxiMaster."""

    def __init__(self):
        super().__init__({"axi": Out(Axi4(8 * CONFIG.bus_bytes)), "fault": Out(1),
                          "rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = Core(CONFIG, board="axi", clock_hz=100_000_000,
                                        memory_bytes=SIZE)
        m.submodules.axi = axi = AxiMaster(CONFIG, memory_bytes=SIZE)
        wiring.connect(m, core.mem, axi.port)
        wiring.connect(m, axi.axi, wiring.flipped(self.axi))
        wiring.connect(m, core.rx, wiring.flipped(self.rx))
        wiring.connect(m, core.tx, wiring.flipped(self.tx))
        m.d.comb += [axi.base.eq(BASE), axi.enable.eq(1), self.fault.eq(axi.fault)]
        return m


class ByteTransport:
    """Bytes in and out of the core, in simulated time."""

    def __init__(self, dut):
        self.dut, self.timeout, self.time = dut, 0.05, 0.0
        self.to, self.back = bytearray(), bytearray()
        cocotb.start_soon(self._clock())

    async def _clock(self):
        d = self.dut
        d.tx__ready.value = 1
        while True:
            d.rx__valid.value = bool(self.to)
            d.rx__payload.value = self.to[0] if self.to else 0
            await ReadOnly()
            if self.to and d.rx__ready.value:
                del self.to[0]
            if d.tx__valid.value:
                self.back.append(int(d.tx__payload.value))
            await RisingEdge(d.clk)

    @resume
    async def write(self, data):
        self.to += data

    @resume
    async def read(self, max, timeout):
        for _ in range(round(timeout * 1e6)):       # a second is a million cycles here
            if self.back:
                data = bytes(self.back[:max])
                del self.back[:max]
                return data
            await RisingEdge(self.dut.clk)
            self.time += 1e-6
        return b""

    def now(self):
        return self.time

    def close(self):
        pass


def random_source(like, **shape):
    """A random model with the given shape for a board ``like`` another one, with CONFIG's core."""
    board = replace(get_board(like), name="axi", config=CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        source = Source(str(random_model(folder, seed=int(os.environ["SEED_OF_MODEL"]), hidden=32,
                                         context=64, **shape)), board)
        assert source.image             # compiled while the folder is there
        return source


def check_run(source, got, ram, base, note):
    """The tokens after PROMPT are the golden model's; memory holds what it should."""
    image = source.image
    golden = GoldenModel(source.quantised, context=image.context)
    assert got == [(token, logits_crc(logits))
                   for token, logits in golden.generate(PROMPT, max_new=TOKENS, stop_ids=())]
    assert len(got) == TOKENS
    assert ram.read(base, len(image.memory)) == image.memory
    assert ram.read(base + SIZE - 1024, len(note)) == note
    between = ram.read(base + len(image.memory), SIZE - 1024 - len(image.memory))
    assert any(between)                     # keys and values


async def reset(dut):
    dut.rst.value = 1
    await ClockCycles(dut.clk, 2)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 2 * Core.FLUSH)          # bytes are lost before


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.4])
async def tokens_through_axi(dut, stall):
    """All tokens of a run, without stalls after a reset that cut one off."""
    await start(dut)
    await ClockCycles(dut.clk, 2 * Core.FLUSH)
    # Whoever is there before the reset may say what he likes.
    dut.axi__rvalid.value = dut.axi__bvalid.value = 1
    await ClockCycles(dut.clk, 9)
    dut.axi__rvalid.value = dut.axi__bvalid.value = 0
    await reset(dut)
    ram = AxiRam(AxiBus.from_prefix(dut, "axi_"), dut.clk, dut.rst, size=BASE + SIZE)
    quiet(ram)
    pause(ram, stall)
    source = random_source("virtual", heads=4, kv_heads=2, head_dim=8)
    image = source.image
    ram.write(BASE, image.memory)           # frame by frame this takes longer than the run
    note = random.randbytes(333)

    @resume
    async def reset_under_a_write():
        """When memory has got the command and has not answered."""
        while not dut.axi__awvalid.value:
            await RisingEdge(dut.clk)
        await ClockCycles(dut.clk, 2)
        await reset(dut)

    @bridge
    def host():
        driver = Driver(ByteTransport(dut))

        def run():
            driver.load([(SIZE - 1024, note)], program=image.program, model=image.model_regs)
            assert driver.read_memory(SIZE - 1024, len(note)) == note
            return driver.run(PROMPT, max_new=TOKENS)
        if not stall:
            events = run()
            next(events)
            reset_under_a_write()
            events.close()
        return [(event.token, event.crc) for event in run()]
    check_run(source, await host(), ram, BASE, note)
    assert not dut.fault.value


def test_axi_chip(seed):
    simulate(Chip(), __name__, seed=seed, seed_of_model=seed)
