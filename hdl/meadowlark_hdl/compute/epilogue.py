"""What becomes of the results of an instruction, as it says."""
from dataclasses import dataclass

from amaranth import Module, Mux

from ..isa import Op, Pair, Sink
from ..lib.pipe import kept
from .rope import Rope
from .swiglu import SwiGlu


@dataclass(frozen=True)
class Unit:
    """What makes something of a pair of rows.

    block: does it. products: what it multiplies with shared multipliers, by its ports, in the order
    of the multipliers. How long it takes: :meth:`.VectorUnit.latency_of`.
    """
    block: type[Rope | SwiGlu]
    products: tuple[str, ...]


UNITS = {Pair.ROPE: Unit(Rope, ("a_cos", "b_sin", "a_sin", "b_cos")),
         Pair.GLU: Unit(SwiGlu, ("interpolate", "gated", "product"))}


class Asked:
    """What an instruction asks for, in registers: constant for as long as it matters.

    Attributes
    ----------
    embed, norm : Signal(1)     Of the operator.
    add : Signal(1)             What goes to the residual is added to it; also in NORM.
    plain, rotate, gate, resid, logit : Signal(1)
        What becomes of a requantised value: it goes to activation or scratch memory, as it is,
        rotated or gated; to the residual; to the sampler. None of them in NORM.
    stats : Signal(1)           It takes in the sum of squares.
    scratch : Signal(1)         That memory is scratch memory.
    small : Signal(1)           Saturated to 8 bits, not 16.
    heads : Signal(1)           Lanes are heads.
    shift : Signal(6)           Of what goes to the activation memory.
    """

    def __init__(self, m: Module, instr):
        op, sink, pair = instr.op, instr.sink, instr.pair
        to_memory = (sink == Sink.ACT) | (sink == Sink.SCRATCH)
        self.embed = kept(m, "is_embed", op == Op.EMBED)
        self.add = kept(m, "adds", (op != Op.EMBED) | instr.add)
        self.norm = kept(m, "is_norm", op == Op.NORM)
        self.plain = kept(m, "is_plain", to_memory & (pair == Pair.NONE) & (op != Op.NORM))
        self.scratch = kept(m, "is_scratch", sink == Sink.SCRATCH)
        self.rotate = kept(m, "is_rotate", pair == Pair.ROPE)
        self.gate = kept(m, "is_gate", pair == Pair.GLU)
        self.resid = kept(m, "is_resid", sink == Sink.RESIDUAL)
        self.stats = kept(m, "stats", instr.stats)
        self.logit = kept(m, "is_logit", sink == Sink.LOGIT)
        self.small = kept(m, "is_small", ~instr.wide)
        self.heads = kept(m, "heads", instr.heads)
        self.shift = kept(m, "shift", Mux(self.plain, 0, instr.shift))
