"""Copies of a register: a cycle late, of the value's shape, and never merged."""
import sys
from pathlib import Path

import cocotb
import numpy as np
import pytest
from amaranth import Module, Signal, signed
from amaranth.back import rtlil
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from bench import simulate, start
from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark_hdl.lib.fanout import LATENCY, fanout, near

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

Pair = data.StructLayout({"low": signed(3), "high": 4})


class Copies(wiring.Component):
    """Three copies, one of a structure, and one that is written on request."""

    def __init__(self):
        super().__init__({"i": In(signed(7)), "pair": In(Pair), "take": In(1),
                          **{f"o{k}": Out(signed(7)) for k in range(3)},
                          "pair_o": Out(Pair), "held": Out(7)})

    def elaborate(self, platform):
        m = Module()
        for k, copy in enumerate(fanout(m, self.i, 3, name="copy")):
            m.d.comb += getattr(self, f"o{k}").eq(copy)
        pair = near(m, self.pair, name="pair")
        m.d.comb += [self.pair_o.low.eq(pair.low), self.pair_o.high.eq(pair.high)]
        with m.If(self.take):
            held = near(m, self.i.as_unsigned(), name="held", reset=True)
        m.d.comb += self.held.eq(held)
        return m


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def follows(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut, take=0)
    await ReadOnly()
    assert dut.held.value == 0
    held, values = 0, []
    await RisingEdge(dut.clk)
    for k in range(200):
        value, take = int(rng.integers(128)), int(rng.integers(2))
        dut.i.value, dut.pair.value, dut.take.value = value, value, take
        values.append(value)
        await ReadOnly()
        assert dut.held.value == held
        if k >= LATENCY:
            for name in ("o0", "o1", "o2", "pair_o"):
                assert getattr(dut, name).value.to_unsigned() == values[k - LATENCY]
        held = value if take else held
        await RisingEdge(dut.clk)


def test_fanout(seed, sim):
    simulate(Copies(), __name__, seed=seed, sim=sim)


@pytest.mark.parametrize("n", [0, -1])
def test_no_copies(n):
    with pytest.raises(ValueError, match=f"^n must be at least 1, not {n}$"):
        fanout(Module(), Signal(), n, name="copy")


def test_synthesis_keeps_them():
    pytest.importorskip("pyosys", reason="make setup-synth")
    import replay

    def registers(make):
        m, i, o = Module(), Signal(), Signal(3)
        m.d.comb += o.eq(sum(make(m, i)))
        graph = replay.graph_of(rtlil.convert(m, name="top", ports=[i, o], emit_src=False))
        return sum("copy" in name for name in graph.names)

    def plain(m, i):
        copies = [Signal(name=f"copy_{k}", reset_less=True) for k in range(5)]
        m.d.sync += [copy.eq(i) for copy in copies]
        return copies
    assert registers(plain) == 1
    assert registers(lambda m, i: fanout(m, i, 5, name="copy")) == 5
    assert registers(lambda m, i: [near(m, i, name="copy") for _ in range(2)]) == 2
