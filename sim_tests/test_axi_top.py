"""The whole chip of a Zynq board at its ports, driven by the host's own transport: an AXI4-Lite
manager and an AXI4 memory that are not ours, and every token is right."""
import random
import struct

import cocotb
import pytest
from bench import PERIOD_NS, simulate, start
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles
from cocotb.utils import get_sim_time
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from meadowlark.link.driver import BoardError, Driver
from meadowlark.link.frames import Frame, FrameParser
from meadowlark.link.registers import RegisterTransport
from meadowlark_hdl.chips.axi_top import AxiTop
from meadowlark_hdl.link.axi_lite_table import CONTROL_MEMORY, STATUS_LISTENS, WINDOW_ADDRESS
from meadowlark_hdl.link.protocol import ANSWER, MAGIC, Command
from test_axi import pause, quiet
from test_axi_chip import CONFIG, PROMPT, SIZE, TOKENS, check_run, random_source

BASE = 0x7_1000


class MasterWindow:
    """Loads and stores of the host as cocotbext-axi's; a second is a million cycles."""

    def __init__(self, dut, master):
        self.dut, self.master = dut, master

    @resume
    async def load(self, address):
        return await self.master.read_dword(address)

    @resume
    async def store(self, address, value):
        await self.master.write_dword(address, value)

    @resume
    async def store_byte(self, address, value):
        await self.master.write(address, bytes([value]))

    @resume
    async def now(self):
        return get_sim_time("ns") / PERIOD_NS / 1e6

    @resume
    async def pause(self, seconds):
        await ClockCycles(self.dut.aclk, max(1, round(seconds * 1e6)))

    def close(self):
        pass


def ask_at_once(window):
    """Answers to a frame that is stored right behind the reset, before the core takes bytes."""
    raw, parser, answers = Frame(Command.READ, 9, struct.pack("<II", 0, 1)).encode(), \
        FrameParser(), []
    for (value,) in struct.iter_unpack("<I", raw[:16]):
        window.store(WINDOW_ADDRESS["data"], value)
    window.store_byte(WINDOW_ADDRESS["data"], raw[16])
    for _ in range(200):
        word = window.load(WINDOW_ADDRESS["data"])
        answers += parser.feed(word.to_bytes(4, "little")[:word >> 24])
        if answers:
            break
    return answers


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.4])
async def tokens(dut, stall):
    await start(dut)
    cocotb.start_soon(Clock(dut.aclk, PERIOD_NS, "ns").start())
    await ClockCycles(dut.aclk, 3)
    ram = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.aclk, dut.aresetn,
                 reset_active_level=False, size=BASE + 2 * SIZE)
    host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.aclk, dut.aresetn,
                         reset_active_level=False)
    for end in (ram, host):
        quiet(end)
        pause(end, stall)
    dut.aresetn.value = 1
    window = MasterWindow(dut, host)
    assert await bridge(ask_at_once)(window) == [
        Frame(Command.READ | ANSWER, 9, b"\0" + struct.pack("<I", MAGIC))]
    source = random_source("kv260", heads=2, kv_heads=1, head_dim=16)
    image = source.image
    around = random.randbytes(BASE), random.randbytes(SIZE)
    ram.write(0, around[0])
    ram.write(BASE + SIZE, around[1])
    ram.write(BASE, image.memory)           # frame by frame this takes longer than the run
    note = random.randbytes(331)

    def driver(memory):
        return Driver(RegisterTransport(window, memory, now=window.now, pause=window.pause))

    @bridge
    def run():
        board = driver(BASE)
        assert board.info.config == CONFIG and board.info.memory_bytes == SIZE
        board.load([(SIZE - 1024, note)], program=image.program, model=image.model_regs)
        assert board.read_memory(SIZE - 1024, len(note)) == note
        got = [(event.token, event.crc) for event in board.run(PROMPT, max_new=TOKENS)]
        # Nothing was lost or said twice, the first bytes after the reset included.
        assert board.read_register("frames_bad") == board.read_register("frames_dropped") == 0
        assert window.load(WINDOW_ADDRESS["status"]) == STATUS_LISTENS
        return got

    @bridge
    def elsewhere():
        """Another program on the same chip; the region is told anew, and only then moves."""
        assert driver(BASE).read_memory(SIZE - 1024, len(note)) == note
        board = driver(BASE + SIZE)
        assert board.read_memory(64, 99) == around[1][64:163]
        assert window.load(WINDOW_ADDRESS["control"]) == CONTROL_MEMORY
        window.store(WINDOW_ADDRESS["control"], 0)
        with pytest.raises(BoardError, match="has no memory yet"):
            board.read_memory(64, 8)
    check_run(source, await run(), ram, BASE, note)
    await elsewhere()
    assert (ram.read(0, BASE), ram.read(BASE + SIZE, SIZE)) == around


def test_axi_top(seed):
    simulate(AxiTop(CONFIG, name="axi", clock_mhz=100, memory_bytes=SIZE), __name__, seed=seed,
             seed_of_model=seed)
