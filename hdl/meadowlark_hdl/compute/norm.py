"""RMSNorm of the resident tokens: four values a cycle, token after token without a gap."""
from amaranth import Array, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..signatures import Beat, ModelLayout, PassLayout
from .function import Reciprocal
from .multiplier import Multiplier
from .narrow import Narrow
from .pipeline import delay
from .residual import Residual


class Norm(wiring.Component):
    """``o = (residual / sqrt(sumsq + eps)) * gamma``, not yet shifted.

    Source: RMSNorm, arXiv:1910.07467.
    Golden: :func:`meadowlark_hdl.compute.norm_golden.rmsnorm`, bit-exact once each product has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: max(hidden/4, 1) cycles a token, tokens follow each other without a gap; the first
    values come ``FIRST`` cycles after start. Two walks over the tokens do this: the one in front
    looks up sums and starts reciprocal roots, the other reads the residual so much later that it
    meets the root of the same token.

    Parameters
    ----------
    config : Config

    Members
    -------
    start : In(1)
        One cycle; the inputs below up to ``base`` are settled by then and hold until the last
        value.
    last_only : In(1)
        Only the last token.
    last_lane, last_block : In(range(P)), In(6)
        Lane and block of the last token.
    model, pass_ : In(ModelLayout), In(PassLayout)
        hidden and eps; n.
    base : In(range(residual_values / 4))
        First residual word of the first token; looked at ``BASE_CYCLE`` cycles after start.
    sum_slot, sum : Out, In(64)
        :class:`Residual`.
    x, t, k : Out(64), In(17), In(6)
        :class:`Reciprocal` with root = 1.
    read_word, read : Out, In(4 of signed(27))
        :class:`Residual`.
    gamma_addr, gamma : Out, In(Beat)
        The gamma tile; valid ``GAMMA_LATENCY`` cycles after the address.
    tag : Out(structure)
        ``TAG_LEAD`` cycles ahead of the values: valid; lane and block of the token; word: index of
        its first value divided by 4; last: the last values of the instruction.
    o : Out(4 of signed(34))
        n x gamma, 18 x 16 bits.
    """

    SHIFT_LATENCY = 6       # of the Narrow in front
    #: From the address of a residual word to its products.
    WORD_LATENCY = Residual.READ_LATENCY + SHIFT_LATENCY + 2 * Multiplier.LATENCY + 1
    #: From a token's sum_slot to its first residual word's address.
    LEAD = Residual.SUM_LATENCY + 1 + Reciprocal.LATENCY + 1 - Residual.READ_LATENCY
    BASE_CYCLE = LEAD
    FIRST = 1 + LEAD + WORD_LATENCY
    GAMMA_LATENCY = 3       #: an address's register, the RAM, the data's register
    #: Choosing 4 of the beat takes another cycle.
    GAMMA_CYCLE = WORD_LATENCY - Multiplier.LATENCY - GAMMA_LATENCY - 1
    TAG_LEAD = 6

    def __init__(self, config: Config):
        self.config = config
        self.slots = 32 * config.P
        super().__init__({
            "start": In(1), "last_only": In(1), "last_lane": In(range(config.P)),
            "last_block": In(6), "model": In(ModelLayout), "pass_": In(PassLayout()),
            "base": In(range(config.residual_values // 4)),
            "sum_slot": Out(range(self.slots)), "sum": In(Config.SUMSQ_BITS),
            "x": Out(64), "t": In(17), "k": In(6),
            "read_word": Out(range(config.residual_values // 4)),
            "read": In(data.ArrayLayout(signed(Config.RESID_BITS), 4)),
            "gamma_addr": Out(range(config.tile_beats)), "gamma": In(Beat(config)),
            "tag": Out(data.StructLayout({"valid": 1, "lane": range(config.P), "block": 6,
                                          "word": 11, "last": 1})),
            "o": Out(data.ArrayLayout(signed(34), 4))})

    def elaborate(self, platform):
        m = Module()
        config = self.config

        def reg(shape, name):
            return Signal(shape, name=name, reset_less=True)
        words = self.model.hidden[2:]
        last_word = reg(11, "last_word")                # hidden/4 - 1
        m.d.sync += last_word.eq(words - 1)

        # In front: cycle 0 of a token is the one in which its slot is presented.
        active = Signal()
        word, slot, left = reg(11, "lead_word"), reg(range(self.slots), "slot"), reg(13, "left")
        first = Signal()
        with m.If(first):
            m.d.sync += first.eq(0)
        with m.If(self.start):
            m.d.sync += [active.eq(1), first.eq(1), word.eq(0),
                         left.eq(Mux(self.last_only, 0, self.pass_.n - 1)),
                         slot.eq(Mux(self.last_only, self.pass_.n - 1, 0))]
        with m.Elif(active):
            m.d.sync += word.eq(word + 1)
            with m.If(word == last_word):
                m.d.sync += [word.eq(0), slot.eq(slot + 1), left.eq(left - 1),
                             active.eq(left != 0), first.eq(left != 0)]
        m.d.comb += self.sum_slot.eq(slot)
        x = reg(64, "sum_eps")
        m.d.sync += x.eq(self.sum + self.model.eps)
        m.d.comb += self.x.eq(x)

        # Behind, LEAD cycles later.
        begin = delay(m, first, self.LEAD - 1, name="begin", reset=True)
        final = delay(m, first & (left == 0), self.LEAD - 1, name="final")
        reading, ending = Signal(), reg(1, "ending")
        read_word, word = reg(range(config.residual_values // 4), "read_word_0"), reg(11, "word")
        lane, next_lane = reg(range(config.P), "lane"), reg(range(config.P), "next_lane")
        block, next_block = reg(6, "block"), reg(6, "next_block")
        # base is settled long before the first token gets here; afterwards the address just counts.
        waiting = Signal()
        with m.If(self.start):
            m.d.sync += waiting.eq(1)
        with m.If(waiting):
            m.d.sync += [next_lane.eq(Mux(self.last_only, self.last_lane, 0)),
                         next_block.eq(Mux(self.last_only, self.last_block, 0))]
        with m.If(reading):
            m.d.sync += [read_word.eq(read_word + 1), word.eq(word + 1)]
        with m.If(begin):
            m.d.sync += [reading.eq(1), waiting.eq(0), word.eq(0), ending.eq(final),
                         lane.eq(next_lane), block.eq(next_block), next_lane.eq(next_lane + 1)]
            with m.If(next_lane == config.P - 1):
                m.d.sync += [next_lane.eq(0), next_block.eq(next_block + 1)]
            with m.If(waiting):
                m.d.sync += read_word.eq(self.base)
        with m.Elif(word == last_word):
            m.d.sync += reading.eq(0)
        m.d.comb += self.read_word.eq(read_word)
        at_tag = self.WORD_LATENCY - self.TAG_LEAD
        assert at_tag == self.GAMMA_CYCLE + 1
        word_asked = delay(m, word, self.GAMMA_CYCLE, name="word")
        word_later = delay(m, word_asked, 1, name="word_later")
        m.d.comb += [
            self.tag.valid.eq(delay(m, reading, at_tag, name="reading", reset=True)),
            self.tag.lane.eq(delay(m, lane, at_tag, name="lane")),
            self.tag.block.eq(delay(m, block, at_tag, name="block")),
            self.tag.word.eq(word_later),
            self.tag.last.eq(delay(m, ending & (word == last_word), at_tag, name="ending"))]

        # Gamma: W/4 words a beat.
        split = config.W.bit_length() - 3               # log2(W/4)
        m.d.comb += self.gamma_addr.eq(word_asked[split:])
        part = delay(m, word_asked[:split], self.GAMMA_LATENCY, name="part") if split else None
        gammas = [reg(signed(16), f"gamma_{k}") for k in range(4)]
        for k, gamma in enumerate(gammas):
            # INT16 values, so the upper two bits of the beat say nothing new.
            options = [self.gamma[j][:16].as_signed() for j in range(k, config.W, 4)]
            m.d.sync += gamma.eq(Array(options)[part] if part is not None else options[0])

        # The root of a token is there when its first word is.
        exponent, mantissa = reg(5, "exponent"), reg(17, "mantissa")
        with m.If(delay(m, begin, 1 + Residual.READ_LATENCY - 1, name="root", reset=True)):
            m.d.sync += [exponent.eq(self.k >> 1), mantissa.eq(self.t)]
        mantissa = delay(m, mantissa, self.SHIFT_LATENCY, name="mantissa")
        for k in range(4):
            # r * 2**16 >> exponent: 18 bits, since |r| < 2 * sqrt(sumsq)
            m.submodules[f"lead{k}"] = narrow = Narrow(
                width=Config.RESID_BITS + 16, shift_bits=5, bits=18)
            assert narrow.latency == self.SHIFT_LATENCY
            m.submodules[f"root{k}"] = root = Multiplier(dsp=config.dsp)
            m.submodules[f"gamma{k}"] = product = Multiplier(dsp=config.dsp)
            n = reg(signed(18), f"n_{k}")
            m.d.comb += [narrow.i.eq(self.read[k] << 16), narrow.shift.eq(exponent),
                         root.a.eq(narrow.o), root.b.eq(mantissa), product.a.eq(n),
                         product.b.eq(gammas[k]), self.o[k].eq(product.p)]
            m.d.sync += n.eq(root.p[16:] + root.p[15])
        return m
