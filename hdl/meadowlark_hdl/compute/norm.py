"""RMSNorm of the resident tokens: values every cycle, token after token without a gap."""
from amaranth import Array, C, Cat, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..lib.narrow import Narrow
from ..lib.pipe import Pipe, Piped, Timed, mix, reg
from ..signatures import Beat, ModelLayout, PassLayout
from .products import product, product_ports


class Norm(Piped):
    """``o = (residual / sqrt(sumsq + eps)) * gamma``, not yet shifted; or of values beside it.

    Source: RMSNorm, arXiv:1910.07467.
    Golden: :func:`meadowlark_hdl.compute.norm_golden.rmsnorm`, bit-exact once each product has gone
    through a :class:`Narrow` (which the vector unit shares between its epilogues).
    Timing: norm_width values a cycle, row_beats * W of a token; tokens
    follow each other without a gap; the first values come ``cycles["o"]`` cycles after start. Two
    walks over the tokens do this: the one in front looks up sums and starts reciprocal roots, the
    other reads the residual so much later that it meets the root of the same token.

    Parameters
    ----------
    config : Config
        norm_width is 4, or 1 if the vector unit's multipliers are shared: they are outside then,
        behind root0 and gamma0 (:class:`.products.ProductPort`).
    sum_latency, root_latency, read_latency : int
        Cycles from sum_slot to sum, from x to t and k, from read_word to read.

    Members
    -------
    start : In(1)
        One cycle; the inputs below up to ``base`` are settled by then and hold until the last
        value.
    last_only : In(1)
        Only the tokens of the last block.
    last_lane, last_block : In(range(P)), In(6)
        Lane and block of the last token.
    last_slot : In(range(32 * P))
        Token slot of the first token of that block.
    model, pass_ : In(ModelLayout), In(PassLayout)
        hidden, stride and eps; n.
    row_beats, beside : In(11), In(1)
        Values of a token, in words of W; they lie beside the residual.
    base : In(range(residual_values / 4))
        First residual word of the first token; looked at once, before the first
        read_word.
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

    GAMMA_LATENCY = 3       #: an address's register, the RAM, the data's register
    TAG_LEAD = 6            #: what the vector unit makes of a tag takes as long

    def __init__(self, config: Config, *, sum_latency: int, root_latency: int, read_latency: int):
        self.sum_latency, self.root_latency = sum_latency, root_latency
        self.read_latency = read_latency
        self.config, self.shared = config, config.shared_products
        self.width = config.norm_width
        self.slots = Config.PASS_BLOCKS * config.P
        one = self.width == 1
        super().__init__({
            "start": In(1), "last_only": In(1), "last_lane": In(range(config.P)),
            "last_block": In(6), "last_slot": In(range(self.slots)),
            "model": In(ModelLayout), "pass_": In(PassLayout()),
            "row_beats": In(11), "beside": In(1), "base": In(range(config.residual_values // 4)),
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

    def stages(self, pipe: Pipe) -> None:
        # A word is what is done in a cycle; the residual's have 4 values.
        self.inner = 0 if self.width == 4 else 2        # log2 of words in one of the residual's
        words = self.row_beats << exact_log2(self.config.W // self.width)
        last_word = reg(11 + self.inner, "last_word")   # the number of a token's last one
        pipe.m.d.sync += last_word.eq(words - 1)

        first, final = self._ahead(pipe, last_word)
        x = (pipe.at(first.cycle + self.sum_latency, self.sum) + self.model.eps).reg("sum_eps", 64)
        pipe.m.d.comb += self.x.eq(x.value)
        # The root of a token is there when its first word is.
        root = x.cycle + self.root_latency
        exponent, mantissa = reg(5, "exponent"), reg(17, "mantissa")
        with pipe.m.If(first.at(root)):
            pipe.m.d.sync += [exponent.eq(self.k >> 1), mantissa.eq(self.t)]
        exponent, mantissa = (pipe.at(root + 1, value) for value in (exponent, mantissa))
        walk = exponent.cycle - self.read_latency       # cycle of the first word's address
        tag = self._behind(pipe, first.until(walk - 1), final.until(walk - 1), last_word)

        normalised = [self._times_root(pipe, k, exponent, mantissa) for k in range(self.width)]
        gammas = self._gammas(pipe, tag["word"], normalised[0].cycle)
        products = [product(pipe, self, f"gamma{k}", n, gamma)
                    for k, (n, gamma) in enumerate(zip(normalised, gammas, strict=True))]
        pipe.cycles["o"] = done = products[0].cycle
        pipe.m.d.comb += [
            *(o.eq(value.at(done)) for o, value in zip(self.o, products, strict=True)),
            *(self.tag[name].eq(value.at(done - self.TAG_LEAD)) for name, value in tag.items())]

    def _ahead(self, pipe: Pipe, last_word) -> tuple[Timed, Timed]:
        """The walk in front: (first cycle of a token, it is the last token)."""
        m = pipe.m
        active, first = Signal(), Signal()
        word, slot, left = (reg(len(last_word), "lead_word"), reg(range(self.slots), "slot"),
                            reg(13, "left"))
        with m.If(first):
            m.d.sync += first.eq(0)
        with m.If(self.start):
            m.d.sync += [active.eq(1), first.eq(1), word.eq(0),
                         left.eq(Mux(self.last_only, self.last_lane, self.pass_.n - 1)),
                         slot.eq(Mux(self.last_only, self.last_slot, 0))]
        with m.Elif(active):
            m.d.sync += word.eq(word + 1)
            with m.If(word == last_word):
                m.d.sync += [word.eq(0), slot.eq(slot + 1), left.eq(left - 1),
                             active.eq(left != 0), first.eq(left != 0)]
        m.d.comb += self.sum_slot.eq(slot)
        return (pipe.at(1, first, name="first", valid=True),
                pipe.at(1, first & (left == 0), name="final"))

    def _behind(self, pipe: Pipe, begin: Timed, final: Timed, last_word) -> dict[str, Timed]:
        """The other walk: tag of the word that is asked for.

        begin, final: a token begins the next cycle; it is the last one.
        """
        m, config, inner = pipe.m, self.config, self.inner
        reading, ending = Signal(), reg(1, "ending")
        read_word = reg(range(config.residual_values // self.width), "read_word_0")
        word = reg(len(last_word), "word")
        lane, next_lane = reg(range(config.P), "lane"), reg(range(config.P), "next_lane")
        block, next_block = reg(6, "block"), reg(6, "next_block")
        # Where the next token begins: base is settled long before the first one gets here.
        waiting = Signal()
        origin = reg(range(config.residual_values // self.width), "origin")
        before = reg(range(config.residual_values // 4), "before")
        m.d.sync += before.eq(Mux(self.beside, self.model.hidden[2:], 0))
        with m.If(self.start):
            m.d.sync += waiting.eq(1)
        with m.If(waiting):
            m.d.sync += [next_lane.eq(0), next_block.eq(Mux(self.last_only, self.last_block, 0)),
                         origin.eq(Cat(C(0, inner), self.base + before))]
        with m.If(reading):
            m.d.sync += [read_word.eq(read_word + 1), word.eq(word + 1)]
        with m.If(begin.value):
            m.d.sync += [reading.eq(1), waiting.eq(0), word.eq(0), ending.eq(final.value),
                         lane.eq(next_lane), block.eq(next_block), next_lane.eq(next_lane + 1),
                         read_word.eq(origin), origin.eq(origin + self.model.stride[2 - inner:])]
            with m.If(next_lane == config.P - 1):
                m.d.sync += [next_lane.eq(0), next_block.eq(next_block + 1)]
        with m.Elif(word == last_word):
            m.d.sync += reading.eq(0)
        m.d.comb += self.read_word.eq(read_word[inner:])
        if inner:
            m.d.comb += self.read_element.eq(read_word[:inner])
        cycle = begin.cycle + 1
        return {"valid": pipe.at(cycle, reading, valid=True), "word": pipe.at(cycle, word),
                "lane": pipe.at(cycle, lane), "block": pipe.at(cycle, block),
                "last": pipe.at(cycle, ending & (word == last_word), name="last")}

    def _gammas(self, pipe: Pipe, word: Timed, cycle: int) -> list[Timed]:
        """Gammas of a word for a cycle: W / width words a beat, of which one is chosen."""
        split = self.config.W.bit_length() - 3 + self.inner     # log2 of that
        asked = word.until(cycle - 1 - self.GAMMA_LATENCY)
        pipe.m.d.comb += self.gamma_addr.eq(asked.value[split:])
        part = asked[:split].until(cycle - 2)
        gammas = []
        for k in range(self.width):
            # INT16 values, so the upper two bits of the beat say nothing new.
            options = [self.gamma[j][:16].as_signed() for j in range(k, self.config.W, self.width)]
            # Which ones: a register for each multiplier.
            chosen = mix(lambda part, options=options: Array(options)[part],
                         part.near(f"part_{k}"))
            gammas.append(chosen.reg(f"gamma_{k}", signed(16)))
        return gammas

    def _times_root(self, pipe: Pipe, k: int, exponent: Timed, mantissa: Timed) -> Timed:
        """Value k of a word, divided by the root; signed(18)."""
        # r * 2**16 >> exponent: 18 bits, since |r| < 2 * sqrt(sumsq)
        pipe.m.submodules[f"lead{k}"] = narrow = Narrow(
            width=Config.RESID_BITS + 16, shift_bits=5, bits=18)
        value = pipe.at(exponent.cycle, self.read[k] << 16, name=f"read_{k}")
        shifted = pipe.through(narrow, i=value, shift=exponent).o
        root = product(pipe, self, f"root{k}", shifted, mantissa)
        return (root[16:] + root[15]).reg(f"n_{k}", signed(18))
