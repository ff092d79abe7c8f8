"""What becomes of the rows of an instruction: one table, and an instruction's part of it."""
from dataclasses import dataclass
from enum import Enum, auto

from amaranth import Cat, Module, Mux

from ..isa import Epi, Op
from ..lib.pipe import kept
from .rope import Rope
from .swiglu import SwiGlu


class Sink(Enum):
    """Where values go."""
    ACT = auto()        #: activation memory
    SCRATCH = auto()    #: scratch memory
    RESIDUAL = auto()
    LOGIT = auto()      #: sampler


@dataclass(frozen=True)
class Pair:
    """What is made of rows 2i and 2i+1.

    unit: the block that does it. products: what it multiplies with shared multipliers, by its
    ports, in the order of the multipliers.
    """
    unit: type[Rope | SwiGlu]
    products: tuple[str, ...]


ROTATE = Pair(Rope, ("a_cos", "b_sin", "a_sin", "b_cos"))
GATE = Pair(SwiGlu, ("interpolate", "gated", "product"))


@dataclass(frozen=True)
class Epilogue:
    """Requantised rows -> pair (None: each for itself) -> saturated to so many bits -> sink.

    How long it takes is asked of the vector unit: :meth:`.VectorUnit.latency_of`.
    """
    sink: Sink
    pair: Pair | None = None
    bits: int = 16


EPILOGUES = {
    Epi.ACT16: Epilogue(Sink.ACT),
    Epi.SCRATCH8: Epilogue(Sink.SCRATCH, bits=8),
    Epi.ROPE16: Epilogue(Sink.ACT, ROTATE),
    Epi.ROPE8: Epilogue(Sink.SCRATCH, ROTATE, bits=8),
    Epi.SWIGLU: Epilogue(Sink.ACT, GATE),
    Epi.RESID: Epilogue(Sink.RESIDUAL),
    Epi.LOGIT: Epilogue(Sink.LOGIT),
}


class Asked:
    """What an instruction asks for, in registers: constant for as long as it matters.

    Attributes
    ----------
    embed, norm : Signal(1)     Of the operator.
    plain, rotate, gate, resid, logit : Signal(1)
        What becomes of a requantised value: it goes to activation or scratch memory, as it is,
        rotated or gated; to the residual; to the sampler. None of them in NORM.
    scratch : Signal(1)         That memory is scratch memory.
    small : Signal(1)           Saturated to 8 bits, not 16.
    heads : Signal(1)           Lanes are heads.
    shift : Signal(6)           Of what goes to the activation memory.
    """

    def __init__(self, m: Module, instr):
        op = instr.op

        def of(which):
            """LINEAR with an epilogue of which this holds."""
            return (op == Op.LINEAR) & Cat(instr.epi == epi for epi, epilogue in EPILOGUES.items()
                                           if which(epilogue)).any()
        self.embed = kept(m, "is_embed", op == Op.EMBED)
        self.norm = kept(m, "is_norm", op == Op.NORM)
        self.plain = kept(m, "is_plain", (op == Op.SV) | of(
            lambda epilogue: epilogue.sink in (Sink.ACT, Sink.SCRATCH) and not epilogue.pair))
        self.scratch = kept(m, "is_scratch", of(lambda epilogue: epilogue.sink is Sink.SCRATCH))
        self.rotate = kept(m, "is_rotate", of(lambda epilogue: epilogue.pair is ROTATE))
        self.gate = kept(m, "is_gate", of(lambda epilogue: epilogue.pair is GATE))
        self.resid = kept(m, "is_resid", (op == Op.EMBED) | of(
            lambda epilogue: epilogue.sink is Sink.RESIDUAL))
        self.logit = kept(m, "is_logit", of(lambda epilogue: epilogue.sink is Sink.LOGIT))
        self.small = kept(m, "is_small", of(lambda epilogue: epilogue.bits == 8))
        self.heads = kept(m, "heads", instr.heads)
        self.shift = kept(m, "shift", Mux(self.plain, 0, instr.shift))
