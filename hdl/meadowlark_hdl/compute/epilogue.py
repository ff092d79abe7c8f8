"""What becomes of a result."""
from dataclasses import dataclass

from ..isa import Pair, Sink
from ..lib.pipe import Pipe
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
    """What a result asks for by where it goes, a cycle later.

    Parameters
    ----------
    pipe : Pipe
    destination : Destination
        Of a result in cycle 0.

    Attributes
    ----------
    plain, rotate, gate, resid, logit : Timed(1)
        What becomes of a requantised value: it goes to activation or scratch memory, as it is,
        rotated or through a function, which may be that of a gate; to the residual, or beside it;
        to the sampler.
    beside : Timed(1)           It goes beside the residual.
    alone : Timed(1)            A value is no part of a pair.
    glu : Timed(1)              It is part of a GLU.
    scratch : Timed(1)          Memory is scratch memory.
    """

    def __init__(self, pipe: Pipe, destination):
        to = pipe.at(0, destination, name="to")
        to_memory, fn = (to.sink == Sink.ACT) | (to.sink == Sink.SCRATCH), to.fn.any()
        self.plain = (to_memory & (to.pair == Pair.NONE) & ~fn).reg("is_plain")
        self.scratch = (to.sink == Sink.SCRATCH).reg("is_scratch")
        self.rotate, self.gate = (to.pair == Pair.ROPE).reg("is_rotate"), fn.reg("is_gate")
        self.alone = (to.pair == Pair.NONE).reg("is_alone")
        self.glu = (to.pair == Pair.GLU).reg("is_glu")
        self.beside = (to.sink == Sink.BESIDE).reg("is_beside")
        self.resid = ((to.sink == Sink.RESIDUAL) | (to.sink == Sink.BESIDE)).reg("is_resid")
        self.logit = (to.sink == Sink.LOGIT).reg("is_logit")
