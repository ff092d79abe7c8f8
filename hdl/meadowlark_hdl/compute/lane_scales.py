"""The scale of each lane's attention output: from its sum of probabilities."""
from amaranth.lib import memory
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import Pipe, Piped, cat, mux, reg
from .products import product, product_ports


class LaneScales(Piped):
    """``mant, shift`` of ``mant / 2**shift / sum``, a lane after the other.

    Golden: :func:`meadowlark_hdl.compute.softmax_golden.output_scale`, bit-exact.
    Timing: a scale can be read ``latency`` cycles after ``sum_valid``; one a cycle, never stalls.

    Parameters
    ----------
    config : Config
        With ``shared_products`` the multiplier is outside, behind scaled
        (:class:`.products.ProductPort`).
    root_latency : int
        Of the :class:`.Reciprocal` outside, which takes the sum in the cycle of sum_valid.

    Members
    -------
    sum_valid, sum_lane : In(1), In(range(P))
    mant, shift : In(16), In(6)     Of the SV, with a sum; the same for all that are in flight.
    t, k : In(17), In(6)            1 / sum.
    lane : In(range(P))
    scale : Out(22)                 Of that lane, in the same cycle: mant, then shift.
    """

    def __init__(self, config: Config, *, root_latency: int):
        self.config, self.root_latency = config, root_latency
        self.shared = config.shared_products
        lane = range(config.P)
        super().__init__({
            "mant": In(16), "shift": In(6), "sum_valid": In(1), "sum_lane": In(lane),
            "t": In(17), "k": In(6), "lane": In(lane), "scale": Out(22),
            **product_ports(self.shared, "scaled")})

    def stages(self, pipe: Pipe) -> None:
        valid, lane = pipe.at(0, self.sum_valid, valid=True), pipe.at(0, self.sum_lane)
        t, k = (pipe.at(self.root_latency, value) for value in (self.t, self.k))
        mant, shift = reg(16, "of_mant"), reg(6, "of_shift")
        with pipe.m.If(self.sum_valid):
            pipe.m.d.sync += [mant.eq(self.mant), shift.eq(self.shift)]
        # No clamp of t * mant / 2**16: t is at most 2**16, mant below it. Beyond 63 a shift leaves
        # nothing either way.
        down = (k + shift).reg("down")
        down = mux(down[6], 63, down[:6])
        scaled = product(pipe, self, "scaled", t, mant)
        scale = cat((scaled[16:32] + scaled[15])[:16].reg("mant"), down)

        pipe.m.submodules.scales = scales = memory.Memory(
            shape=22, depth=self.config.P, init=[], attrs={"ram_style": "distributed"})
        port, found = scales.write_port(), scales.read_port(domain="comb")
        pipe.m.d.comb += [
            port.en.eq(valid.at(scale.cycle)), port.addr.eq(lane.at(scale.cycle)),
            port.data.eq(scale.value), found.addr.eq(self.lane), self.scale.eq(found.data)]
        pipe.cycles["written"] = scale.cycle + 1
