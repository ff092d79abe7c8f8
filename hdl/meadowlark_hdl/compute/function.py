"""Functions by table and interpolation: 1/x and 1/sqrt(x) in one unit, and the sigmoid."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..fixed import RECIP_TABLE, RSQRT_TABLE, SIGMOID_TABLE
from ..tech.cells import Multiplier
from .products import product, product_latency, product_ports
from ..lib.pipe import delay


#: Block RAM and a register: multipliers stand in rows of their own, too far from a RAM's output.
TABLE_LATENCY = 2


def _segments(table, base_bits: int, step_bits: int) -> list[int]:
    """Words ``base | step << base_bits``: each entry and its distance to the next one."""
    return [int(a) | int(b - a) % (1 << step_bits) << base_bits
            for a, b in zip(table, table[1:], strict=False)]


class Reciprocal(wiring.Component):
    """``1/x`` or ``1/sqrt(x)``: a 17-bit mantissa and an exponent.

    Golden: :func:`meadowlark_hdl.fixed.recip` and :func:`~meadowlark_hdl.fixed.rsqrt`, bit-exact.
    Error: relative, below 2**-14.
    Timing: ``latency(shared)`` cycles, ``LATENCY`` with a multiplier of its own; one value a cycle,
    never stalls.

    Both functions share the search for the leading one, one block RAM of 512 segments and the
    multiplier that interpolates. x = 0 gives a meaningless value.

    Parameters
    ----------
    shared : bool
        It is outside, behind interpolate (:class:`.products.ProductPort`).

    Members
    -------
    x : In(64)
        Below 2**32 when root = 0 (by the golden model's range; wider values work as well).
    root : In(1)
        0: 1/x = t * 2**-(16 + k). 1: 1/sqrt(x) = t * 2**-(16 + k // 2).
    t : Out(17)
        2**15..2**16.
    k : Out(6)
        floor(log2(x)).
    """

    LATENCY = 6 + TABLE_LATENCY + Multiplier.LATENCY + 1
    BASE_BITS, STEP_BITS = 17, 9        # up to 65536; the steepest segment falls by 255

    @classmethod
    def latency(cls, shared: bool) -> int:
        """Cycles with multipliers of its own, or shared ones."""
        return cls.LATENCY + product_latency(shared) - Multiplier.LATENCY

    def __init__(self, *, shared: bool = False):
        self.shared = shared
        super().__init__({"x": In(64), "root": In(1), "t": Out(17), "k": Out(6),
                          **product_ports(shared, "interpolate")})

    def elaborate(self, platform):
        m = Module()

        def reg(value, name):
            return delay(m, value, 1, name=name)
        # Normalise: groups of 16, then of 4, then single bits; each stage keeps as many bits as
        # the 19 from the leading one down can still need.
        x = reg(self.x, "x")
        groups = reg(Cat(x[k:k + 4].any() for k in range(0, 64, 4)), "groups")
        x = reg(x, "x_groups")

        def leading(flags):
            """Index of the highest of 4 flags; 0 if there is none."""
            return Cat(flags[3] | (flags[1] & ~flags[2]), flags[3] | flags[2])

        def shifted(value, index, step, keep):
            """Shift left by step * (3 - index), then keep the highest bits."""
            padded = Cat(Const(0, max(3 * step + keep - len(value), 0)), value)
            options = [padded[len(padded) - keep - step * (3 - k):][:keep] for k in range(4)]
            return Mux(index[1], Mux(index[0], options[3], options[2]),
                       Mux(index[0], options[1], options[0]))
        index4 = reg(leading(Cat(groups[k:k + 4].any() for k in range(0, 16, 4))), "index4")
        x, groups = reg(x, "x_index4"), reg(groups, "groups_index4")
        nibbles = reg(shifted(groups, index4, 4, 4), "nibbles")
        x = reg(shifted(x, index4, 16, 34), "x16")
        index2 = leading(nibbles)
        x = reg(shifted(x, index2, 4, 22), "x4")
        k = Cat(reg(index2, "index2"), delay(m, index4, 2, name="index4_later"))
        index1 = leading(x[18:])
        x = reg(shifted(x, index1, 1, 19), "x1")
        k = Cat(reg(index1, "index1"), reg(k, "k"))
        root = delay(m, self.root, 6, name="root")

        # 8 bits below the leading one and the next 10, or the parity of k, 7 bits and the next 10.
        m.submodules.table = table = memory.Memory(
            shape=self.BASE_BITS + self.STEP_BITS, depth=512,
            init=[*_segments(RECIP_TABLE, self.BASE_BITS, self.STEP_BITS),
                  *_segments(RSQRT_TABLE, self.BASE_BITS, self.STEP_BITS)],
            attrs={"rom_block": 1})
        port = table.read_port()
        m.d.comb += port.addr.eq(Mux(root, Cat(x[11:18], k[0], 1), x[10:18]))
        rest = delay(m, Mux(root, x[1:11], x[:10]), TABLE_LATENCY, name="rest")
        segment = reg(port.data, "segment")
        step = product(m, self, "interpolate", segment[self.BASE_BITS:].as_signed(), rest)
        base = delay(m, segment[:self.BASE_BITS], product_latency(self.shared), name="base")
        t = Signal(17, reset_less=True)
        m.d.sync += t.eq((Cat(Const(512, 10), base) + step)[10:])
        m.d.comb += [self.t.eq(t), self.k.eq(delay(m, k, self.latency(self.shared) - 6, name="k"))]
        return m


class Sigmoid(wiring.Component):
    """``sigmoid(g / 2048)`` as u1.15.

    Golden: :func:`meadowlark_hdl.fixed.sigmoid`, bit-exact. Error: absolute, below 2**-13.
    Timing: ``latency(shared)`` cycles, ``LATENCY`` with a multiplier of its own; one value a cycle,
    never stalls.

    Parameters
    ----------
    shared : bool
        It is outside, behind interpolate (:class:`.products.ProductPort`).

    Members
    -------
    g : In(signed(18))
    o : Out(16)
        0..32768.
    """

    LATENCY = 1 + TABLE_LATENCY + Multiplier.LATENCY + 2
    BASE_BITS, STEP_BITS = 16, 11       # up to 32768; the steepest segment climbs by 512

    @classmethod
    def latency(cls, shared: bool) -> int:
        """Cycles with multipliers of its own, or shared ones."""
        return cls.LATENCY + product_latency(shared) - Multiplier.LATENCY

    def __init__(self, *, shared: bool = False):
        self.shared = shared
        super().__init__({"g": In(signed(18)), "o": Out(16),
                          **product_ports(shared, "interpolate")})

    def elaborate(self, platform):
        m = Module()
        magnitude = Signal(18, reset_less=True)         # up to 2**17
        m.d.sync += magnitude.eq(Mux(self.g[-1], -self.g, self.g))
        m.submodules.table = table = memory.Memory(
            shape=self.BASE_BITS + self.STEP_BITS, depth=256,
            init=_segments(SIGMOID_TABLE, self.BASE_BITS, self.STEP_BITS), attrs={"rom_block": 1})
        port = table.read_port()
        m.d.comb += port.addr.eq(magnitude[7:15])
        segment = delay(m, port.data, 1, name="segment")
        step = product(m, self, "interpolate", segment[self.BASE_BITS:].as_signed(),
                       delay(m, magnitude[:7], TABLE_LATENCY, name="rest"))
        base = delay(m, segment[:self.BASE_BITS], product_latency(self.shared), name="base")
        positive = Signal(16, reset_less=True)
        m.d.sync += positive.eq((Cat(Const(64, 7), base) + step)[7:])
        negative = delay(m, self.g[-1], self.latency(self.shared) - 1, name="negative")
        large = delay(m, magnitude[15:].any(), self.latency(self.shared) - 2, name="large")
        o = Signal(16, reset_less=True)
        with m.If(large):
            m.d.sync += o.eq(Mux(negative, 0, 32768))
        with m.Else():
            m.d.sync += o.eq(Mux(negative, 32768 - positive, positive))
        m.d.comb += self.o.eq(o)
        return m
