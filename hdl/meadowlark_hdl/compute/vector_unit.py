"""Everything between the array's results and the memories: the vector unit."""
from __future__ import annotations

from amaranth import C, Module, Mux, Signal, signed
from amaranth.lib import memory
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Fn, Kind, Pair, Sink
from ..lib.collisions import NO_RW_CHECK
from ..lib.fanout import near
from ..lib.pipe import Pipe, Piped, Timed, cat, kept, mix, mux, struct
from ..lib.saturate import beyond, limit
from ..signatures import (ActWrite, Beat, LogitPort, ModelLayout, NormJob, PassLayout, ResultPort,
                          RopeWrite, ScratchWrite)
from ..sleep import napping
from .act_writer import ActWriter, Place
from .addresses import Addresses
from .epilogue import UNITS, Asked
from .function import Reciprocal
from .lane_scales import LaneScales
from .products import share
from .norm import Norm
from .requant import Requant
from .residual import Residual
from .softcap import SoftCap
from .softcap_golden import ARGUMENT_BITS


def _way(sink: Sink, pair: Pair, fn: Fn) -> str:
    """Name of the way that results take."""
    if sink in (Sink.RESIDUAL, Sink.BESIDE, Sink.LOGIT):
        return "logit" if sink == Sink.LOGIT else "residual"
    return "gate" if fn else "rotate" if pair == Pair.ROPE else "plain"


