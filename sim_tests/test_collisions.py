"""Marked memories: bare block RAMs in synthesis, noise on a collision in simulation."""
import os
import random

import cocotb
import pytest
from amaranth import Module
from amaranth.back import rtlil
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ReadOnly, RisingEdge

from bench import simulate, start
from meadowlark_hdl.lib.collisions import NO_RW_CHECK, relax

OLD, NEW = 0x1234_5678, 0x9abc_def0


class Ram(wiring.Component):
    """32 x 32 bits in halves, with one read port of each kind that a mark must tell apart."""

    def __init__(self, *, attrs):
        self.attrs = attrs
        super().__init__({"addr": In(5), "data": In(32), "en": In(2),
                          "plain": Out(32), "transparent": Out(32), "now": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=32, depth=32, init=[], attrs=self.attrs)
        write = ram.write_port(granularity=16)
        m.d.comb += [write.addr.eq(self.addr), write.data.eq(self.data), write.en.eq(self.en)]
        for name, port in (("plain", ram.read_port()), ("now", ram.read_port(domain="comb")),
                           ("transparent", ram.read_port(transparent_for=(write,)))):
            m.d.comb += [port.addr.eq(self.addr), getattr(self, name).eq(port.data)]
        return m


async def write(dut, addr, data, en):
    dut.addr.value, dut.data.value, dut.en.value = addr, data, en
    await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def collides(dut):
    addr = random.randrange(32)
    await start(dut)
    await write(dut, addr, OLD, 3)
    await write(dut, addr, NEW, 1)      # collides in the low half
    await ReadOnly()
    plain, transparent, now = (int(getattr(dut, name).value)
                               for name in ("plain", "transparent", "now"))
    mixed = OLD & 0xffff0000 | NEW & 0xffff
    assert transparent == mixed and now == mixed
    assert plain & 0xffff0000 == OLD & 0xffff0000
    low = plain & 0xffff
    noisy = os.environ["NOISY"] == "1"
    assert (low != OLD & 0xffff) == noisy, hex(low)     # by chance equal once in 65536 seeds


@pytest.mark.parametrize("attrs, noisy", [(NO_RW_CHECK, True), ({}, False)])
def test_a_colliding_read_is_noise_only_if_marked(attrs, noisy, seed):
    simulate(Ram(attrs=attrs), __name__, seed=seed, noisy=int(noisy))


def test_unmarked_memories_stay_as_they_are():
    text = rtlil.convert(Ram(attrs={}), name="top", emit_src=False)
    assert relax(text) == text
