"""What crosses the chip comes as it was, so many cycles later."""
import cocotb
import numpy as np
import pytest
from amaranth import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from bench import simulate, start
from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark_hdl.lib.far import far

PAIR = data.StructLayout({"low": 3, "high": signed(2)})


class Crossings(wiring.Component):
    """A number that becomes wider, and a structure."""

    def __init__(self):
        super().__init__({"i": In(signed(5)), "two": Out(signed(8)),
                          "pair": In(PAIR), "one": Out(PAIR)})

    def elaborate(self, platform):
        m = Module()
        far(m, self.two, self.i)
        far(m, self.one, self.pair, cycles=1)
        return m


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def follows(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut)
    values = rng.integers(-16, 16, 200)
    for k, value in enumerate(values):
        dut.i.value, dut.pair.value = int(value), int(value) & 31
        await ReadOnly()
        assert k < 2 or dut.two.value.to_signed() == values[k - 2]
        assert k < 1 or int(dut.one.value) == values[k - 1] & 31
        await RisingEdge(dut.clk)


def test_far(seed):
    simulate(Crossings(), __name__, seed=seed)


def test_far_is_not_near():
    with pytest.raises(ValueError, match="^cycles must be at least 1, not 0$"):
        far(Module(), Signal(), Signal(), cycles=0)
