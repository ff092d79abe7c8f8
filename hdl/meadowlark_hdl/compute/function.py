"""Functions by table and interpolation: 1/x and 1/sqrt(x) in one unit, and those of rows."""
from collections.abc import Callable

from amaranth import Cat, Const, Mux, signed
from amaranth.lib import memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..fixed import RECIP_TABLE, RSQRT_TABLE
from ..functions import FUNCTIONS, Function
from ..lib.pipe import Pipe, Piped, Timed, cat, mix, mux
from .products import product, product_ports


class Interpolated(Piped):
    """A block with a table of segments and a multiplier that interpolates in it.

    A word of the table is an entry of ``BASE_BITS`` and its signed distance to the next one.
    """

    BASE_BITS: int
    STEP_BITS: int

    def __init__(self, members: dict, *, shared: bool):
        self.shared = shared
        super().__init__(members | product_ports(shared, "interpolate"))

    def interpolate_in(self, pipe: Pipe, tables, address: Timed, rest: Timed) -> Timed:
        """A value between entry ``address`` of all tables in a row and the next one of its table.

        rest: the fraction of the way there; the result has as many bits more, and half of their
        largest value is added: without them it is rounded.
        """
        segments = [int(a) | int(b - a) % (1 << self.STEP_BITS) << self.BASE_BITS
                    for table in tables for a, b in zip(table, table[1:], strict=False)]
        pipe.m.submodules.table = table = memory.Memory(
            shape=self.BASE_BITS + self.STEP_BITS, depth=len(segments), init=segments,
            attrs={"rom_block": 1})
        # A register: multipliers stand in rows of their own, too far from a block RAM's output.
        segment = pipe.read(table.read_port(), address).reg("segment")
        step = product(pipe, self, "interpolate", segment[self.BASE_BITS:].as_signed(), rest)
        half = Const(1 << len(rest) - 1, len(rest))
        return mix(lambda base, step: Cat(half, base) + step, segment[:self.BASE_BITS], step)


def _leading(flags):
    """Index of the highest of 4 flags; 0 if there is none."""
    return Cat(flags[3] | (flags[1] & ~flags[2]), flags[3] | flags[2])


def _shifted(value, index, step: int, keep: int):
    """Shift left by step * (3 - index), then keep the highest bits."""
    padded = Cat(Const(0, max(3 * step + keep - len(value), 0)), value)
    options = [padded[len(padded) - keep - step * (3 - k):][:keep] for k in range(4)]
    return Mux(index[1], Mux(index[0], options[3], options[2]),
               Mux(index[0], options[1], options[0]))


class Reciprocal(Interpolated):
    """``1/x`` or ``1/sqrt(x)``: a 17-bit mantissa and an exponent.

    Golden: :func:`meadowlark_hdl.fixed.recip` and :func:`~meadowlark_hdl.fixed.rsqrt`, bit-exact.
    Error: relative, below 2**-14.
    Timing: ``latency`` cycles, one value a cycle, never stalls.

    Both functions share the search for the leading one, one block RAM of 512 segments and the
    multiplier that interpolates. x = 0 gives a meaningless value.

    Parameters
    ----------
    shared : bool
        Its multiplier is outside, behind interpolate (:class:`.products.ProductPort`).

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

    BASE_BITS, STEP_BITS = 17, 9        # up to 65536; the steepest segment falls by 255

    def __init__(self, *, shared: bool = False):
        super().__init__({"x": In(64), "root": In(1), "t": Out(17), "k": Out(6)},
                         shared=shared)

    def stages(self, pipe: Pipe) -> None:
        x, root = pipe.inputs(self.x, self.root)
        # Normalise: groups of 16, then of 4, then single bits; each stage keeps as many bits as
        # the 19 from the leading one down can still need.
        x = x.reg("x")
        groups = cat(*(x[k:k + 4].any() for k in range(0, 64, 4))).reg("groups")

        index4 = mix(_leading, cat(*(groups[k:k + 4].any() for k in range(0, 16, 4)))).reg("index4")
        index2 = mix(_leading, mix(_shifted, groups, index4, 4, 4).reg("nibbles"))
        x16 = mix(_shifted, x, index4, 16, 34).reg("x16")
        x4 = mix(_shifted, x16, index2, 4, 22).reg("x4")
        index1 = mix(_leading, x4[18:])
        x = mix(_shifted, x4, index1, 1, 19).reg("x1")
        k = cat(index1.reg("index1"), index2.reg("index2"), index4)

        # 8 bits below the leading one and the next 10, or the parity of k, 7 bits and the next 10.
        t = self.interpolate_in(pipe, (RECIP_TABLE, RSQRT_TABLE),
                                mux(root, cat(x[11:18], k[0], 1), x[10:18]),
                                mux(root, x[1:11], x[:10]))
        pipe.give(self, t=t[10:].reg("t", 17), k=k)


def of_functions(fn: Timed, which: Callable[[Function], object]) -> Timed:
    """Whether this holds for a function."""
    return mix(lambda fn: Cat(fn == each for each, function in FUNCTIONS.items()
                              if which(function)).any(), fn)


class Share(Interpolated):
    """The share of its argument that a function lets pass, as u1.15.

    Golden: :func:`meadowlark_hdl.functions.share`, bit-exact.
    Timing: ``latency`` cycles, one value a cycle, never stalls.

    All tables lie in one block RAM, the longest first: so each begins at a multiple of its length.

    Parameters
    ----------
    shared : bool
        Its multiplier is outside, behind interpolate (:class:`.products.ProductPort`).

    Members
    -------
    fn : In(3)          The :class:`.Fn`, not NONE.
    g : In(signed(18))  11 fractional bits.
    o : Out(16)         0..32768.
    """

    BASE_BITS, STEP_BITS = 16, 11       # up to 32768; the steepest segment climbs by 512

    def __init__(self, *, shared: bool = False):
        super().__init__({"fn": In(3), "g": In(signed(18)), "o": Out(16)}, shared=shared)

    def stages(self, pipe: Pipe) -> None:
        fn, g = pipe.inputs(self.fn, self.g)
        tables = sorted({id(f.table): f.table for f in FUNCTIONS.values() if f.segments}.values(),
                        key=len, reverse=True)
        begins, depth = {}, 0
        for table in tables:
            begins[id(table)] = depth
            depth += len(table) - 1
        fine = of_functions(fn, lambda f: f.fine).reg("fine")
        base = cat(*(of_functions(fn, lambda f, k=k: begins.get(id(f.table), 0) >> k & 1)
                     for k in range(exact_log2(depth)))).reg("base")
        lengths = {n: of_functions(fn, lambda f, n=n: f.segments == n).reg(f"segments_{n}")
                   for n in sorted({f.segments for f in FUNCTIONS.values()})}

        magnitude = mux(g[-1], -g, g).reg("magnitude", 18)          # up to 2**17
        at = mux(fine, cat(Const(0, 1), magnitude), magnitude)
        beyond = cat(*(which & at[7 + exact_log2(n):].any() if n else which
                       for n, which in lengths.items())).any()
        positive = self.interpolate_in(pipe, tables, at[7:7 + len(base)] | base, at[:7])
        o = mix(lambda beyond, negative, positive: Mux(
            beyond, Mux(negative, 0, 32768), Mux(negative, 32768 - positive, positive)),
            beyond, g[-1], positive[7:].reg("positive", 16))
        pipe.give(self, o=o.reg("o", 16))
