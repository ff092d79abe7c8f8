"""Everything between the array's results and the memories: the vector unit."""
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..lib.collisions import NO_RW_CHECK
from ..config import Config
from ..lib.fanout import near
from ..lib.saturate import beyond, limit
from ..isa import Epi, Op
from ..signatures import (ActWrite, Beat, InstructionLayout, LogitPort, ModelLayout, PassLayout,
                          ResultPort, RopeWrite)
from ..sleep import napping
from .function import Reciprocal
from ..tech.cells import Multiplier
from .products import ProductPort, product_latency, share
from ..lib.narrow import Narrow
from .norm import Norm
from ..lib.pipe import delay
from .requant import Requant
from .residual import Residual
from .rope import Rope
from .swiglu import SwiGlu


class VectorUnit(wiring.Component):
    """Requantise, bias, RoPE, SwiGLU, residual, RMSNorm: one result of the array a cycle.

    Golden: :mod:`~meadowlark_hdl.compute.requant_golden`, ``rope_golden``, ``swiglu_golden``,
    ``norm_golden`` and :func:`~meadowlark_hdl.compute.softmax_golden.output_scale`, bit-exact.
    Timing: a rigid pipeline, one result a cycle in; writes leave ``latency(epi, shared)`` cycles
    after the result, NORM takes hidden / norm_width cycles a token after ``norm_latency(shared)``
    cycles. Nothing stalls.

    With ``vector_products`` = 8 the requantiser has its three multipliers, addresses one, and four
    serve the operator at work: ROPE four, SWIGLU three, SV two (1/sum and the scale of the lane),
    NORM three (root, and the two products of a value), EMBED and RESID one (the square). The
    choice is a register in front of each: a cycle a product.

    Results of a row come P >= 4 cycles apart from the next row's for the same lane (RESID, ROPE,
    SWIGLU); rows 2i and 2i+1 of a block follow each other. Rows of kind 2 start at least
    ``sum_gap(shared)`` cycles after the row of kind 1. RESID, EMBED and LOGIT results of tokens
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
    act : Out(ActWrite)
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
        Values that were saturated on their way to the activation memory, of existing tokens only;
        wraps around.
    """

    #: Result at ``r`` -> requantised value: a register, and the requantiser.
    REQUANTISED = 1 + Requant.LATENCY
    NARROW_LATENCY = 6
    #: Requantised value -> what goes into the narrower.
    PAIR = 3                                    # saturate (2 cycles), row 2i out of its memory
    #: Cycles that addresses take: ready together with the requantised value.
    ADDRESS_CYCLES = 5
    DOMAINS = ("residual", "reciprocal", "norm", "rotate", "gate")

    @classmethod
    def rope_cycle(cls, shared: bool) -> int:
        """Requantised value -> a rotated pair."""
        return cls.PAIR + Rope.latency(shared)

    @classmethod
    def swiglu_cycle(cls, shared: bool) -> int:
        """Requantised value -> a gated one."""
        return cls.PAIR + SwiGlu.latency(shared)

    @classmethod
    def sum_gap(cls, shared: bool) -> int:
        """From a row of kind 1 to the first row of kind 2: register, 1/sum, product, rounding."""
        return 1 + Reciprocal.latency(shared) + product_latency(shared) + 1 + 1

    @classmethod
    def norm_latency(cls, shared: bool) -> int:
        """From norm_start to the first write."""
        return Norm.first(shared) + 1 + cls.NARROW_LATENCY

    @classmethod
    def latency(cls, epi: Epi, shared: bool = False) -> int:
        """Cycles from a result to its effect (for RESID: until the sum of squares is written)."""
        if epi == Epi.LOGIT:
            return cls.REQUANTISED + 1
        if epi == Epi.RESID:
            return cls.REQUANTISED + Residual.latency(shared)
        source = {Epi.ROPE16: cls.rope_cycle, Epi.ROPE8: cls.rope_cycle,
                  Epi.SWIGLU: cls.swiglu_cycle}.get(epi)
        return cls.REQUANTISED + (source(shared) if source else 0) + 1 + cls.NARROW_LATENCY

    def __init__(self, config: Config, *, sleep: bool = False):
        self.config, self.sleep = config, sleep
        super().__init__({
            "instr": In(InstructionLayout), "model": In(ModelLayout), "pass_": In(PassLayout()),
            "r": In(ResultPort(config)), "act": Out(ActWrite(config)),
            "rope": In(RopeWrite(config)), "logit": Out(LogitPort()),
            "norm_start": In(1), "norm_done": Out(1),
            "gamma_addr": Out(range(config.tile_beats)), "gamma": In(Beat(config)),
            "busy": Out(1), "clear": In(1), "saturations": Out(32)})

    def elaborate(self, platform):
        m = Module()
        config, shared = self.config, self.config.shared_products
        W, P = config.W, config.P
        one = config.norm_width == 1            # value of a NORM a cycle, not 4

        def saved(value, name):
            return delay(m, value, 1, name=name)

        # What the instruction asks for, in registers: constant for as long as it matters.
        op, epi = self.instr.op, self.instr.epi

        def is_epi(*which):
            return (op == Op.LINEAR) & Cat(epi == e for e in which).any()
        is_act = saved((op == Op.SV) | is_epi(Epi.ACT16, Epi.ACT8), "is_act")
        is_rope = saved(is_epi(Epi.ROPE16, Epi.ROPE8), "is_rope")
        is_swiglu = saved(is_epi(Epi.SWIGLU), "is_swiglu")
        is_logit = saved(is_epi(Epi.LOGIT), "is_logit")
        is_embed = saved(op == Op.EMBED, "is_embed")
        is_resid = saved((op == Op.EMBED) | is_epi(Epi.RESID), "is_resid")
        is_norm = saved(op == Op.NORM, "is_norm")
        is_small = saved(is_epi(Epi.ACT8, Epi.ROPE8), "is_small")
        heads = saved(self.instr.heads, "heads")
        shift = saved(Mux(is_act, 0, self.instr.shift), "shift")
        # A row's number within its head; where it counts from the first head on, for pairs the
        # even row's.
        head_mask = saved(Cat(self.model.head_log2 > k for k in range(7)), "head_mask")
        row_mask = saved(Cat(~is_rope, head_mask[1:] | (~heads).replicate(6),
                             (~heads).replicate(11)), "row_mask")
        last_block = saved(self.pass_.nb - 1, "last_block")[:6]
        last_token = saved(self.pass_.n - 1, "last_token")[:13]
        last_lane = saved(last_token - saved(_times(last_block, P), "last_start"),
                          "last_lane")[:len(self.r.payload.lane)]

        def lent(name, block, awake):
            """A submodule that works for some instructions only."""
            m.submodules[name] = napping(m, block, name, awake, sleep=self.sleep, linger=64)
            return block
        residual = lent("residual", Residual(config), (op == Op.NORM) | is_resid)
        reciprocal = lent("reciprocal", Reciprocal(shared=shared),
                          (op == Op.NORM) | (op == Op.SV))
        norm = lent("norm", Norm(config), op == Op.NORM)

        # Cycle 1: the result, with the scale of its lane if it is of kind 2.
        m.submodules.scales = scales = memory.Memory(
            shape=22, depth=P, init=[], attrs={"ram_style": "distributed"})
        lane_scale = scales.read_port(domain="comb")
        given = self.r.payload
        drain = given.kind == 2
        lane, row, block = (saved(given[name], name) for name in ("lane", "row", "block"))
        acc, is_drain = saved(given.acc, "acc"), saved(drain, "is_drain")
        valid = delay(m, self.r.valid & (given.kind != 1), 1, name="valid", reset=True)
        m.submodules.requant = requant = Requant()
        m.d.comb += [
            lane_scale.addr.eq(given.lane), requant.acc.eq(acc),
            requant.mant.eq(saved(Mux(drain, lane_scale.data[:16], given.scale.mant), "mant")),
            requant.shift.eq(saved(Mux(drain, lane_scale.data[16:], given.scale.shift), "down")),
            requant.bias.eq(saved(Mux(drain, 0, given.scale.bias), "bias"))]

        # Kind 1: sum of probabilities -> scale of the lane. No clamp of t * mant / 2**16: t is at
        # most 2**16, mant below it. Beyond 63 a shift leaves nothing either way.
        is_sum = delay(m, self.r.valid & (given.kind == 1), 1, name="is_sum", reset=True)
        if shared:
            product = ProductPort().create()
        else:
            m.submodules.output_scale = product = Multiplier()
        m.d.comb += [reciprocal.root.eq(is_norm),
                     reciprocal.x.eq(Mux(near(m, is_norm, name="root"), norm.x, acc[:32])),
                     norm.t.eq(reciprocal.t), norm.k.eq(reciprocal.k),
                     product.a.eq(reciprocal.t), product.b.eq(self.instr.mant)]
        down = saved(reciprocal.k + self.instr.shift, "sum_down")
        down = delay(m, Mux(down[6], 63, down[:6]), product_latency(shared), name="sum_clipped")
        scales_in = scales.write_port()
        to_table = Reciprocal.latency(shared) + product_latency(shared) + 1
        assert self.sum_gap(shared) == 1 + to_table + 1
        m.d.comb += [
            scales_in.en.eq(delay(m, is_sum, to_table, name="sum_valid", reset=True)),
            scales_in.addr.eq(delay(m, lane, to_table, name="sum_lane")),
            scales_in.data.eq(Cat(saved((product.p[16:32] + product.p[15])[:16], "sum_mant"),
                                  down))]

        # Addresses, ready with the value: cycle 0 below is ADDRESS_CYCLES before that.
        early = self.REQUANTISED - 1 - self.ADDRESS_CYCLES
        lane, block, row = (delay(m, value, early - 1, name=name) for value, name in (
            (lane, "lane"), (block, "block"), (row, "row")))
        lane = saved(Mux(is_norm, norm.tag.lane, lane), "lane_0")
        block = saved(Mux(is_norm, norm.tag.block, block), "block_0")
        row = saved(Mux(is_norm, Cat(C(0, 0 if one else 2), norm.tag.word), row), "row_0")
        is_drain = delay(m, is_drain, early, name="is_drain")
        ending = saved(norm.tag.last, "ending_0")
        valid = delay(m, Mux(is_norm, norm.tag.valid,
                             delay(m, valid, early - 1, name="valid_a", reset=True)),
                      1, name="valid_0", reset=True)

        # Token slot, and the first word of its residual and of its block of activations.
        slot = Signal(range(residual.slots), reset_less=True)
        with m.If(heads):
            m.d.sync += slot.eq(0)
        with m.Else():
            m.d.sync += slot.eq(_times(block, P) + lane)
        if shared:
            # Only EMBED, RESID and, before its first value, NORM use the residual's. The choice
            # takes slot's cycle.
            m.submodules.start = block_start = token_start = Multiplier()
            of_token = is_resid | is_norm & ~valid
            m.d.comb += [
                block_start.a.eq(saved(Mux(of_token, Mux(is_norm, last_token, Mux(
                    heads, 0, _times(block, P) + lane)), block), "start_a")),
                block_start.b.eq(saved(Mux(of_token, self.model.hidden[2:],
                                           self.model.block_words), "start_b"))]
        else:
            m.submodules.block_start = block_start = Multiplier()
            m.submodules.token_start = token_start = Multiplier()
            m.d.comb += [block_start.a.eq(block), block_start.b.eq(self.model.block_words),
                         token_start.a.eq(Mux(is_norm, last_token, slot)),
                         token_start.b.eq(self.model.hidden[2:])]
        m.d.comb += norm.base.eq(Mux(self.instr["last"], token_start.p, 0))

        # Cycle 1: row within the instruction's output; which lane it goes to, whether it counts.
        row_1 = saved(Mux(is_swiglu, row[1:], row & row_mask), "row_1")
        offset = saved(Mux(heads & is_drain, lane << self.model.head_log2, 0), "offset")
        head = saved((row >> self.model.head_log2)[:len(lane)], "head")
        in_last = saved(block == last_block, "in_last")
        at_last = saved(lane == last_lane, "at_last")
        after_last = saved(lane > last_lane, "after_last")
        head_used = saved(Mux(is_drain, lane < self.instr.lanes, lane == 0), "head_used")
        pair = saved((row & head_mask)[1:7], "pair")
        # Cycle 2.
        element = saved((self.instr.y + (row_1 | offset))[:15], "element")
        to_lane = saved(Mux(heads, Mux(delay(m, is_drain, 1, name="is_drain_later"), 0, head),
                            saved(lane, "lane_1")), "to_lane")
        is_last = saved(in_last & at_last, "is_last")
        exists = saved(Mux(heads, head_used, ~(in_last & after_last)), "exists")
        used = saved(~heads | head_used, "used")
        rope_addr = saved(((slot << self.model.head_log2) >> 1 | pair)[:len(self.rope.addr)],
                          "rope_addr")
        # Cycle 4, or 5 if the multiplier is shared.
        at = W.bit_length() - 1
        word = block_start.p + delay(m, element, 1 + shared, name="element_3")[at:]
        word = saved(word[:len(self.act.addr)], "word")
        # Cycle 5: with the requantised value, or the products of the norm.
        now = self.ADDRESS_CYCLES
        resid_word = saved((token_start.p + delay(m, row[2:], 4, name="row_4"))
                           [:len(residual.word)], "resid_word")
        row_now = delay(m, row, now, name="row")
        odd = row_now[0]
        valid = delay(m, valid, now, name="valid_now", reset=True)
        is_last, exists, used, to_lane = (
            delay(m, value, now - 2, name=name) for value, name in (
                (is_last, "is_last"), (exists, "exists"), (used, "used"), (to_lane, "to_lane")))
        value = requant.o

        if one:
            m.d.comb += residual.read_element.eq(norm.read_element)
        m.d.comb += [
            residual.valid.eq(valid & is_resid & exists), residual.add.eq(~is_embed),
            residual.first.eq(delay(m, row == 0, now, name="first")),
            residual.word.eq(resid_word), residual.element.eq(row_now[:2]),
            residual.slot.eq(delay(m, slot, now - 1, name="slot")), residual.value.eq(value),
            residual.norm.eq(near(m, is_norm, name="reads")), residual.read_word.eq(norm.read_word),
            norm.read.eq(residual.read), residual.sum_slot.eq(norm.sum_slot),
            norm.sum.eq(residual.sum),
            norm.start.eq(self.norm_start), norm.last_only.eq(self.instr["last"]),
            norm.last_lane.eq(last_lane), norm.last_block.eq(last_block),
            norm.model.eq(self.model), norm.pass_.eq(self.pass_), norm.gamma.eq(self.gamma),
            self.gamma_addr.eq(norm.gamma_addr),
            self.logit.valid.eq(delay(m, valid & is_logit & is_last, 1, name="logit", reset=True)),
            self.logit.row.eq(saved(row_now, "logit_row")),
            self.logit.value.eq(saved(value, "logit_value"))]

        # Pairs: saturate to 16 bits, a gate to 18; keep row 2i of each lane until row 2i+1 comes.
        wide = is_swiglu & ~odd
        over = saved(Mux(wide, beyond(value, 18), beyond(value, 16)), "over")
        wide = saved(wide, "wide")
        negative = saved(value[-1], "negative")
        nearest = Mux(wide, limit(negative, 18), limit(negative, 16))
        single = saved(Mux(over, nearest, saved(value[:18].as_signed(), "low")), "single")
        from_lane = delay(m, lane, now + 2, name="from_lane")
        m.submodules.hold = hold = memory.Memory(
            shape=signed(18), depth=P, init=[], attrs={"ram_style": "distributed"})
        hold_in, hold_out = hold.write_port(), hold.read_port(domain="comb")
        m.d.comb += [hold_in.addr.eq(from_lane), hold_in.data.eq(single),
                     hold_in.en.eq(delay(m, valid & ~odd, 2, name="hold", reset=True)),
                     hold_out.addr.eq(from_lane)]
        a, b = saved(hold_out.data, "a"), saved(single, "b")

        # RoPE: the pair's cos and sin come out of their memory into a register with the pair. They
        # were written by an instruction of its own.
        m.submodules.angles = angles = memory.Memory(
            shape=32, depth=config.rope_pairs, init=[], attrs=NO_RW_CHECK)
        angles_in, angles_out = angles.write_port(), angles.read_port()
        angle = saved(angles_out.data, "angle")
        rope = lent("rotate", Rope(shared=shared), is_rope)
        swiglu = lent("gate", SwiGlu(shared=shared), is_swiglu)
        if shared:
            # Who multiplies: in ROPE, in SWIGLU, in NORM, in all others.
            turn = saved(Mux(is_rope, 0, Mux(is_swiglu, 1, Mux(is_norm, 2, 3))), "turn")
            for k, users in enumerate((
                    (rope.a_cos, swiglu.interpolate, reciprocal.interpolate,
                     reciprocal.interpolate),
                    (rope.b_sin, swiglu.gated, norm.root0, product),
                    (rope.a_sin, swiglu.product, norm.gamma0, norm.gamma0),
                    (rope.b_cos, residual.square, residual.square, residual.square))):
                share(m, f"product{k}", turn, users)
        m.d.comb += [
            angles_in.en.eq(delay(m, self.rope.valid, 1, name="angle_valid", reset=True)),
            angles_in.addr.eq(saved(self.rope.addr, "angle_addr")),
            angles_in.data.eq(saved(Cat(self.rope.cos, self.rope.sin), "angle_in")),
            angles_out.addr.eq(delay(m, rope_addr, now - 2 + self.PAIR - 2, name="rope_addr")),
            rope.a.eq(a), rope.b.eq(b), rope.cos.eq(angle[:16]), rope.sin.eq(angle[16:]),
            swiglu.gate.eq(a), swiglu.up.eq(b)]

        # One shift, rounding and saturation for all that goes to the activation memory.
        writes = valid & used & (is_act | is_norm | (is_rope | is_swiglu) & odd)
        sub = delay(m, element[:at], now - 2, name="sub")
        where = Cat(delay(m, word, now - 4 - shared, name="word"), to_lane, sub, exists,
                    delay(m, ending, now, name="ending"))
        rope_at, swiglu_at = self.rope_cycle(shared), self.swiglu_cycle(shared)
        # A longer way takes only its own writes: what a short one has done must not be found there
        # by the next instruction.
        writes_rope = delay(m, writes & (is_rope | is_swiglu), rope_at, name="writes_rope",
                            reset=True)
        writes_swiglu = delay(m, writes_rope & is_swiglu, swiglu_at - rope_at,
                              name="writes_swiglu", reset=True)
        where_rope = delay(m, where, rope_at, name="where_rope")
        where_swiglu = delay(m, where_rope, swiglu_at - rope_at, name="where_swiglu")

        def chosen(plain, rotated, gated):
            return Mux(is_swiglu, gated, Mux(is_rope, rotated, plain))
        writes = delay(m, chosen(writes, writes_rope, writes_swiglu), 1, name="writes", reset=True)
        where = saved(chosen(where, where_rope, where_swiglu), "where")
        narrows = []
        for k in range(2 if one else 4):            # two of a pair, or four of the norm
            m.submodules[f"narrow{k}"] = narrow = Narrow(width=34, shift_bits=6, bits=16, small=8)
            assert narrow.latency == self.NARROW_LATENCY
            plain = Mux(is_norm, norm.o[0 if one else k], value)
            rotated = rope.o_b if k % 2 else rope.o_a
            m.d.comb += [narrow.i.eq(saved(chosen(plain, rotated, swiglu.o), f"source_{k}")),
                         narrow.shift.eq(shift), narrow.small.eq(is_small)]
            narrows.append(narrow)
        m.d.comb += [data.eq(narrows[k % len(narrows)].o) for k, data in enumerate(self.act.data)]
        word, to_lane, sub, exists, ending = _split(
            delay(m, where, self.NARROW_LATENCY - 1, name="where_narrow"),
            len(self.act.addr), len(lane), at, 1, 1)
        single_mask = [(sub[1:] == k >> 1) & ((sub[0] == k & 1) | is_rope) for k in range(W)]
        fours = near(m, is_norm, name="fours")
        mask = single_mask if one else [fours & (sub[2:] == k >> 2) | ~fours & bit
                                        for k, bit in enumerate(single_mask)]
        writes = delay(m, writes, self.NARROW_LATENCY, name="writes_narrow", reset=True)
        m.d.comb += [self.act.valid.eq(writes), self.act.addr.eq(saved(word, "act_addr")),
                     self.act.lane.eq(saved(to_lane, "act_lane")),
                     self.act.mask.eq(saved(Cat(mask), "act_mask")),
                     self.norm_done.eq(writes & is_norm & saved(ending, "act_ending"))]

        # Saturations: one value a write, two of a pair, all of the norm's.
        counts = writes & saved(exists, "act_exists")
        counted = Signal(3)
        m.d.sync += counted.eq(sum(
            (narrow.saturated & counts & which for narrow, which in zip(
                narrows, (1, is_rope) if one else (1, is_rope | is_norm, is_norm, is_norm),
                strict=True)), C(0, 1)))
        # No flush takes the count away: a run that was aborted has one as well.
        saturations = Signal(32, reset_less=True)
        m.d.sync += saturations.eq(saturations + counted)
        with m.If(self.clear):
            m.d.sync += saturations.eq(0)
        m.d.comb += self.saturations.eq(saturations)

        # Busy: so many cycles from the latest result.
        needed = saved(Mux(is_swiglu, self.latency(Epi.SWIGLU, shared),
                           Mux(is_rope, self.latency(Epi.ROPE16, shared),
                               Mux(is_resid, self.latency(Epi.RESID, shared),
                                   self.latency(Epi.ACT16, shared)))), "needed")
        left = Signal(range(self.latency(Epi.SWIGLU, shared) + 1))
        norming = Signal()
        with m.If(self.r.valid):
            m.d.sync += left.eq(needed)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.norm_start):
            m.d.sync += norming.eq(1)
        with m.Elif(self.norm_done):
            m.d.sync += norming.eq(0)
        m.d.comb += self.busy.eq(self.r.valid | self.norm_start | norming | (left != 0))
        return m


def _times(value, factor: int):
    """``value * factor`` by shifts, which a synthesiser does not turn into a multiplier."""
    return sum((value << k for k in range(factor.bit_length()) if factor >> k & 1), C(0, 1))


def _split(value, *widths: int):
    """Cut a value into pieces, the lowest first."""
    at = 0
    for width in widths:
        yield value[at:at + width]
        at += width