class VectorUnit(Piped):
    """Requantise, bias, RoPE, functions, residual, RMSNorm: one result of the array a cycle.

    Golden: :mod:`~meadowlark_hdl.compute.requant_golden`, ``rope_golden``, ``glu_golden``,
    ``norm_golden`` and :func:`~meadowlark_hdl.compute.softmax_golden.output_scale`, bit-exact.
    Timing: a rigid pipeline, one result a cycle in; writes leave ``latency_of`` cycles after the
    result, NORM takes row_beats * W / norm_width cycles a token after ``norm_latency`` cycles.
    Nothing stalls.

    With ``vector_products`` = 8 the requantiser has its three multipliers, addresses one, and four
    serve the operator at work: ROPE four, GLU three, SV two (1/sum and the scale of the lane),
    NORM three (root, and the two products of a value), RESIDUAL one (the square). The
    choice is a register in front of each: a cycle a product.

    A result brings along what becomes of it, and NORM has a port of its own: no instruction is
    known here. What comes back to a value later travels beside it.

    Results of a row come ``row_cycles`` or more before the next row's for the same lane
    (RESIDUAL, pairs); rows 2i and 2i+1 of a block follow each other. Rows of DRAIN start at least
    ``sum_gap`` cycles after the row of SUM. Results for residual and sampler of tokens
    that the pass does not have (lanes beyond n) are dropped; with ``heads`` so are those of unused
    lanes. y is even for ROPE, and a multiple of W for NORM.

    Parameters
    ----------
    config : Config
        ``vector_products`` multipliers whatever its size.
    sleep : bool
        What only some instructions use stands still in the others, see :mod:`..sleep`; the clock
        domains are ``DOMAINS``.

    Members
    -------
    model, pass_ : In(ModelLayout), In(PassLayout)
        Stable from two cycles before the first result, or norm_start, until busy has fallen.
    r : In(ResultPort)
        A result that takes another way (:meth:`latency_of`) than those before, or is a sum of
        another SV, waits until busy has fallen. None comes while there is a NORM.
    norm_job : In(NormJob)
        Stable from a cycle before norm_start until norm_done.
    act, scratch : Out(ActWrite), Out(ScratchWrite)
    rope : In(RopeWrite)
        Readable two cycles later; does not make the unit busy.
    logit : Out(LogitPort)
    norm_start : In(1)
        One cycle; the gamma tile is there.
    norm_done : Out(1)
        One cycle, with the last write of the NORM.
    gamma_addr, gamma : Out, In(Beat)
        Gamma tile, valid ``Norm.GAMMA_LATENCY`` cycles after the address.
    busy : Out(1)
        High from the cycle of a result or norm_start through that of the last write.
    clear : In(1)
        Sets saturations to 0.
    saturations : Out(32)
        Values that were saturated on their way to activation or scratch memory, of existing tokens
        only; wraps around.
    """

    DOMAINS = ("residual", "reciprocal", "norm", "rotate", "gate")

    def latency_of(self, sink: Sink, pair: Pair = Pair.NONE, fn: Fn = Fn.NONE) -> int:
        """Cycles from a result to its effect (RESIDUAL: until the sum of squares is written)."""
        return self.cycles[_way(sink, pair, fn)]

    @property
    def sum_gap(self) -> int:
        """Cycles from a row of SUM to the first row of DRAIN: its scale is there."""
        return self.cycles["scale"]

    @property
    def norm_latency(self) -> int:
        """Cycles from norm_start to the first write."""
        return self.cycles["norm"]

    def __init__(self, config: Config, *, sleep: bool = False):
        self.config, self.sleep = config, sleep
        super().__init__({
            "model": In(ModelLayout), "pass_": In(PassLayout()), "norm_job": In(NormJob()),
            "r": In(ResultPort(config)), "act": Out(ActWrite(config)),
            "scratch": Out(ScratchWrite(config)),
            "rope": In(RopeWrite(config)), "logit": Out(LogitPort()),
            "norm_start": In(1), "norm_done": Out(1),
            "gamma_addr": Out(range(config.tile_beats)), "gamma": In(Beat(config)),
            "busy": Out(1), "clear": In(1), "saturations": Out(32)})

    def stages(self, pipe: Pipe) -> None:
        m, config, norming = pipe.m, self.config, kept(pipe.m, "norming", self.norm_job.lent)
        given = pipe.at(0, self.r.payload, name="given")
        come = pipe.at(0, self.r.valid, valid=True)
        asked, to = Asked(pipe, self.r.payload.to), given.to.reg("to")
        is_sum = given.kind == Kind.SUM
        valid, is_sum = (come & ~is_sum).reg("valid"), (come & is_sum).reg("is_sum")
        come = come.reg("come")
        norm, residual, reciprocal, rotate, gate, scales = self._units(pipe, asked, norming, come,
                                                                       is_sum)

        # A result, with the scale of its lane if it is drained.
        drain, lane_scale = given.kind == Kind.DRAIN, pipe.at(0, scales.scale)
        acc, lane = given.acc.reg("acc"), given.lane.reg("lane")
        m.submodules.requant = requant = Requant()
        value = pipe.through(
            requant, acc=acc, mant=mux(drain, lane_scale[:16], given.scale.mant).reg("mant"),
            shift=mux(drain, lane_scale[16:], given.scale.shift).reg("down"),
            bias=mux(drain, 0, given.scale.bias).reg("bias")).o

        # A sum of probabilities -> scale of the lane.
        root = near(m, norming, name="root")
        m.d.comb += [reciprocal.root.eq(norming),
                     reciprocal.x.eq(Mux(root, norm.x, acc.value[:32])),
                     norm.t.eq(reciprocal.t), norm.k.eq(reciprocal.k),
                     scales.t.eq(reciprocal.t), scales.k.eq(reciprocal.k),
                     scales.lane.eq(given.lane.value)]
        pipe.through(scales, sum_valid=is_sum, sum_lane=lane, mant=to.element[:16], shift=to.by)
        pipe.cycles["scale"] = is_sum.cycle + scales.latency

        # Where it goes: as late as NORM says where its values go, which take the same way.
        tag = pipe.at(value.cycle - Norm.TAG_LEAD, norm.tag, name="tag")
        tagged = pipe.at(tag.cycle, norm.tag.valid, name="tagged", valid=True)
        words = 0 if config.norm_width == 1 else 2      # log2 of values in a tag's word

        def either(name, of_result: Timed, of_norm):
            return mux(norming, of_norm, of_result.until(tag.cycle)).reg(name)
        valid, ending = either("valid", valid, tagged), (tag.last & norming).reg("ending")
        lane, block = either("lane", lane, tag.lane), either("block", to.block, tag.block)
        element = either("element", to.element, cat(C(0, words), tag.word))
        plain = either("plain", asked.plain, 1)
        rotated, gated, resid, beside, logit, glu, scratch, heads, is_drain = (
            either(name, bit, 0) for name, bit in (
                ("rotated", asked.rotate), ("gated", asked.gate), ("resid", asked.resid),
                ("beside", asked.beside), ("logit", asked.logit), ("glu", asked.glu),
                ("scratch", asked.scratch), ("heads", to.heads), ("is_drain", drain)))
        m.submodules.addresses = addresses = Addresses(config)
        m.d.comb += [addresses.norm.eq(norming), addresses.y.eq(self.norm_job.y),
                     addresses.model.eq(self.model), addresses.pass_.eq(self.pass_)]
        pairs, taken = {}, {}
        if config.lane_pairs:
            pairs["paired"] = either("paired", to.paired, 0)
            taken["paired"] = pairs["paired"] & ~is_drain
        at = pipe.through(
            addresses, lane=lane, block=block, element=element, heads=heads, to_lane=to.to_lane,
            angle=to.angle, is_drain=is_drain, is_glu=glu, is_scratch=scratch, is_resid=resid,
            is_beside=beside, valid=valid, **pairs)
        self._norm(m, norm, residual, addresses)

        # To the residual, and to the sampler.
        first, element = element == 0, element.until(value.cycle)
        pipe.through(residual, valid=at.exists & valid & resid,
                     add=either("add", given.add & ~asked.beside, 1),
                     in_order=given.kind == Kind.TOKEN, stats=to.stats, first=first,
                     word=at.resid_word, element=element[:2], slot=at.slot, value=value)
        m.d.comb += residual.norm.eq(near(m, norming, name="reads"))
        logit = (at.counts & valid & logit).reg("logit")
        row, number = element.reg("logit_row"), value.reg("logit_value")
        if config.softcap:
            number = self._capped(pipe, number, to.cap)
            logit, row = logit.until(number.cycle), row.until(number.cycle)
        m.d.comb += [self.logit.valid.eq(logit.value), self.logit.row.eq(row.value),
                     self.logit.value.eq(number.value)]

        # To activation or scratch memory, as it is or as one of a pair.
        odd, alone = element[0], asked.alone
        a, b = self._pair(pipe, gated, alone, value, lane, valid & ~odd, odd)
        angle = self._angle(pipe, at.pair, a.cycle)
        turned = pipe.through(rotate, a=a, b=b, cos=angle[:16], sin=angle[16:])
        product = pipe.through(gate, fn=to.fn, gate=a, up=b).o
        place = struct(Place(config), word=at.word, lane=at.goes_to, sub=at.sub, exists=at.exists,
                       scratch=scratch, shift=either("by", to.by, self.norm_job.shift),
                       small=~either("wide", to.wide, self.norm_job.wide), ending=ending, **taken)
        writes = valid & at.used & (plain | (rotated | gated) & (odd | alone))
        values = [pipe.at(value.cycle, Mux(norming, norm.o[k % config.norm_width], value.value),
                          name=f"plain_{k}") for k in range(max(2, config.norm_width))]
        writer = self._write(pipe, norming, place, (
            (writes & plain, values), (writes & rotated, [turned.o_a, turned.o_b]),
            (writes & gated, [product])))

        pipe.cycles |= {"residual": value.cycle + residual.latency, "logit": logit.cycle} | {
            name: at + writer.cycles["act"] for name, at in (
                ("plain", value.cycle), ("rotate", turned.o_a.cycle), ("gate", product.cycle),
                ("norm", norm.cycles["o"]))}
        self._busy(m, asked, come, pipe.cycles)

    def _capped(self, pipe: Pipe, number: Timed, factor: Timed) -> Timed:
        """A logit behind its soft cap, if it has one; a factor of 0 says that it has none."""
        pipe.m.submodules.softcap = softcap = SoftCap()
        over = mix(beyond, number, ARGUMENT_BITS)
        x = mux(over, mix(limit, number[-1], ARGUMENT_BITS), number[:ARGUMENT_BITS].as_signed())
        found = pipe.through(softcap, x=x.reg("to_cap"), factor=factor).o
        return mux(factor.any().reg("caps"), found, number).reg("capped", signed(Config.LOGIT_BITS))

    def _units(self, pipe: Pipe, asked: Asked, norming: Signal, come: Timed, is_sum: Timed):
        """Those that work for some results only, and the scales of the lanes."""
        m, config, shared = pipe.m, self.config, self.config.shared_products
        lent = self.norm_job.lent
        residual = self._lent(m, "residual", Residual(config), lent | (come & asked.resid).value)
        reciprocal = self._lent(m, "reciprocal", Reciprocal(shared=shared), lent | is_sum.value)
        norm = self._lent(m, "norm", Norm(
            config, sum_latency=Residual.SUM_LATENCY, root_latency=reciprocal.latency,
            read_latency=residual.cycles["read"]), lent)
        rotate, gate = (self._lent(m, name, UNITS[pair].block(shared=shared), (come & asks).value)
                        for name, pair, asks in (("rotate", Pair.ROPE, asked.rotate),
                                                 ("gate", Pair.GLU, asked.gate)))
        m.submodules.scales = scales = LaneScales(config, root_latency=reciprocal.latency)
        if shared:
            self._share(m, asked, norming, come, rotate=rotate, gate=gate, reciprocal=reciprocal,
                        norm=norm, residual=residual, scales=scales)
        return norm, residual, reciprocal, rotate, gate, scales

    def _lent(self, m: Module, name: str, block, awake):
        """A submodule that works for some results only, or for NORM."""
        m.submodules[name] = napping(m, block, name, awake, sleep=self.sleep, linger=64)
        return block

    def _share(self, m: Module, asked: Asked, norming: Signal, come: Timed, *, rotate, gate,
               reciprocal, norm, residual, scales) -> None:
        """Four multipliers: who uses them in ROPE, in GLU, in NORM, in all others: as the latest
        result says, and all others in flight with it."""
        turn = Signal(2, reset_less=True)
        with m.If(norming):
            m.d.sync += turn.eq(2)
        with m.Elif(come.value):
            m.d.sync += turn.eq(Mux(asked.rotate.value, 0, Mux(asked.gate.value, 1, 3)))
        users = [[getattr(rotate, name) for name in UNITS[Pair.ROPE].products],
                 [getattr(gate, name) for name in UNITS[Pair.GLU].products] + [residual.square],
                 [reciprocal.interpolate, norm.root0, norm.gamma0, residual.square],
                 [reciprocal.interpolate, scales.scaled, norm.gamma0, residual.square]]
        for k, ports in enumerate(zip(*users, strict=True)):
            share(m, f"product{k}", turn, ports)

    def _norm(self, m: Module, norm: Norm, residual: Residual, addresses: Addresses) -> None:
        """What NORM asks of the others."""
        if self.config.norm_width == 1:
            m.d.comb += residual.read_element.eq(norm.read_element)
        m.d.comb += [
            residual.read_word.eq(norm.read_word), norm.read.eq(residual.read),
            residual.sum_slot.eq(norm.sum_slot), norm.sum.eq(residual.sum),
            norm.start.eq(self.norm_start), norm.last_only.eq(self.norm_job["last"]),
            norm.last_lane.eq(addresses.last_lane), norm.last_block.eq(addresses.last_block),
            norm.last_slot.eq(addresses.last_slot),
            norm.base.eq(Mux(self.norm_job["last"], addresses.start, 0)),
            norm.beside.eq(self.norm_job.beside), norm.row_beats.eq(self.norm_job.row_beats),
            norm.model.eq(self.model), norm.pass_.eq(self.pass_), norm.gamma.eq(self.gamma),
            self.gamma_addr.eq(norm.gamma_addr)]

    def _pair(self, pipe: Pipe, gated: Timed, alone: Timed, value: Timed, lane: Timed, first: Timed,
              odd: Timed) -> tuple[Timed, Timed]:
        """Values of rows 2i and 2i + 1, saturated to 16 bits, a gate to 18; alone a gate and 1.

        first: the value is of row 2i; it is kept for its lane until row 2i + 1 comes.
        """
        wide = gated & (~odd | alone)
        over = mux(wide, mix(beyond, value, 18), mix(beyond, value, 16)).reg("over")
        wide, negative = wide.until(value.cycle).reg("wide"), value[-1].reg("negative")
        nearest = mux(wide, mix(limit, negative, 18), mix(limit, negative, 16))
        single = mux(over, nearest, value[:18].as_signed().reg("low")).reg("single")
        pipe.m.submodules.hold = hold = memory.Memory(
            shape=signed(18), depth=self.config.P, init=[], attrs={"ram_style": "distributed"})
        port, found = hold.write_port(), hold.read_port(domain="comb")
        pipe.m.d.comb += [port.addr.eq(lane.at(single.cycle)), port.data.eq(single.value),
                          port.en.eq(first.at(single.cycle))]
        found = pipe.read(found, lane.until(single.cycle))
        return mux(alone, single, found).reg("a"), mux(alone, 1, single).reg("b")

    def _angle(self, pipe: Pipe, pair: Timed, cycle: int) -> Timed:
        """cos and sin of a pair, in a cycle; they were written by an instruction of its own."""
        m = pipe.m
        m.submodules.angles = angles = memory.Memory(
            shape=32, depth=self.config.rope_pairs, init=[], attrs=NO_RW_CHECK)
        port = angles.write_port()
        writes = pipe.at(0, self.rope.valid, name="angle_valid", valid=True)
        m.d.comb += [
            port.en.eq(writes.reg("angle_valid").value),
            port.addr.eq(pipe.at(0, self.rope.addr, name="").reg("angle_addr").value),
            port.data.eq(cat(*pipe.inputs(self.rope.cos, self.rope.sin)).reg("angle_in").value)]
        return pipe.read(angles.read_port(), pair.until(cycle - 2)).reg("angle")

    def _write(self, pipe: Pipe, norming: Signal, place: Timed, ways: tuple) -> ActWriter:
        """One of three ways to activation or scratch memory, each of its own length.

        ways: whether there is a value, and the values; NORM's take the first.
        """
        m = pipe.m
        m.submodules.writer = writer = ActWriter(self.config)
        cycles = [values[0].cycle for _, values in ways]
        (plain, _), *longer = ways
        # Who writes: in a register of its own, beside what it chooses.
        of_pair, of_gate = (writes.until(cycle - 1).near(f"way_{k}").value for k, (
            cycle, (writes, _)) in enumerate(zip(cycles[1:], longer, strict=True)))

        def chosen(plain, rotated, gated):
            return Mux(of_gate, gated, Mux(of_pair, rotated, plain))
        m.d.comb += [
            writer.valid.eq(plain.value | of_pair | of_gate), writer.pair.eq(of_pair),
            writer.norm.eq(norming), writer.place.eq(chosen(*(place.at(way) for way in cycles))),
            writer.clear.eq(self.clear),
            self.saturations.eq(writer.saturations), self.norm_done.eq(writer.norm_done),
            *(sink.eq(chosen(*(values[k % len(values)].value for _, values in ways)))
              for k, sink in enumerate(writer.values)),
            *(getattr(port, name).eq(getattr(given, name))
              for port, given in ((self.act, writer.act), (self.scratch, writer.scratch))
              for name in port.signature.members)]
        return writer

    def _busy(self, m: Module, asked: Asked, come: Timed, cycles: dict[str, int]) -> None:
        """So many cycles from the latest result, whatever it is those of a write at least."""
        rotated, gated, resid, plain = (cycles[name] - 1 for name in (
            "rotate", "gate", "residual", "plain"))
        plain = Mux(asked.logit.value, max(plain, cycles["logit"] - 1), plain) if \
            self.config.softcap else plain
        left, in_norm = Signal(range(max(cycles.values()) + 1)), Signal()
        with m.If(come.value):
            m.d.sync += left.eq(Mux(asked.gate.value, gated, Mux(
                asked.rotate.value, rotated, Mux(asked.resid.value, resid, plain))))
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.norm_start):
            m.d.sync += in_norm.eq(1)
        with m.Elif(self.norm_done):
            m.d.sync += in_norm.eq(0)
        m.d.comb += self.busy.eq(self.r.valid | come.value | self.norm_start | in_norm
                                 | (left != 0))
