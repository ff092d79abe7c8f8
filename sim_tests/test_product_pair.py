"""ProductPair: every sum right, three cycles late, one a cycle; the cells compute the same."""
import random
import re

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from amaranth.back import rtlil, verilog
from bench import simulate, start
from cell_models import CELLS
from conftest import ICARUS, NO_ICARUS
from meadowlark_hdl.tech.ecp5 import ECP5
from meadowlark_hdl.tech.cells import ProductPair

FACTORS = [0, 1, -1, 2**17 - 1, -2**17, 2**15 - 1, -2**15, 0x15555, -0x15556]
SUMS = [0, 1, -1, 2**35 - 1, -2**35, 2**34, 0x555555555]


def factor():
    return random.choice(FACTORS) if random.random() < 0.3 else random.randrange(-2**17, 2**17)


def case():
    c = random.choice(SUMS) if random.random() < 0.3 else random.randrange(-2**35, 2**35)
    return {name: factor() for name in ("a0", "b0", "a1", "b1")} | {
        "broadcast": random.randrange(2), "keep": random.randrange(2), "c": c}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sums_are_three_cycles_late(dut):
    """Dot and broadcast mode in any order, a new sum every cycle."""
    cases = [dict(a0=a, b0=b, a1=d, b1=e, broadcast=0, keep=0, c=-1)
             for a in FACTORS[-6:] for b in FACTORS[-6:] for d, e in ((a, b), (b, -1))]
    cases += [dict(a0=a, b0=b, a1=a, b1=b, broadcast=1, keep=keep, c=c)
              for a in FACTORS[-6:] for b in FACTORS[-6:] for c in SUMS for keep in (0, 1)]
    cases += [case() for _ in range(1000)]
    await start(dut)
    for n in range(len(cases) + ProductPair.LATENCY):
        now = cases[min(n, len(cases) - 1)]
        for name in now.keys() - {"c"}:
            getattr(dut, name).value = now[name]
        dut.c.value = cases[min(max(n - ProductPair.C_CYCLE, 0), len(cases) - 1)]["c"]
        await ReadOnly()
        if n >= ProductPair.LATENCY:
            was = cases[n - ProductPair.LATENCY]
            want = was["a0"] * was["b0"] + was["c"] * was["keep"]
            want += 0 if was["broadcast"] else was["a1"] * was["b1"]
            assert (dut.r.value.to_signed() - want) % 2**36 == 0, was
        await RisingEdge(dut.clk)


def test_product_pair(sim, seed):
    simulate(ProductPair(), __name__, seed=seed, sim=sim)


@pytest.mark.skipif(not ICARUS, reason=NO_ICARUS)
def test_cells(seed):
    """On Icarus: the models stop at a value that is not known yet, and Verilator makes one up."""
    text = verilog.convert(ProductPair(), name="dut", platform=ECP5, emit_src=False) + CELLS
    simulate(ProductPair(), __name__, seed=seed, sim="icarus", text=text)


def test_ecp5_is_three_instances_with_all_registers():
    text = rtlil.convert(ProductPair(), name="top", platform=ECP5, emit_src=False)
    assert text.count("cell \\MULT18X18D") == 2 and text.count("cell \\ALU54B") == 1
    # nextpnr: none behind the multiplier where the ALU follows.
    assert "REG_OUTPUT_CLK" not in text and "REG_OUTPUT0_CLK" in text
    for register in ("INPUTA", "INPUTB", "PIPELINE"):
        assert text.count(f'\\REG_{register}_CLK "CLK0"') == 2
    # A + B + C: B is the second product unless broadcast, C is the input c if that is kept.
    opcode = dict(re.findall(r"connect \\OP(\d+) (\S+)", text))
    assert [opcode[str(k)] for k in range(11)] == [
        "1'1", "1'0", "1'1", r"\broadcast", r"\keep", r"\keep", "1'0", "1'0", "1'0", "1'1", "1'0"]
