"""What becomes of the results of an instruction, as it says."""
from dataclasses import dataclass

from amaranth import Module, Mux

from ..isa import Op, Pair, Sink
from ..lib.pipe import kept
from .glu import Glu
from .rope import Rope


@dataclass(frozen=True)
class Unit:
    """What makes something of a pair of rows; that of GLU also has functions alone.

    block: does it. products: what it multiplies with shared multipliers, by its ports, in the order
    of the multipliers. How long it takes: :meth:`.VectorUnit.latency_of`.
    """
    block: type[Rope | Glu]
    products: tuple[str, ...]


UNITS = {Pair.ROPE: Unit(Rope, ("a_cos", "b_sin", "a_sin", "b_cos")),
         Pair.GLU: Unit(Glu, ("interpolate", "gated", "product"))}


class Asked:
    """What an instruction asks for, in registers: constant for as long as it matters.

    Attributes
    ----------
    embed, norm : Signal(1)     Of the operator.
    add : Signal(1)             What goes to the residual is added to it; also in NORM.
    plain, rotate, gate, resid, logit : Signal(1)
        What becomes of a requantised value: it goes to activation or scratch memory, as it is,
        rotated or through a function, which may be that of a gate; to the residual; to the sampler.
        None of them in NORM.
    alone : Signal(1)           A value is no part of a pair.
    fn : Signal(3)              With gate, the function.
    stats : Signal(1)           It takes in the sum of squares.
    scratch : Signal(1)         That memory is scratch memory.
    small : Signal(1)           Saturated to 8 bits, not 16.
    heads : Signal(1)           Lanes are heads.
    shift : Signal(6)           Of what goes to the activation memory.
    """

    def __init__(self, m: Module, instr):
        op, sink, pair, fn = instr.op, instr.sink, instr.pair, instr.fn.any()
        to_memory = (sink == Sink.ACT) | (sink == Sink.SCRATCH)
        self.embed = kept(m, "is_embed", op == Op.EMBED)
        self.add = kept(m, "adds", (op != Op.EMBED) | instr.add)
        self.norm = kept(m, "is_norm", op == Op.NORM)
        self.plain = kept(m, "is_plain", to_memory & (pair == Pair.NONE) & ~fn
                          & (op != Op.NORM))
        self.scratch = kept(m, "is_scratch", sink == Sink.SCRATCH)
        self.rotate = kept(m, "is_rotate", pair == Pair.ROPE)
        self.gate = kept(m, "is_gate", fn)
        self.alone = kept(m, "is_alone", pair == Pair.NONE)
        self.fn = kept(m, "fn", instr.fn)
        self.resid = kept(m, "is_resid", sink == Sink.RESIDUAL)
        self.stats = kept(m, "stats", instr.stats)
        self.logit = kept(m, "is_logit", sink == Sink.LOGIT)
        self.small = kept(m, "is_small", ~instr.wide)
        self.heads = kept(m, "heads", instr.heads)
        self.shift = kept(m, "shift", Mux(self.plain, 0, instr.shift))
