"""Where a result goes: from lane, block and row to words of the memories."""
from amaranth import Cat, Module, Mux
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.pipe import Pipe, Piped, Timed, kept, mix, mux
from ..lib.times import times
from ..signatures import InstructionLayout, ModelLayout, PassLayout
from ..tech.cells import Multiplier
from .epilogue import Asked


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
    instr, model, pass_ : In(InstructionLayout), In(ModelLayout), In(PassLayout)
        Constant from two cycles before the first result.
    lane, block, row, is_drain : In(range(P)), In(6), In(19), In(1)
        Of the result.
    valid : In(1)
        There is one.
    to_lane, word, sub : Out(range(P)), Out(most of act_words and scratch_bytes / 4), Out(range(W))
        Lane, word and element in it, of an activation. In scratch memory: fours of values before
        the one that it is among; sub's low two bits say which of the four.
    pair : Out(range(rope_pairs))
        Of the angles of the row's pair.
    slot, resid_word : Out(range(32 * P)), Out(range(residual_values / 4))
        Token slot, and the word of its residual.
    exists, used, last : Out(1)
        The pass has this token, or the instruction this head; a lane has a head, if lanes are
        heads; it is the last token.
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
            "instr": In(InstructionLayout), "model": In(ModelLayout), "pass_": In(PassLayout()),
            "lane": In(lane), "block": In(6), "row": In(Config.ROW_BITS),
            "is_drain": In(1), "valid": In(1),
            "to_lane": Out(lane), "word": Out(range(to_words(config))),
            "sub": Out(range(config.W)), "pair": Out(range(config.rope_pairs)),
            "slot": Out(slot), "resid_word": Out(word), "exists": Out(1),
            "used": Out(1), "last": Out(1), "last_lane": Out(lane), "last_block": Out(6),
            "last_slot": Out(slot), "start": Out(word)})

    def stages(self, pipe: Pipe) -> None:
        m, asked = pipe.m, Asked(pipe.m, self.instr)
        lane, block, row, is_drain, valid = pipe.inputs(
            self.lane, self.block, self.row, self.is_drain, self.valid)
        heads, head_log2 = asked.heads, self.model.head_log2
        at = self.config.W.bit_length() - 1
        log2_words = kept(m, "log2_words", head_log2 - at)[:3]     # of a head
        last_slot, last_lane, last_block = self._last(m)
        # A row's number within its head; where it counts from the first head on, for pairs the
        # even row's.
        head_mask = kept(m, "head_mask", Cat(
            head_log2 > k for k in range(Config.MAX_HEAD_LOG2)))
        beyond = Config.ROW_BITS - Config.MAX_HEAD_LOG2
        row_mask = kept(m, "row_mask", Cat(~asked.rotate, head_mask[1:] | (~heads).replicate(7),
                                            (~heads).replicate(beyond)))

        head = (row[at:] >> log2_words)[:len(lane)].reg("head")
        offset = mux(is_drain & heads, mix(lambda x: x << log2_words << at, lane), 0).reg("offset")
        element = (mux(asked.gate & ~asked.alone, row[1:], row & row_mask).reg("row") | offset)
        element = (element + self.instr.y)[:15].reg("element")
        to_lane = mux(heads, mux(is_drain.reg("is_drain"), 0, head), lane.reg("lane")) \
            .reg("to_lane")
        in_last = (block == last_block).reg("in_last")
        is_last = (in_last & (lane == last_lane).reg("at_last")).reg("is_last")
        after = in_last & (lane > last_lane).reg("after_last")
        head_used = mux(is_drain, lane < self.instr.lanes, lane == 0).reg("head_used")
        exists = mux(heads, head_used, ~after).reg("exists")
        used = (head_used | ~heads).reg("used")

        slot, start, token_word = self._starts(pipe, asked, lane, block, valid, last_slot)
        pair = (((slot << log2_words) << at - 1) | (row & head_mask)[1:8].reg("pair")) \
            [:len(self.pair)].reg("rope_addr")
        pipe.give(self, to_lane=to_lane, sub=element[:at], pair=pair, slot=slot,
                  word=(start + mux(asked.scratch, element[2:], element[at:]))[:len(self.word)]
                  .reg("word"),
                  resid_word=(token_word + row[2:])[:len(self.resid_word)].reg("resid_word"),
                  exists=exists, used=used, last=is_last)
        m.d.comb += [self.start.eq(token_word.value), self.last_lane.eq(last_lane),
                     self.last_block.eq(last_block), self.last_slot.eq(last_slot)]

    def _last(self, m: Module):
        """Of the pass: the first token slot of its last block, lane and block of its last token."""
        last_block = kept(m, "last_block", self.pass_.nb - 1)[:6]
        last_token = kept(m, "last_token", self.pass_.n - 1)[:13]
        last_start = kept(m, "last_start", times(last_block, self.config.P))
        return last_start[:len(self.last_slot)], \
            kept(m, "last_lane", last_token - last_start)[:len(self.lane)], last_block

    def _starts(self, pipe: Pipe, asked: Asked, lane: Timed, block: Timed, valid: Timed,
                last_slot) -> tuple[Timed, Timed, Timed]:
        """Token slot; first word of its block of activations, or its first four values in scratch
        memory; first word of its residual."""
        here = mux(asked.heads, 0, mix(times, block, self.config.P) + lane)
        slot, residual_words = here.reg("slot", self.slot.shape()), self.model.hidden[2:]

        def product(name, a, b):
            pipe.m.submodules[name] = multiplier = Multiplier()
            return pipe.through(multiplier, a=a, b=b).p
        words = Mux(asked.scratch, times(self.model.token_words, self.config.W // 4),
                    self.model.block_words)
        # The choices take slot's cycle.
        if not self.config.shared_products:
            return (slot, product("start", mux(asked.scratch, here, block).reg("of"),
                                  kept(pipe.m, "words", words)),
                    product("token_start", mux(asked.norm, last_slot, slot), residual_words))
        # Only results for the residual and, before its first value, NORM use the residual's.
        of_residual = mix(lambda valid: asked.resid | asked.norm & ~valid, valid)
        of_token = mix(lambda of_residual: of_residual | asked.scratch, of_residual)
        start = product("start", mux(of_token, mux(asked.norm, last_slot, here), block).reg("of"),
                        mux(of_residual, residual_words, words).reg("words"))
        return slot, start, start
