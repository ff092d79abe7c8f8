"""Soft cap of a score or a logit: ``cap * tanh(x / cap)``, by table and interpolation."""
from functools import cache

from amaranth import signed
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import Pipe, mux
from .function import Interpolated
from .products import product
from .softcap_golden import ARGUMENT_BITS, REST_BITS, TANH_FRACTION, TANH_TABLE


class SoftCap(Interpolated):
    """``o = 2 * factor * tanh(x)``, odd but for the rounding of ties, and monotonic.

    Source: Gemma 2, arXiv:2408.00118, section 2.
    Golden: :func:`.softcap_golden.softcap`, bit-exact.
    Timing: ``latency`` cycles, one value a cycle, never stalls. An adder is behind its last
    register.

    The sign is the factor's, beside the table: so the product has it, and is rounded as all are.

    Members
    -------
    x : In(signed(18))      15 fractional bits, of caps; -131072 counts as -131071.
    factor : In(16)         Half the cap, in units of o.
    o : Out(signed(18))     Above -131072.
    """

    BASE_BITS, STEP_BITS = TANH_FRACTION, 12    # below 1; the steepest segment climbs by 1024

    def __init__(self) -> None:
        super().__init__({"x": In(signed(ARGUMENT_BITS)), "factor": In(Config.CAP_BITS),
                          "o": Out(signed(ARGUMENT_BITS))}, shared=False)

    def stages(self, pipe: Pipe) -> None:
        x, factor = pipe.inputs(self.x, self.factor)
        negative, bits = x[-1], ARGUMENT_BITS - 1
        lowest = x == -1 << bits
        magnitude = mux(lowest, (1 << bits) - 1, mux(negative, -x, x)).reg("magnitude", bits)
        t = self.interpolate_in(pipe, (TANH_TABLE,), magnitude[REST_BITS:], magnitude[:REST_BITS])
        by = mux(negative, -factor, factor).reg("by", signed(Config.CAP_BITS + 1))
        scaled = product(pipe, self, "scaled", t[REST_BITS:].reg("t", TANH_FRACTION), by)
        pipe.give(self, o=(scaled[Config.CAP_BITS:].as_signed() + scaled[Config.CAP_BITS - 1])[
            :ARGUMENT_BITS].as_signed())


@cache
def cap_cycles(config: Config) -> int:
    """Cycles that a score or logit takes longer on a core that may cap it."""
    return SoftCap().latency if config.softcap else 0
