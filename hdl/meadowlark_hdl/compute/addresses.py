"""Where a result goes: from lane, block and row to words of the memories."""
from amaranth import Module, Mux
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..lib.pipe import Pipe, Piped, Timed, kept, mix, mux
from ..lib.times import times
from ..signatures import ModelLayout, PassLayout
from ..tech.cells import Multiplier


def to_words(config: Config) -> int:
    """Words of a lane's activation memory, or fours of values of scratch memory, the more."""
    return max(config.act_words, config.scratch_bytes // 4)


class Addresses(Piped):
    """Addresses and tests of a result; see docs/architecture.md for where things lie.

    Timing: ``latency`` cycles, one result a cycle, never stalls.

    Parameters
    ----------
    config : Config
        Two multipliers, or one with ``shared_products``.

    Members
    -------
    model, pass_ : In(ModelLayout), In(PassLayout)
        Constant from two cycles before the first result.
    norm, y : In(1), In(15)
        There is a NORM, and of the instruction y; constant likewise.
    lane, block, element, heads, to_lane, angle : In(range(P)), In(6), In(19), In(1), In(range(P)),
            In(7)
        Of a result, see :func:`.signatures.Destination`; of NORM's values their token's lane and
        block, and the element without y.
    is_drain, is_glu, is_scratch, is_resid, is_beside : In(1)
        It is a drain of SV; part of a GLU; goes to scratch memory; to the residual or beside it;
        beside it. All are 0, and so is heads, in NORM.
    paired : In(1)
        Only with ``config.lane_pairs``, see :func:`.signatures.Destination`.
    valid : In(1)
        There is one.
    goes_to, word, sub : Out(range(P)), Out(most of act_words and scratch_bytes / 4), Out(range(W))
        Lane, word and element in it, of an activation. In scratch memory: fours of values before
        the one that it is among; sub's low two bits say which of the four.
    pair : Out(range(rope_pairs))
        Of the angles of the row's pair.
    slot, resid_word : Out(range(32 * P)), Out(range(residual_values / 4))
        Token slot, and the word of its residual.
    exists, used, counts : Out(1)
        The pass has this token, or the instruction this head; so it is, or lanes are no heads; the
        token has logits.
    last_lane, last_block : Out(range(P)), Out(6)
        Of the pass's last token.
    last_slot : Out(range(32 * P))
        Token slot of the first token of that block.
    start : Out(range(residual_values / 4))
        NORM, before the first result: first word of the residual of the first token it takes.
    """

    def __init__(self, config: Config):
        self.config = config
        lane, word = range(config.P), range(config.residual_values // 4)
        slot = range(Config.PASS_BLOCKS * config.P)
        super().__init__({
            "model": In(ModelLayout), "pass_": In(PassLayout()), "norm": In(1), "y": In(15),
            "lane": In(lane), "block": In(6), "element": In(Config.ROW_BITS), "heads": In(1),
            "to_lane": In(lane), "angle": In(Config.MAX_HEAD_LOG2 - 1), "is_drain": In(1),
            "is_glu": In(1), "is_scratch": In(1), "is_resid": In(1), "is_beside": In(1),
            "valid": In(1), **({"paired": In(1)} if config.lane_pairs else {}),
            "goes_to": Out(lane), "word": Out(range(to_words(config))),
            "sub": Out(range(config.W)), "pair": Out(range(config.rope_pairs)),
            "slot": Out(slot), "resid_word": Out(word), "exists": Out(1),
            "used": Out(1), "counts": Out(1), "last_lane": Out(lane), "last_block": Out(6),
            "last_slot": Out(slot), "start": Out(word)})

    def stages(self, pipe: Pipe) -> None:
        m, head_log2 = pipe.m, self.model.head_log2
        lane, block, row, heads, to_lane, angle, is_drain, is_glu, is_scratch = pipe.inputs(
            self.lane, self.block, self.element, self.heads, self.to_lane, self.angle,
            self.is_drain, self.is_glu, self.is_scratch)
        at = self.config.W.bit_length() - 1
        log2_words = kept(m, "log2_words", head_log2 - at)[:3]     # of a head
        last_slot, last_lane, last_block = self._last(m)
        # A lane's queries go behind those of the lane before; heads lie one behind the other.
        behind = mix(lambda x: x << log2_words << at, lane)
        if self.config.lane_pairs:      # of a drain each lane of a head has the next element
            log2_lanes, (paired,) = exact_log2(self.config.sv_cycles), pipe.inputs(self.paired)
            behind = mux(paired & is_drain, mix(
                lambda x: (x >> log2_lanes) << log2_words << at | x[:log2_lanes], lane), behind)
        offset = mux(self.norm, self.y, mux(heads, behind, 0)).reg("offset", 15)
        element = (mux(is_glu, row[1:], row).reg("whole") + offset)[:15] \
            .reg("element")
        goes_to = mux(heads, mux(is_drain, block[:len(self.lane)], to_lane), lane).reg("to")
        in_last = (block == last_block).reg("in_last")
        after_last = lane > last_lane
        after = in_last & after_last.reg("after_last")
        counts = (in_last & mux(self.pass_.each, ~after_last, lane == last_lane).reg("of_lane")) \
            .reg("counts")
        no_head = (lane > to_lane).reg("no_head")
        there = ~mux((heads & is_drain).reg("of_head"), no_head, after)
        exists, used = there.reg("exists"), (there | ~heads).reg("used")

        slot, start, token_word = self._starts(pipe, lane, block, heads, last_slot)
        pair = (((slot << log2_words) << at - 1) | angle.reg("angle"))[:len(self.pair)] \
            .reg("rope_addr")
        pipe.give(self, goes_to=goes_to, sub=element[:at], pair=pair, slot=slot,
                  word=(start + mux(is_scratch, element[2:], element[at:]))[:len(self.word)]
                  .reg("word"),
                  resid_word=(token_word + self._in_token(pipe, row))[:len(self.resid_word)].reg(
                      "resid_word"),
                  exists=exists, used=used, counts=counts)
        m.d.comb += [self.start.eq(token_word.value), self.last_lane.eq(last_lane),
                     self.last_block.eq(last_block), self.last_slot.eq(last_slot)]

    def _in_token(self, pipe: Pipe, row: Timed) -> Timed:
        """Word of a value among those of its token: those beside the residual lie behind it."""
        is_beside, = pipe.inputs(self.is_beside)
        return (row[2:] + mux(is_beside, self.model.hidden[2:], 0)).reg("in_token")

    def _last(self, m: Module):
        """Of the pass: the first token slot of its last block, lane and block of its last token."""
        last_block = kept(m, "last_block", self.pass_.nb - 1)[:6]
        last_token = kept(m, "last_token", self.pass_.n - 1)[:13]
        last_start = kept(m, "last_start", times(last_block, self.config.P))
        return last_start[:len(self.last_slot)], \
            kept(m, "last_lane", last_token - last_start)[:len(self.lane)], last_block

    def _starts(self, pipe: Pipe, lane: Timed, block: Timed, heads: Timed, last_slot,
                ) -> tuple[Timed, Timed, Timed]:
        """Token slot; first word of its block of activations, or its first four values in scratch
        memory; first word of its residual."""
        is_scratch, is_resid, valid = pipe.inputs(self.is_scratch, self.is_resid, self.valid)
        here = mix(times, block, self.config.P) + lane
        slot, token_words = here.reg("slot", self.slot.shape()), self.model.stride[2:]

        def product(name, a, b):
            pipe.m.submodules[name] = multiplier = Multiplier()
            return pipe.through(multiplier, a=a, b=b).p
        words = mux(is_scratch, times(self.model.token_words, self.config.W // 4),
                    self.model.block_words)
        of_block = mux(heads, 0, block)         # a drain's is a lane
        # The choices take slot's cycle.
        if not self.config.shared_products:
            return (slot, product("start", mux(is_scratch, here, of_block).reg("of"),
                                  words.reg("words")),
                    product("token_start", mux(self.norm, last_slot, slot), token_words))
        # Only results for the residual and, before its first value, NORM use the residual's.
        of_residual = mix(lambda is_resid, valid: Mux(self.norm, ~valid, is_resid), is_resid, valid)
        of_token = of_residual | is_scratch
        start = product("start", mux(of_token, mux(self.norm, last_slot, here), of_block).reg("of"),
                        mux(of_residual, token_words, words).reg("words"))
        return slot, start, start
