"""Codes of blocks to weights on the grid, in logic: a pipeline that nothing stalls."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..lib.pipe import delay, reg
from ..tech.cells import GatedAdder
from .block_golden import FRAC, GRID, SUM_BITS
from .block_scales import BlockScale
from .modes import BLOCK_MODES

#: Bits of the longest code, which is signed.
CODE_BITS = max(info.bits for info in BLOCK_MODES.values())
#: What is taken from codes, in modes that take anything.
[OFFSET] = {info.offset for info in BLOCK_MODES.values() if info.offset}
#: Cycles of :func:`fixed`.
FIXED = 4


def fixed(m: Module, half, name: str):
    """Half precision -> signed fixed point of SUM_BITS, ``FIXED`` cycles later."""
    exponent = half[10:15]
    # mantissa << (exponent - 1), of which FRAC + GRID + 1 = 9 ... bits below are cut to one
    drop = 25 - GRID - FRAC - 1                     # leaves a bit to round
    shift = reg(5, f"{name}_shift")
    mantissa = reg(11, f"{name}_mantissa")
    m.d.sync += [shift.eq(Mux(exponent == 0, 0, exponent - 1)),
                 mantissa.eq(Cat(half[:10], exponent != 0))]
    width = SUM_BITS + 1
    coarse = reg(width + 7, f"{name}_coarse")     # the lowest 7 may still move up
    m.d.sync += coarse.eq((mantissa << Cat(Const(0, 3), shift[3:])) >> (drop - 1 - 7))
    fine = delay(m, shift[:3], 1, name=f"{name}_fine")
    doubled = reg(width, f"{name}_doubled")
    m.d.sync += doubled.eq((coarse << fine) >> 7)
    size = Signal(SUM_BITS)
    m.d.comb += size.eq((doubled + 1) >> 1)
    value = reg(signed(SUM_BITS), f"{name}_value")
    negative = delay(m, half[15], 3, name=f"{name}_negative")
    m.d.sync += value.eq(Mux(negative, -size, size))
    return value


class BlockGrid(wiring.Component):
    """``round(scale * (code - offset) + minimum)``, for V codes of a block.

    Codes are multiplied bit by bit, a gated adder a bit and a register between them, so there is
    no multiplier to find on a chip whose array has them all.

    Golden: :func:`meadowlark_hdl.weights.block_golden.block_weights`, bit-exact.
    Timing: ``LATENCY`` cycles, V codes a cycle; nothing stalls.

    Parameters
    ----------
    values : int
        V.

    Members
    -------
    codes : In(8 bits * V)
        As they are stored; those of 4 bits with zeros above.
    block : In(BlockScale), offset : In(1)
        Of the codes beside them; offset: ``OFFSET`` is taken from each.
    weights : Out(signed * V)
    """

    LATENCY = FIXED + 1 + CODE_BITS

    def __init__(self, *, values: int):
        self.values = values
        super().__init__({
            "codes": In(data.ArrayLayout(CODE_BITS, values)), "block": In(BlockScale),
            "offset": In(1),
            "weights": Out(data.ArrayLayout(signed(SUM_BITS - FRAC), values))})

    def elaborate(self, platform):
        m = Module()
        V = self.values
        scale, minimum = (fixed(m, getattr(self.block, name), name)
                          for name in ("scale", "minimum"))
        # Where the sum begins: minimum, or -OFFSET * scale, and half a step for the rounding.
        offset = delay(m, self.offset, FIXED, name="offset_late")
        total = reg(signed(SUM_BITS), "begin")
        # ~x is -x - 1; the 1 is added in the lowest bit, which half a step leaves free.
        m.d.sync += total.eq(Mux(offset, ~(scale << exact_log2(OFFSET)), minimum)
                             + Cat(offset, Const(0, FRAC - 2), Const(1, 1)).as_unsigned())
        # Then a bit of the codes each; the top one counts negative.
        scale = delay(m, scale, 1, name="scale_6").as_signed()
        bits = delay(m, Cat(self.codes), FIXED + 1, name="q")
        negative = reg(signed(SUM_BITS), "negative")
        totals, top = [total] * V, CODE_BITS - 1
        for k in range(CODE_BITS):
            if k == top - 1:          # so that it is there with the top bit
                m.d.sync += negative.eq(-(scale << top))
            part = negative if k == top else (scale << k)[:SUM_BITS].as_signed()
            left = CODE_BITS - k
            sums = []
            for i in range(V):
                m.submodules[f"add{k}_{i}"] = add = GatedAdder(SUM_BITS)
                m.d.comb += [add.a.eq(part), add.keep.eq(bits[left * i]), add.b.eq(totals[i])]
                s = reg(signed(SUM_BITS), f"sum{k}_{i}")
                m.d.sync += s.eq(add.o)
                sums.append(s)
            totals = sums
            scale = delay(m, scale, 1, name=f"scale_{k + 7}").as_signed()
            bits = delay(m, Cat(bits[left * i + 1:left * (i + 1)] for i in range(V)), 1,
                         name=f"q_{k + 7}")
        assert GRID + FRAC == 8         # what ``fixed`` leaves below the point
        m.d.comb += [self.weights[i].eq(t[FRAC:]) for i, t in enumerate(totals)]
        return m
