"""Multiplier: every product right, three cycles late, one a cycle."""
import random

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from amaranth.back import rtlil
from bench import simulate, start
from meadowlark_hdl.tech.ecp5 import ECP5
from meadowlark_hdl.tech.cells import Multiplier

EDGES = [0, 1, -1, 2, -2, 2**17 - 1, -2**17, 2**16, -2**16, 0x15555, -0x15556]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def products_are_three_cycles_late(dut):
    pairs = [(a, b) for a in EDGES for b in EDGES]
    pairs += [(random.randrange(-2**17, 2**17), random.randrange(-2**17, 2**17))
              for _ in range(1000)]
    await start(dut)
    for n in range(len(pairs) + Multiplier.LATENCY):
        a, b = pairs[n] if n < len(pairs) else (0, 0)
        dut.a.value, dut.b.value = a, b
        await ReadOnly()
        if n >= Multiplier.LATENCY:
            a, b = pairs[n - Multiplier.LATENCY]
            assert dut.p.value.to_signed() == a * b, f"{a} * {b}"
        await RisingEdge(dut.clk)


def test_multiplier(sim, seed):
    simulate(Multiplier(), __name__, seed=seed, sim=sim)


def test_ecp5_is_one_instance_with_all_registers():
    text = rtlil.convert(Multiplier(), name="top", platform=ECP5, emit_src=False)
    assert text.count("cell \\MULT18X18D") == 1
    for register in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
        assert f'\\REG_{register}_CLK "CLK0"' in text
