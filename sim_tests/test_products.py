"""A shared multiplier: every product right, four cycles late, for the user whose turn it was."""
import random

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from bench import simulate, start
from meadowlark_hdl.compute.products import SHARED_LATENCY, ProductPort, share

EDGES = [0, 1, -1, 2, -2, 2**17 - 1, -2**17, 2**16, -2**16, 0x15555, -0x15556]


class Shared(wiring.Component):
    """Two users of one multiplier; the second one has two turns of four."""

    def __init__(self):
        super().__init__({"select": In(2), "users": In(ProductPort()).array(2)})

    def elaborate(self, platform):
        m = Module()
        first, second = self.users
        share(m, "product", self.select, (first, second, second, first))
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


def test_shared_multiplier(seed):
    simulate(Shared(), __name__, seed=seed)
