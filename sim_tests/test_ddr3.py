"""The DDR3 path up to the PHY: port, start-up and LiteDRAM's own controller, with LiteDRAM's model
of a chip at the PHY's interface. The PHY itself is made of cells that no open simulator knows.

Needs LiteDRAM's generator, which `make setup-synth` installs.
"""
import os
import random
import re
from pathlib import Path

import cocotb
import numpy as np
import pytest
from amaranth import ClockSignal, Module
from amaranth.back import rtlil
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench import _verilog, cycles, recv, send, simulate, start
from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark.chip.litedram import generate
from meadowlark_boards import get_board
from meadowlark_hdl.chips.ddr3_top import Ddr3Memory
from meadowlark_hdl.lib.collisions import relax
from meadowlark_hdl.config import Config
from meadowlark_hdl.signatures import MemoryPort, ReadCommand

ECPIX5 = get_board("ecpix5_85f")
CONFIG = ECPIX5.config
BUS = CONFIG.bus_bytes
#: Bitslip, first and last delay in which each byte lane reads right.
WINDOWS = [[2, 1, 5], [1, 3, 7]]
LIMIT = dict(timeout_time=200, timeout_unit="ms")


class Ddr3Bench(wiring.Component):
    """Ddr3Memory with the bench's clock where the board has its oscillator."""

    def __init__(self, config: Config, core):
        self.memory = Ddr3Memory(config, core, clock_mhz=ECPIX5.clock_mhz)
        super().__init__({"port": In(MemoryPort(config)), "failed": Out(1),
                          "bitslips": Out(4), "delays": Out(6)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = self.memory
        wiring.connect(m, wiring.flipped(self.port), memory.port)
        m.d.comb += [memory.oscillator.eq(ClockSignal()), self.failed.eq(memory.failed),
                     self.bitslips.eq(memory.init.bitslips), self.delays.eq(memory.init.delays)]
        return m


async def begin(dut):
    """Ready, or failed, in 2 ms at 75 MHz."""
    await start(dut)
    begun = cycles(dut)
    while not (dut.port__ready.value or dut.failed.value):
        assert cycles(dut) - begun < 150_000
        for _ in range(100):
            await RisingEdge(dut.clk)
    return cycles(dut) - begun


def commands(ranges):
    return [{"addr": a, "len": n - 1} for a, n in ranges]


async def done(dut, count):
    for _ in range(count):
        while True:
            await ReadOnly()
            last = dut.port__w_done.value
            await RisingEdge(dut.clk)
            if last:
                break


async def write(dut, first, values):
    """int64 words in bursts of the port's longest."""
    n = CONFIG.burst_words
    parts = [(first + k, min(n, len(values) - k)) for k in range(0, len(values), n)]
    cocotb.start_soon(send(dut, "port__w_cmd", commands(parts), layout=ReadCommand(CONFIG)))
    cocotb.start_soon(send(dut, "port__w_data", [v | 255 << 64 for v in values]))
    await done(dut, len(parts))


@cocotb.test(**LIMIT)
async def wakes_and_keeps_what_is_written(dut):
    took = await begin(dut)
    assert dut.port__ready.value and not dut.failed.value
    assert int(dut.bitslips.value) == WINDOWS[0][0] | WINDOWS[1][0] << 2
    assert int(dut.delays.value) == sum((first + last) // 2 << 3 * k
                                        for k, (_, first, last) in enumerate(WINDOWS))
    dut._log.info("ready after %d cycles", took)
    # Across rows and banks, and in places that a wrong address would hit.
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    shadow: dict = {}
    for first in (0, 250, 2040, 1 << 14, (1 << 21) - 300, 12345):
        values = [int(v) for v in rng.integers(0, 1 << 63, 300)]
        await write(dut, first, values)
        shadow.update(enumerate(values, first))
    # Single words with strobes, odd and even.
    beats = []
    for _ in range(60):
        at = random.choice(list(shadow))
        value, strobe = random.getrandbits(64), random.getrandbits(8)
        beats.append((at, value, strobe))
        mask = sum(255 << 8 * k for k in range(8) if strobe >> k & 1)
        shadow[at] = shadow[at] & ~mask | value & mask
    cocotb.start_soon(send(dut, "port__w_cmd", commands([(a, 1) for a, _, _ in beats]), 0.3,
                           layout=ReadCommand(CONFIG)))
    cocotb.start_soon(send(dut, "port__w_data", [v | s << 64 for _, v, s in beats], 0.3))
    await done(dut, len(beats))
    for _ in range(60):
        at, n = random.choice(list(shadow)), random.randint(1, 60)
        while at + n - 1 not in shadow:
            n -= 1
        cocotb.start_soon(send(dut, "port__r_cmd", commands([(at, n)]),
                               layout=ReadCommand(CONFIG)))
        got = await recv(dut, "port__r_data", n, 0.2)
        assert got == [shadow[i] for i in range(at, at + n)], (at, n)


@cocotb.test(**LIMIT)
async def stream(dut):
    """A long sequential read: what rows and refreshes cost, LiteDRAM's controller and all."""
    await begin(dut)
    words, n = int(os.environ["WORDS"]), CONFIG.burst_words
    first = 1 << 12
    values = [(first + k) * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for k in range(words)]
    await write(dut, first, values)
    times: list = []
    cocotb.start_soon(send(dut, "port__r_cmd", commands(
        [(first + k, n) for k in range(0, words, n)]), layout=ReadCommand(CONFIG)))
    got = await recv(dut, "port__r_data", words, times=times)
    assert got == values
    took = times[-1] - times[0] + 1
    dut._log.info("%d words in %d cycles, %.4f of the bus", words, took, words / took)
    assert words / took >= float(os.environ["LEAST"])


@cocotb.test(**LIMIT)
async def a_lane_that_never_reads_is_told(dut):
    await begin(dut)
    assert dut.failed.value and not dut.port__ready.value


def bench(tmp: Path, windows):
    wanted = ECPIX5.chip.litedram(ECPIX5) | {"sim": True, "sim_rows": 2048, "windows": windows}
    core, verilog = generate(wanted, tmp)
    component = Ddr3Bench(CONFIG, core)
    text = _verilog(relax(rtlil.convert(component, name="dut", emit_src=False)))
    # Without the comments, in which there is a date: what is unchanged is not compiled again.
    return component, text + re.sub(r"(?m)^//.*$", "", verilog.read_text())


@pytest.mark.parametrize("testcase, windows", [
    ("wakes_and_keeps_what_is_written", WINDOWS), ("stream", WINDOWS),
    ("a_lane_that_never_reads_is_told", [[2, 1, 5], [0, 7, 6]])])
def test_ddr3(testcase, windows, seed, tmp_path, capfd):
    pytest.importorskip("litedram")
    component, text = bench(tmp_path, windows)
    simulate(component, __name__, seed=seed, testcase=testcase, text=text,
             words=int(os.environ.get("DDR3_WORDS", "8192")), least=0.8)
    said = capfd.readouterr().out
    print(said)
    # LiteDRAM's model of the chip reports times that were not kept, and goes on.
    assert "violation" not in said and "Late refresh" not in said
