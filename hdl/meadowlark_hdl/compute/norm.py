"""RMSNorm of the resident tokens: values every cycle, token after token without a gap."""
from amaranth import Array, C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.fanout import near
from ..signatures import Beat, ModelLayout, PassLayout
from .function import Reciprocal
from .products import product, product_latency, product_ports
from ..lib.narrow import Narrow
from ..lib.pipe import delay, reg
from .residual import Residual


class Norm(wiring.Component):
    """``o = (residual / sqrt(sumsq + eps)) * gamma``, not yet shifted.

    Source: RMSNorm, arXiv:1910.07467.
    Golden: :func:`meadowlark_hdl.compute.norm_golden.rmsnorm`, bit-exact once each product has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: norm_width values a cycle, so hidden / norm_width cycles a token (at least one); tokens
    follow each other without a gap; the first values come ``first(shared)`` cycles after start. Two
    walks over the tokens do this: the one in front looks up sums and starts reciprocal roots, the
    other reads the residual so much later that it meets the root of the same token.

    Parameters
    ----------
    config : Config
        norm_width is 4, or 1 if the vector unit's multipliers are shared: they are outside then,
        behind root0 and gamma0 (:class:`.products.ProductPort`).

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
        First residual word of the first token; looked at ``lead(shared)`` cycles after start, once.
    sum_slot, sum : Out, In(64)
        :class:`Residual`.
    x, t, k : Out(64), In(17), In(6)
        :class:`Reciprocal` with root = 1.
    read_word, read : Out, In(norm_width of signed(27))
    read_element : Out(2)
        :class:`Residual`; the latter with norm_width = 1.
    gamma_addr, gamma : Out, In(Beat)
        The gamma tile; valid ``GAMMA_LATENCY`` cycles after the address.
    tag : Out(structure)
        ``TAG_LEAD`` cycles ahead of the values: valid; lane and block of the token; word: index of
        its first value divided by norm_width; last: the last values of the instruction.
    o : Out(norm_width of signed(34))
        n x gamma, 18 x 16 bits.
    """

    SHIFT_LATENCY = 6       # of the Narrow in front
    GAMMA_LATENCY = 3       #: an address's register, the RAM, the data's register
    TAG_LEAD = 6

    @classmethod
    def read_latency(cls, shared: bool) -> int:
        """Cycles from read_word to the narrowers."""
        return Residual.READ_ONE_LATENCY if shared else Residual.READ_LATENCY

    @classmethod
    def word_latency(cls, shared: bool) -> int:
        """Cycles from the address of a residual word to its products."""
        return cls.read_latency(shared) + cls.SHIFT_LATENCY + 2 * product_latency(shared) + 1

    @classmethod
    def lead(cls, shared: bool) -> int:
        """Cycles from a token's sum_slot to its first residual word's address."""
        return (Residual.SUM_LATENCY + 1 + Reciprocal.latency(shared) + 1
                - cls.read_latency(shared))

    @classmethod
    def first(cls, shared: bool) -> int:
        """Cycles from start to the first values."""
        return 1 + cls.lead(shared) + cls.word_latency(shared)

    def __init__(self, config: Config):
        self.config, self.shared = config, config.shared_products
        self.width = config.norm_width
        self.slots = 32 * config.P
        one = self.width == 1
        super().__init__({
            "start": In(1), "last_only": In(1), "last_lane": In(range(config.P)),
            "last_block": In(6), "model": In(ModelLayout), "pass_": In(PassLayout()),
            "base": In(range(config.residual_values // 4)),
            "sum_slot": Out(range(self.slots)), "sum": In(Config.SUMSQ_BITS),
            "x": Out(64), "t": In(17), "k": In(6),
            "read_word": Out(range(config.residual_values // 4)),
            "read": In(data.ArrayLayout(signed(Config.RESID_BITS), self.width)),
            "gamma_addr": Out(range(config.tile_beats)), "gamma": In(Beat(config)),
            "tag": Out(data.StructLayout({"valid": 1, "lane": range(config.P), "block": 6,
                                          "word": 13 if one else 11, "last": 1})),
            "o": Out(data.ArrayLayout(signed(34), self.width)),
            **({"read_element": Out(2)} if one else {}),
            **product_ports(self.shared, "root0", "gamma0")})

    def elaborate(self, platform):
        m = Module()
        config, width, shared = self.config, self.width, self.shared
        lead, word_latency = self.lead(shared), self.word_latency(shared)

        # A word is what is done in a cycle; the residual's have 4 values.
        inner = 0 if width == 4 else 2                  # log2 of words in one of the residual's
        bits = 11 + inner
        words = self.model.hidden[2 - inner:]
        last_word = reg(bits, "last_word")              # hidden / width - 1
        m.d.sync += last_word.eq(words - 1)

        # In front: cycle 0 of a token is the one in which its slot is presented.
        active = Signal()
        word, slot, left = reg(bits, "lead_word"), reg(range(self.slots), "slot"), reg(13, "left")
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

        # Behind, so much later.
        begin = delay(m, first, lead - 1, name="begin", reset=True)
        final = delay(m, first & (left == 0), lead - 1, name="final")
        reading, ending = Signal(), reg(1, "ending")
        read_word = reg(range(config.residual_values // width), "read_word_0")
        word = reg(bits, "word")
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
                m.d.sync += read_word.eq(Cat(C(0, inner), self.base))
        with m.Elif(word == last_word):
            m.d.sync += reading.eq(0)
        m.d.comb += self.read_word.eq(read_word[inner:])
        if inner:
            m.d.comb += self.read_element.eq(read_word[:inner])
        at_tag = word_latency - self.TAG_LEAD
        # Choosing some of the beat of gamma takes a cycle.
        at_gamma = word_latency - product_latency(shared) - self.GAMMA_LATENCY - 1
        gamma_word = delay(m, word, at_gamma, name="word")
        word_later = delay(m, gamma_word, at_tag - at_gamma, name="tag_word")
        m.d.comb += [
            self.tag.valid.eq(delay(m, reading, at_tag, name="reading", reset=True)),
            self.tag.lane.eq(delay(m, lane, at_tag, name="lane")),
            self.tag.block.eq(delay(m, block, at_tag, name="block")),
            self.tag.word.eq(word_later),
            self.tag.last.eq(delay(m, ending & (word == last_word), at_tag, name="ending"))]

        # Gamma: W / width words a beat.
        split = config.W.bit_length() - 3 + inner       # log2 of that
        m.d.comb += self.gamma_addr.eq(gamma_word[split:])
        part = delay(m, gamma_word[:split], self.GAMMA_LATENCY - 1, name="part")
        gammas = [reg(signed(16), f"gamma_{k}") for k in range(width)]
        for k, gamma in enumerate(gammas):
            # INT16 values, so the upper two bits of the beat say nothing new.
            options = [self.gamma[j][:16].as_signed() for j in range(k, config.W, width)]
            # Which ones: a register for each multiplier.
            m.d.sync += gamma.eq(Array(options)[near(m, part, name=f"part_{k}")])

        # The root of a token is there when its first word is.
        exponent, mantissa = reg(5, "exponent"), reg(17, "mantissa")
        with m.If(delay(m, begin, 1 + self.read_latency(shared) - 1, name="root", reset=True)):
            m.d.sync += [exponent.eq(self.k >> 1), mantissa.eq(self.t)]
        mantissa = delay(m, mantissa, self.SHIFT_LATENCY, name="mantissa")
        for k in range(width):
            # r * 2**16 >> exponent: 18 bits, since |r| < 2 * sqrt(sumsq)
            m.submodules[f"lead{k}"] = narrow = Narrow(
                width=Config.RESID_BITS + 16, shift_bits=5, bits=18)
            assert narrow.latency == self.SHIFT_LATENCY
            n = reg(signed(18), f"n_{k}")
            m.d.comb += [narrow.i.eq(self.read[k] << 16), narrow.shift.eq(exponent)]
            root = product(m, self, f"root{k}", narrow.o, mantissa)
            m.d.sync += n.eq(root[16:] + root[15])
            m.d.comb += self.o[k].eq(product(m, self, f"gamma{k}", n, gammas[k]))
        return m
