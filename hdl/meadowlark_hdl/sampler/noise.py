"""Gumbel noise of a token: the token hashed twice, then -log2(-ln v) by tables."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import reg
from .tables import Lookup, Table, Tables


class Noise(wiring.Component):
    """Noise in log2 units, 12 fractional bits, of tokens under a key made of seed and draw.

    What is hashed goes through one pipeline three times: one sum a stage, the exclusive ors before
    it. First comes the key, of the draw and the seed's hash; then the token, twice. So each
    token may have a draw of its own: a position, xored with what makes its seed another one. The
    seed is hashed there as well, in the ``SEEDED`` cycles after ``start``; what is on its way then
    is lost.

    Source: Gumbel-max trick, Maddison et al., arXiv:1411.0030.
    Golden: :func:`.sampler_golden.gumbel`, of :func:`.sampler_golden.noise_key`; bit-exact.
    Timing: ``LATENCY`` cycles, a token every 4 cycles, but not ``HASH`` cycles after another, nor
    twice as many; never stalls. The tables are asked ``ASKS`` cycles after ``valid``.

    Members
    -------
    seed : In(32)               Constant from ``start`` on, for 2 cycles.
    start : In(1)               Pulse: hashes the seed.
    valid, draw : In(1), In(32) Pulse: a token comes, for this draw, which need not stay.
    token : In(19)              The token, ``HASH`` cycles later, for one cycle.
    tables : Out(Lookup())
    noise : Out(signed(19))     At most 2**17, at least -2**14; for one cycle.
    """

    HASH = 5            # a hash is there, to be hashed again
    SEEDED = HASH + 2
    MANTISSA = 3 * HASH + 6         # of the last hash, normalised
    ASKS = (MANTISSA, MANTISSA + 1)
    LATENCY = ASKS[1] + Tables.LATENCY + 1

    def __init__(self):
        super().__init__({
            "seed": In(32), "draw": In(32), "start": In(1),
            "valid": In(1), "token": In(Config.TOKEN_BITS),
            "tables": Out(Lookup()), "noise": Out(signed(19))})

    def elaborate(self, platform):
        m = Module()
        # Bit s is high for one cycle when the registers of stage s begin to hold a token's values.
        flow, seeding = Signal(self.ASKS[1] + 1), Signal(self.HASH + 1)
        later = Signal(self.ASKS[1])
        m.d.comb += flow.eq(Cat(self.valid, later))
        m.d.sync += [later.eq(flow), seeding.eq(Cat(self.start, seeding[:-1]))]

        hashed_seed, v = reg(32, "hashed_seed"), reg(32, "v")
        x, a, b, c, d, e = (reg(32, name) for name in "xabcde")
        # ~x + (x << 15) is ~a: a difference takes no inverters before its carry chain
        y, z, mixed = ~a ^ (~a >> 12), b ^ (b >> 4), e ^ (e >> 16)
        m.d.sync += [x.eq(hashed_seed ^ self.draw), a.eq(x - (x << 15)[:32]),
                     b.eq(y + (y << 2)), c.eq(z + (z << 3)), d.eq(z << 11), e.eq(c + d)]
        with m.If(flow[self.HASH]):
            m.d.sync += x.eq(mixed ^ self.token)
        with m.If(flow[2 * self.HASH]):
            m.d.sync += x.eq(mixed)
        with m.If(seeding[0]):
            m.d.sync += x.eq(self.seed)
        with m.If(seeding[self.HASH]):
            m.d.sync += hashed_seed.eq(mixed)
        with m.If(flow[3 * self.HASH]):
            m.d.sync += v.eq(mixed)

        # Normalise: after each step only the bits that can still become one of the leading 9 are
        # kept. v = 0 behaves as v = 1: 31 leading zeros and an empty mantissa.
        bits, zeros = v, []
        for i, (step, keep) in enumerate(((16, 24), (8, 16), (4, 12), (2, 10), (1, 9))):
            empty = ~bits[-step:].any()
            moved, found = reg(keep, f"norm_{step}"), reg(i + 1, f"zeros_{step}")
            m.d.sync += [
                moved.eq(Mux(empty, bits << step, bits)[len(bits) - keep:len(bits)]),
                found.eq(Cat(empty, zeros))]
            bits, zeros = moved, found
        tail = reg(8, "tail")                       # v's leading bits, until their turn
        with m.If(flow[self.MANTISSA - 2]):
            m.d.sync += tail.eq(v[24:])
        first, second = (flow[cycle] for cycle in self.ASKS)
        m.d.comb += [self.tables.en.eq(first | second),
                     self.tables.table.eq(Mux(second, Table.TAIL, Table.LOG2)),
                     self.tables.index.eq(Mux(second, tail, bits))]

        # (zeros + 1) * 4096 - log2 - tail
        partial, noise = reg(signed(19), "partial"), reg(signed(19), "noise")
        m.d.sync += [partial.eq(Cat(Const(0, 12), zeros + 1) - self.tables.value),
                     noise.eq(partial - self.tables.value)]
        m.d.comb += self.noise.eq(noise)
        return m
