"""Drafts from the context: where the text went on after its last tokens stood before."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..control.token_memory import TokenMemory
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from .context_match_golden import LONGEST, SHORTEST, WINDOW


def Match(config: Config) -> data.StructLayout:
    """length: 0 for no match, or 2..4 tokens. at: position of the token behind it."""
    return data.StructLayout({"at": range(config.context), "length": range(LONGEST + 1)})


class ContextMatch(wiring.Component):
    """Sweeps the token memory for the last tokens of the text, the newest token first.

    Source: see the golden model, :func:`meadowlark_hdl.draft.context_match_golden.match`; equal.
    The last four tokens come first in the same sweep, which compares them as soon as they are
    there: no match can need them sooner.

    Timing: a token a cycle. A match is there ``LATENCY`` cycles after its text was taken, and one
    more for each token swept: min(tokens - 1, window), or those from the last but one down to the
    first of a match of 4. One text at a time.

    Parameters
    ----------
    config : Config
    window : int, 1..context
        Tokens before the last one that are swept.

    Members
    -------
    i : In(stream of range(context + 1))
        Tokens of the text, 1..context. They stay as they are until its match is there.
    o : Out(stream of Match)
    addr, data : Out(range(context)), In(19)
        Read port of a :class:`.token_memory.TokenMemory`.
    """

    LATENCY = TokenMemory.LATENCY + 4       # address; the memory; a token; comparison, the best

    def __init__(self, config: Config, *, window: int = WINDOW):
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window!r}")
        self.config, self.window = config, min(window, config.context)
        super().__init__({
            "i": In(stream.Signature(unsigned(config.context.bit_length()))),
            "o": Out(stream.Signature(Match(config))),
            "addr": Out(range(config.context)), "data": In(Config.TOKEN_BITS)})

    def elaborate(self, platform):
        m = Module()
        address = reg(range(self.config.context), "address")
        here = reg(range(self.config.context), "here")          # position of what is compared
        left = Countdown(m, range(self.window + 2), name="left")
        sweep, found = Signal(), Signal()
        # Of the tokens that are on their way, and of the last of them, by cycles since the address.
        coming = Signal(TokenMemory.LATENCY + 2)
        ending = Signal.like(coming)
        m.d.sync += [coming.eq(Cat(sweep, coming)), ending.eq(Cat(sweep & left.last, ending))]
        m.d.comb += self.addr.eq(address)

        # The last tokens, as they arrive; each is compared from the next one on.
        arrived, judged = coming[-2], coming[-1]
        token = reg(Config.TOKEN_BITS, "token")                 # the memory may be far away
        last = [reg(Config.TOKEN_BITS, f"last{j}") for j in range(LONGEST)]
        which = reg(LONGEST, "which")                           # the next of them, one bit
        equal = reg(LONGEST, "equal")
        m.d.sync += [token.eq(self.data),
                     equal.eq(Cat(token == of for of in last) & ~which[0].replicate(4))]
        with m.If(arrived):
            m.d.sync += which.eq(which << 1)
            for j, of in enumerate(last):
                with m.If(which[j]):
                    m.d.sync += of.eq(token)

        # going[j]: the j + 1 tokens from the one before this on are the last of the text.
        going = Signal(LONGEST - 1)
        goes = Signal(LONGEST)
        best = self.o.payload.length
        longer = Cat(goes[n - 1] & (best < n) for n in range(SHORTEST, LONGEST + 1))
        m.d.comb += goes.eq(equal & Cat(1, going))
        behind = reg(range(self.config.context), "behind")      # first token of the best match
        m.d.comb += self.o.payload.at.eq(behind + best)
        with m.If(judged):
            m.d.sync += [going.eq(goes), here.eq(here - 1)]
            with m.If(longer.any()):
                m.d.sync += [behind.eq(here), best.eq(
                    Mux(longer[2], LONGEST, Mux(longer[1], LONGEST - 1, SHORTEST)))]
            m.d.comb += found.eq(goes[-1] | ending[-1])

        with m.FSM():
            with m.State("TEXT"):
                m.d.comb += self.i.ready.eq(1)
                first = (self.i.payload - 1)[:len(address)]
                count = Mux(self.i.payload > self.window, self.window + 1, self.i.payload)
                m.d.sync += [address.eq(first), here.eq(first), best.eq(0),
                             which.eq(1), left.load(count)]
                with m.If(self.i.valid):
                    m.next = "SWEEP"
            with m.State("SWEEP"):
                m.d.comb += sweep.eq(left.some)
                with m.If(left.some):
                    m.d.sync += [left.step(), address.eq(address - 1)]
                with m.If(found):
                    m.d.sync += [coming.eq(0), ending.eq(0)]
                    m.next = "MATCH"
            with m.State("MATCH"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "TEXT"
        return m
