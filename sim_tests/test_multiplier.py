"""Multiplier: every product right, three cycles late, one a cycle; four if it is shared."""
import random

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from amaranth import Module
from amaranth.back import rtlil
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from bench import simulate, start
from meadowlark_hdl.compute.multiplier import SHARED_LATENCY, Multiplier, ProductPort, share

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


class Shared(wiring.Component):
    """Two users of one multiplier; the second one has two turns of four."""

    def __init__(self):
        super().__init__({"select": In(2), "users": In(ProductPort()).array(2)})

    def elaborate(self, platform):
        m = Module()
        first, second = self.users
        share(m, "product", self.select, (first, second, second, first), dsp="generic")
        return m


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_user_whose_turn_it_is(dut):
    """A new turn every cycle; each product reaches both."""
    await start(dut)
    ports = [{name: getattr(dut, f"users__{k}__{name}") for name in "abp"} for k in (0, 1)]
    want = []
    for n in range(1000):
        turn = random.randrange(4)
        dut.select.value = turn
        factors = [[random.choice(EDGES) if random.random() < 0.3 else
                    random.randrange(-2**17, 2**17) for _ in "ab"] for _ in ports]
        for port, (a, b) in zip(ports, factors):
            port["a"].value, port["b"].value = a, b
        a, b = factors[turn in (1, 2)]
        want.append(a * b)
        await ReadOnly()
        if n >= SHARED_LATENCY:
            assert [port["p"].value.to_signed() for port in ports] \
                == [want[n - SHARED_LATENCY]] * 2
        await RisingEdge(dut.clk)


def test_multiplier(sim, seed):
    simulate(Multiplier(), __name__, seed=seed, sim=sim,
             testcase="products_are_three_cycles_late")


def test_shared_multiplier(seed):
    simulate(Shared(), __name__, seed=seed, testcase="the_user_whose_turn_it_is")


def test_ecp5_is_one_instance_with_all_registers():
    text = rtlil.convert(Multiplier(dsp="ecp5"), name="top", emit_src=False)
    assert text.count("cell \\MULT18X18D") == 1
    for register in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
        assert f'\\REG_{register}_CLK "CLK0"' in text


def test_dsp_unknown():
    with pytest.raises(ValueError, match=r"^dsp must be generic or ecp5, not 'ice40'$"):
        Multiplier(dsp="ice40")
