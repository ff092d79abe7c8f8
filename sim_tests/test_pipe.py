"""Delays: the value of so many cycles ago, with its sign, and zeros after a reset where asked."""
import cocotb
import numpy as np
import pytest
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench import simulate, start
from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark_hdl.lib.pipe import delay


class Delays(wiring.Component):
    """Its input 0, 1 and 3 cycles ago, extended by its sign; and a valid bit."""

    def __init__(self):
        super().__init__({"i": In(signed(5)), "valid": In(1), "late": Out(1),
                          **{f"o{k}": Out(signed(8)) for k in (0, 1, 3)}})

    def elaborate(self, platform):
        m = Module()
        for k in (0, 1, 3):
            m.d.comb += getattr(self, f"o{k}").eq(delay(m, self.i, k, name=f"i{k}"))
        m.d.comb += self.late.eq(delay(m, self.valid, 3, name="valid", reset=True))
        return m


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def follows(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut, valid=0)
    values = []
    for k in range(200):
        values.append(int(rng.integers(-16, 16)))
        dut.i.value, dut.valid.value = values[-1], values[-1] & 1
        await ReadOnly()
        for cycles_ago in (0, 1, 3):
            if k >= cycles_ago:
                assert getattr(dut, f"o{cycles_ago}").value.to_signed() == values[k - cycles_ago]
        assert dut.late.value == (values[k - 3] & 1 if k >= 3 else 0)
        await RisingEdge(dut.clk)
    dut.valid.value = 1
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    dut.rst.value, dut.valid.value = 0, 0
    for _ in range(4):
        await ReadOnly()
        assert dut.late.value == 0
        await RisingEdge(dut.clk)


def test_pipe(seed, sim):
    simulate(Delays(), __name__, seed=seed, sim=sim)


def test_not_back_in_time():
    with pytest.raises(ValueError, match="^cycles must be at least 0, not -1$"):
        delay(Module(), Signal(), -1, name="later")
