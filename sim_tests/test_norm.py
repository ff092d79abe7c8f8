"""Norm, shifted and saturated, equals its golden model; cycles a token as promised."""
import os

import cocotb
import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In
from cocotb.triggers import ReadOnly, RisingEdge

from bench import cycles, pack, simulate, start, unpack
from meadowlark_hdl.compute.function import Reciprocal
from meadowlark_hdl.compute.products import share
from meadowlark_hdl.compute.norm import Norm
from meadowlark_hdl.compute.norm_golden import rmsnorm, sum_of_squares
from meadowlark_hdl.compute.residual import Residual
from meadowlark_hdl.config import Config
from meadowlark_hdl.fixed import rshift, saturate
from meadowlark_hdl.signatures import Beat, ModelLayout, PassLayout

CONFIGS = {"w4p3": Config(W=4, P=3, bus_bytes=1), "w8p4": Config(W=8, P=4, bus_bytes=1),
           "w16p16": Config(W=16, P=16, bus_bytes=4)}
CONFIGS |= {f"{name}-shared": config.replace(vector_products=8)
            for name, config in CONFIGS.items()}


class WithRoot(wiring.Component):
    """A Norm with its reciprocal root and, if they are not its own, its multipliers.

    The memories stay outside.
    """

    def __init__(self, config):
        self.root = Reciprocal()
        self.norm = Norm(config, sum_latency=Residual.SUM_LATENCY, root_latency=self.root.latency,
                         read_latency=Residual(config).cycles["read"])
        inside = ("x", "t", "k", "root0", "gamma0")
        super().__init__({name: member for name, member in self.norm.signature.members.items()
                          if name not in inside})

    def elaborate(self, platform):
        m = Module()
        m.submodules.norm = self.norm
        m.submodules.root = root = self.root
        m.d.comb += [root.root.eq(1), root.x.eq(self.norm.x), self.norm.t.eq(root.t),
                     self.norm.k.eq(root.k)]
        if self.norm.shared:
            for k, port in enumerate((self.norm.root0, self.norm.gamma0)):
                share(m, f"product{k}", 0, [port])
        for name, member in self.signature.members.items():
            ours, inner = getattr(self, name), getattr(self.norm, name)
            m.d.comb += inner.eq(ours) if member.flow == In else ours.eq(inner)
        return m


async def _memory(dut, address, port, latency, words):
    """Drive a read port: what its ports ``address`` asked for ``latency`` cycles ago."""
    asked = [[0] * len(address)] * latency
    while True:
        await ReadOnly()
        asked.append([int(getattr(dut, name).value) for name in address])
        await RisingEdge(dut.clk)
        getattr(dut, port).value = words(*asked[-latency])


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(tokens=[1, 2, 13], last=[False, True], beats=[1, 2, 8],
                    beside=[False, True])
async def matches_golden(dut, tokens, last, beats, beside):
    """Of the residual, or of values beside it, behind which there may be others."""
    config = CONFIGS[os.environ["CONFIG"]]
    norm = WithRoot(config).norm
    first, read_latency = norm.cycles["o"], norm.read_latency
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    P, W, hidden = config.P, config.W, beats * config.W
    before = W * int(rng.integers(1, 4)) if beside else 0
    stride = before + hidden + W * int(rng.integers(2))
    width = config.norm_width
    residual = rng.integers(-2**26, 2**26, (tokens, hidden)) >> rng.integers(0, 26, (tokens, 1))
    residual[0] = 0
    residual[-1, 0] = -2**26
    sums, eps = sum_of_squares(residual), int(rng.integers(1, 1000))
    gamma = rng.integers(-2**15, 2**15, hidden)
    begin = (tokens - 1) // P * P               # the last block
    memory = rng.integers(-2**26, 2**26, (tokens, stride))
    memory[:, before:before + hidden] = residual
    flat = memory.reshape(-1, 4)
    beat = Beat(config)
    cocotb.start_soon(_memory(dut, ["sum_slot"], "sum", Residual.SUM_LATENCY, lambda s: (
        int(sums[s]) if s < tokens else 0)))
    if width == 4:
        cocotb.start_soon(_memory(dut, ["read_word"], "read", read_latency, lambda a: pack(
            data.ArrayLayout(27, 4), **{}) if a >= len(flat) else sum(
                (int(v) & 2**27 - 1) << 27 * k for k, v in enumerate(flat[a]))))
    else:
        cocotb.start_soon(_memory(
            dut, ["read_word", "read_element"], "read", read_latency,
            lambda a, k: int(flat[a, k]) & 2**27 - 1 if a < len(flat) else 0))
    cocotb.start_soon(_memory(
        dut, ["gamma_addr"], "gamma", Norm.GAMMA_LATENCY,
        lambda a: pack(beat) if a >= beats else sum(
            (int(v) & 0x3ffff) << 18 * k for k, v in enumerate(gamma[a * W:(a + 1) * W]))))
    await start(dut, last_only=last, beside=int(beside), row_beats=beats,
                model=pack(ModelLayout, hidden=before or hidden, stride=stride, eps=eps),
                pass_=pack(PassLayout(), n=tokens), base=begin * stride // 4 if last else 0,
                last_lane=(tokens - 1) % P, last_block=(tokens - 1) // P, last_slot=begin)
    for _ in range(2):
        began = cycles(dut)
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        slots = list(range(begin if last else 0, tokens))
        count = len(slots) * hidden // width
        tags, values = [], []
        for _ in range(first + count + 8):
            await ReadOnly()
            tag = unpack(norm.tag.shape(), int(dut.tag.value))
            tags.append((cycles(dut) - began, tag))
            raw = int(dut.o.value)
            values.append([raw >> 34 * k & 2**34 - 1 for k in range(width)])
            await RisingEdge(dut.clk)
        at = [k for k, (_, tag) in enumerate(tags) if tag["valid"]]
        assert tags[at[0]][0] == first - Norm.TAG_LEAD
        assert at == list(range(at[0], at[0] + count)), "a gap"
        words = [(s % P, s // P, i) for s in slots for i in range(hidden // width)]
        assert [(tags[k][1]["lane"], tags[k][1]["block"], tags[k][1]["word"]) for k in at] == words
        assert [tags[k][1]["last"] for k in at] == [0] * (count - 1) + [1]
        got = np.array([values[k + Norm.TAG_LEAD] for k in at]).reshape(len(slots), hidden)
        got -= (got >> 33) << 34
        for shift in (0, 14, 16):
            want = rmsnorm(residual[slots], sums[slots], eps, gamma, shift)
            np.testing.assert_array_equal(saturate(rshift(got, shift), 16), want)


@pytest.mark.parametrize("config", CONFIGS)
def test_norm(config, seed):
    simulate(WithRoot(CONFIGS[config]), __name__, seed=seed, config=config)
