"""Everything between the array's results and the memories: the vector unit."""
from __future__ import annotations

from amaranth import C, Module, Mux, Signal, signed
from amaranth.lib import memory
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Fn, Op, Pair, Sink
from ..lib.collisions import NO_RW_CHECK
from ..lib.fanout import near
from ..lib.pipe import Pipe, Piped, Timed, cat, mix, mux, struct
from ..lib.saturate import beyond, limit
from ..signatures import (ActWrite, Beat, InstructionLayout, LogitPort, ModelLayout, PassLayout,
                          ResultPort, RopeWrite, ScratchWrite)
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


def _way(sink: Sink, pair: Pair, fn: Fn) -> str:
    """Name of the way that results take."""
    if sink in (Sink.RESIDUAL, Sink.LOGIT):
        return sink.name.lower()
    return "gate" if fn else "rotate" if pair == Pair.ROPE else "plain"


class VectorUnit(Piped):
    """Requantise, bias, RoPE, functions, residual, RMSNorm: one result of the array a cycle.

    Golden: :mod:`~meadowlark_hdl.compute.requant_golden`, ``rope_golden``, ``glu_golden``,
    ``norm_golden`` and :func:`~meadowlark_hdl.compute.softmax_golden.output_scale`, bit-exact.
    Timing: a rigid pipeline, one result a cycle in; writes leave ``latency_of`` cycles after the
    result, NORM takes hidden / norm_width cycles a token after ``norm_latency`` cycles. Nothing
    stalls.

    With ``vector_products`` = 8 the requantiser has its three multipliers, addresses one, and four
    serve the operator at work: ROPE four, GLU three, SV two (1/sum and the scale of the lane),
    NORM three (root, and the two products of a value), RESIDUAL one (the square). The
    choice is a register in front of each: a cycle a product.

    Results of a row come P >= 4 cycles apart from the next row's for the same lane (RESIDUAL,
    pairs); rows 2i and 2i+1 of a block follow each other. Rows of kind 2 start at least
    ``sum_gap`` cycles after the row of kind 1. Results for residual and sampler of tokens
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
    instr, model, pass_ : In(InstructionLayout), In(ModelLayout), In(PassLayout)
        Stable from the first result, or norm_start, until busy has fallen.
    r : In(ResultPort)
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
        """Cycles from a row of kind 1 to the first row of kind 2: its scale is there."""
        return self.cycles["scale"]

    @property
    def norm_latency(self) -> int:
        """Cycles from norm_start to the first write."""
        return self.cycles["norm"]

    def __init__(self, config: Config, *, sleep: bool = False):
        self.config, self.sleep = config, sleep
        super().__init__({
            "instr": In(InstructionLayout), "model": In(ModelLayout), "pass_": In(PassLayout()),
            "r": In(ResultPort(config)), "act": Out(ActWrite(config)),
            "scratch": Out(ScratchWrite(config)),
            "rope": In(RopeWrite(config)), "logit": Out(LogitPort()),
            "norm_start": In(1), "norm_done": Out(1),
            "gamma_addr": Out(range(config.tile_beats)), "gamma": In(Beat(config)),
            "busy": Out(1), "clear": In(1), "saturations": Out(32)})

    def stages(self, pipe: Pipe) -> None:
        m, config, asked = pipe.m, self.config, Asked(pipe.m, self.instr)
        shared, op = config.shared_products, self.instr.op
        residual = self._lent(m, "residual", Residual(config), (op == Op.NORM) | asked.resid)
        reciprocal = self._lent(m, "reciprocal", Reciprocal(shared=shared),
                                (op == Op.NORM) | (op == Op.SV))
        norm = self._lent(m, "norm", Norm(
            config, sum_latency=Residual.SUM_LATENCY, root_latency=reciprocal.latency,
            read_latency=residual.cycles["read"]), op == Op.NORM)
        rotate, gate = (self._lent(m, name, UNITS[pair].block(shared=shared), awake)
                        for name, pair, awake in (("rotate", Pair.ROPE, asked.rotate),
                                                  ("gate", Pair.GLU, asked.gate)))
        m.submodules.scales = scales = LaneScales(config, root_latency=reciprocal.latency)
        if shared:
            self._share(m, asked, rotate=rotate, gate=gate, reciprocal=reciprocal, norm=norm,
                        residual=residual, scales=scales)

        # A result, with the scale of its lane if it is of kind 2.
        given = pipe.at(0, self.r.payload, name="given")
        valid = pipe.at(0, self.r.valid, valid=True)
        drain, lane_scale = given.kind == 2, pipe.at(0, scales.scale)
        is_sum = (valid & (given.kind == 1)).reg("is_sum")
        valid, is_drain = (valid & (given.kind != 1)).reg("valid"), drain.reg("is_drain")
        acc, lane, row, block = (given[name].reg(name) for name in ("acc", "lane", "row", "block"))
        m.submodules.requant = requant = Requant()
        value = pipe.through(
            requant, acc=acc, mant=mux(drain, lane_scale[:16], given.scale.mant).reg("mant"),
            shift=mux(drain, lane_scale[16:], given.scale.shift).reg("down"),
            bias=mux(drain, 0, given.scale.bias).reg("bias")).o

        # One of kind 1: sum of probabilities -> scale of the lane.
        root = near(m, asked.norm, name="root")
        m.d.comb += [reciprocal.root.eq(asked.norm),
                     reciprocal.x.eq(Mux(root, norm.x, acc.value[:32])),
                     norm.t.eq(reciprocal.t), norm.k.eq(reciprocal.k),
                     scales.t.eq(reciprocal.t), scales.k.eq(reciprocal.k),
                     scales.lane.eq(given.lane.value), scales.mant.eq(self.instr.mant),
                     scales.shift.eq(self.instr.shift)]
        pipe.through(scales, sum_valid=is_sum, sum_lane=lane)
        pipe.cycles["scale"] = is_sum.cycle + scales.latency

        # Where it goes: as late as NORM says where its values go, which take the same way.
        tag = pipe.at(value.cycle - Norm.TAG_LEAD, norm.tag, name="tag")
        words = 0 if config.norm_width == 1 else 2      # log2 of values in a tag's word
        lane = mux(asked.norm, tag.lane, lane).reg("lane")
        block = mux(asked.norm, tag.block, block).reg("block")
        row = mux(asked.norm, cat(C(0, words), tag.word), row).reg("row")
        tagged = pipe.at(tag.cycle, norm.tag.valid, name="tagged", valid=True)
        valid, ending = mux(asked.norm, tagged, valid).reg("valid"), tag.last.reg("ending")
        m.submodules.addresses = addresses = Addresses(config)
        m.d.comb += [addresses.instr.eq(self.instr), addresses.model.eq(self.model),
                     addresses.pass_.eq(self.pass_)]
        to = pipe.through(addresses, lane=lane, block=block, row=row, is_drain=is_drain,
                          valid=valid)
        self._norm(m, norm, residual, addresses)

        # To the residual, and to the sampler.
        first, row = row == 0, row.until(value.cycle)
        pipe.through(residual, valid=to.exists & valid & asked.resid, add=asked.add,
                     in_order=asked.embed, stats=asked.stats, first=first, word=to.resid_word,
                     element=row[:2], slot=to.slot, value=value)
        m.d.comb += residual.norm.eq(near(m, asked.norm, name="reads"))
        logit = (to.last & valid & asked.logit).reg("logit")
        m.d.comb += [self.logit.valid.eq(logit.value),
                     self.logit.row.eq(row.reg("logit_row").value),
                     self.logit.value.eq(value.reg("logit_value").value)]

        # To activation or scratch memory, as it is or as one of a pair.
        odd = row[0]
        a, b = self._pair(pipe, asked, value, lane, valid & ~odd, odd)
        angle = self._angle(pipe, to.pair, a.cycle)
        rotated = pipe.through(rotate, a=a, b=b, cos=angle[:16], sin=angle[16:])
        m.d.comb += gate.fn.eq(asked.fn)
        gated = pipe.through(gate, gate=a, up=b).o
        place = struct(Place(config), word=to.word, lane=to.to_lane, sub=to.sub, exists=to.exists,
                       ending=ending)
        writes = valid & to.used & mix(lambda odd: asked.plain | asked.norm
                                       | (asked.rotate | asked.gate) & (odd | asked.alone), odd)
        values = [pipe.at(value.cycle, Mux(asked.norm, norm.o[k % config.norm_width], value.value),
                          name=f"plain_{k}") for k in range(max(2, config.norm_width))]
        writer = self._write(pipe, asked, writes, place, values, [rotated.o_a, rotated.o_b], gated)

        pipe.cycles |= {"residual": value.cycle + residual.latency, "logit": logit.cycle} | {
            name: at + writer.cycles["act"] for name, at in (
                ("plain", value.cycle), ("rotate", rotated.o_a.cycle), ("gate", gated.cycle),
                ("norm", norm.cycles["o"]))}
        self._busy(m, asked, pipe.cycles)

    def _lent(self, m: Module, name: str, block, awake):
        """A submodule that works for some instructions only."""
        m.submodules[name] = napping(m, block, name, awake, sleep=self.sleep, linger=64)
        return block

    def _share(self, m: Module, asked: Asked, *, rotate, gate, reciprocal, norm, residual,
               scales) -> None:
        """Four multipliers: who uses them in ROPE, in GLU, in NORM, in all others."""
        turn = Signal(2, reset_less=True)
        m.d.sync += turn.eq(Mux(asked.rotate, 0, Mux(asked.gate, 1, Mux(asked.norm, 2, 3))))
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
            norm.start.eq(self.norm_start), norm.last_only.eq(self.instr["last"]),
            norm.last_lane.eq(addresses.last_lane), norm.last_block.eq(addresses.last_block),
            norm.last_slot.eq(addresses.last_slot),
            norm.base.eq(Mux(self.instr["last"], addresses.start, 0)),
            norm.model.eq(self.model), norm.pass_.eq(self.pass_), norm.gamma.eq(self.gamma),
            self.gamma_addr.eq(norm.gamma_addr)]

    def _pair(self, pipe: Pipe, asked: Asked, value: Timed, lane: Timed, first: Timed,
              odd: Timed) -> tuple[Timed, Timed]:
        """Values of rows 2i and 2i + 1, saturated to 16 bits, a gate to 18; alone a gate and 1.

        first: the value is of row 2i; it is kept for its lane until row 2i + 1 comes.
        """
        wide = mix(lambda odd: asked.gate & (~odd | asked.alone), odd)
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
        return mux(asked.alone, single, found).reg("a"), mux(asked.alone, 1, single).reg("b")

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

    def _write(self, pipe: Pipe, asked: Asked, writes: Timed, place: Timed, plain: list[Timed],
               rotated: list[Timed], gated: Timed) -> ActWriter:
        """One of three ways to activation or scratch memory, each of its own length."""
        m = pipe.m
        m.submodules.writer = writer = ActWriter(self.config)
        ways = plain[0].cycle, rotated[0].cycle, gated.cycle

        def chosen(plain, rotated, gated):
            return Mux(asked.gate, gated, Mux(asked.rotate, rotated, plain))
        # A longer way takes only its own writes: what a short one has done must not be found there
        # by the next instruction.
        of_pairs = (writes & (asked.rotate | asked.gate)).until(ways[1])
        m.d.comb += [
            writer.valid.eq(chosen(writes.at(ways[0]), of_pairs.value,
                                   (of_pairs & asked.gate).at(ways[2]))),
            writer.place.eq(chosen(*(place.at(way) for way in ways))),
            writer.instr.eq(self.instr), writer.clear.eq(self.clear),
            self.saturations.eq(writer.saturations), self.norm_done.eq(writer.norm_done),
            *(sink.eq(chosen(value.value, rotated[k % 2].value, gated.value))
              for k, (sink, value) in enumerate(zip(writer.values, plain, strict=True))),
            *(getattr(port, name).eq(getattr(given, name))
              for port, given in ((self.act, writer.act), (self.scratch, writer.scratch))
              for name in port.signature.members)]
        return writer

    def _busy(self, m: Module, asked: Asked, cycles: dict[str, int]) -> None:
        """So many cycles from the latest result, whatever it is those of a write at least."""
        rotated, gated, resid, plain = (cycles[name] for name in (
            "rotate", "gate", "residual", "plain"))
        left, norming = Signal(range(max(cycles.values()) + 1)), Signal()
        needed = Signal(left.shape(), reset_less=True)
        m.d.sync += needed.eq(Mux(asked.gate, gated, Mux(asked.rotate, rotated,
                                                         Mux(asked.resid, resid, plain))))
        with m.If(self.r.valid):
            m.d.sync += left.eq(needed)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.norm_start):
            m.d.sync += norming.eq(1)
        with m.Elif(self.norm_done):
            m.d.sync += norming.eq(0)
        m.d.comb += self.busy.eq(self.r.valid | self.norm_start | norming | (left != 0))
