"""Drafts of the tokens behind a text, from its own words and from a table: the rule."""
from collections.abc import Sequence

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..control.sequencer_golden import context_limit
from ..control.token_memory import TokenMemory, TokenWrite
from ..lib.pipe import reg
from ..signatures import ModelLayout, ReadPort, RunLayout
from .choice import Choice
from .context_match import ContextMatch
from .context_match_golden import LONGEST, WINDOW
from .table_lookup import LONGEST as KEPT
from .table_lookup import TableLookup


class Drafter(wiring.Component):
    """Writes drafts into the token memory, behind the text that is there.

    Golden: :func:`.drafter_golden.draft`, equal, for ``draft_most`` drafts, less where ``max_new``
    or the context ends (:func:`.run_golden.turns`). First the text's last tokens are read, for the
    table; then ContextMatch sweeps; then comes draft after draft. While the table is asked what
    the match goes on with is read. Where drafts do not pay, by :class:`.choice.Choice`, there are
    none.

    Timing: ``start`` to ``done`` :meth:`cycles`, or 1 where drafts do not pay. It is never given
    up: it ends by itself, soon.

    Parameters
    ----------
    config : Config
    window : int
        Of :class:`.context_match.ContextMatch`.

    Members
    -------
    model, run : In(ModelLayout), In(RunLayout())
    begin, accepted : In(1)     Pulses: a run begins; a draft was right.
    start : In(1)               Pulse, at rest: a text ends ...
    position : In(13)           ... here. Constant to ``done``, but that tokens behind it change.
    done : Out(1)               Pulse; from there to the next start:
    count : Out(range(P))       Drafts, at position + 1 and so on.
    idle : Out(1)               At rest; memory owes nothing.
    drafted : Out(1)            Pulse: a draft is written.
    addr, data : Out(range(context)), In(19)
                                Read port of the token memory; from ``start`` to ``done``.
    write : Out(TokenWrite)
    mem : Out(ReadPort)
    """

    HISTORY = TokenMemory.LATENCY + 1       # beside a cycle for each of the last tokens
    MATCH = 1 + ContextMatch.LATENCY + 1    # beside a cycle for each that is swept
    DRAFT = 6                               # one that needs no table
    LOOKED_UP = 4                           # one from the table, beside what the look-up takes
    END = 2

    @classmethod
    def cycles(cls, tokens: int, swept: int, drafts: int, lookups: Sequence[int],
               silent: bool) -> int:
        """From ``start`` to ``done``.

        tokens: of the text. swept: of them by ContextMatch. drafts: those for which the table was
        not asked. lookups: cycles of each look-up. silent: the last of them found nothing, and no
        match went on, so that there was no draft.
        """
        return (min(KEPT, tokens) + cls.HISTORY + cls.MATCH + swept + cls.DRAFT * drafts
                + cls.LOOKED_UP * (len(lookups) - silent) + sum(lookups) + cls.END)

    def __init__(self, config: Config, *, window: int = WINDOW):
        self.config, self.window = config, window
        super().__init__({
            "model": In(ModelLayout), "run": In(RunLayout()), "begin": In(1),
            "accepted": In(1), "start": In(1), "position": In(13),
            "done": Out(1), "count": Out(range(config.P)), "idle": Out(1), "drafted": Out(1),
            "addr": Out(range(config.context)), "data": In(Config.TOKEN_BITS),
            "write": Out(TokenWrite(config)), "mem": Out(ReadPort(config))})

    def elaborate(self, platform):
        m = Module()
        config, model = self.config, self.model
        m.submodules.match = match = ContextMatch(config, window=self.window)
        m.submodules.lookup = lookup = TableLookup(config)
        m.submodules.choice = choice = Choice()
        m.d.comb += [choice.price.eq(self.run.draft_price), choice.begin.eq(self.begin),
                     choice.asked.eq(self.start), choice.accepted.eq(self.accepted)]
        wiring.connect(m, lookup.mem, wiring.flipped(self.mem))
        place = Signal(14)                                  # of the next draft
        at, length = reg(range(config.context), "at"), reg(range(LONGEST + 1), "length")
        newest = reg(range(config.context), "newest")       # position of the text's last token
        sweeping = Signal()
        m.d.comb += [
            self.addr.eq(Mux(sweeping, match.addr, at)), match.data.eq(self.data),
            match.i.payload.eq(place), lookup.buckets.eq(model.draft_buckets),
            lookup.base.eq(model.draft_addr << exact_log2(config.bus_per_chunk))]

        # The last tokens, the newest first: what is pushed moves them on.
        tokens, pushed, push = lookup.i.payload.tokens.as_value(), Signal(19), Signal()
        kept, count = reg(len(tokens), "kept"), reg(range(KEPT + 1), "count")
        with m.If(push):
            m.d.sync += kept.eq(Cat(pushed, kept))
        m.d.comb += [tokens.eq(kept), lookup.i.payload.count.eq(count), push.eq(self.write.en)]

        # How far drafts may go: what a register says holds two cycles after a change of place.
        end, beyond, stop = reg(14, "end"), reg(14, "beyond"), Signal()
        m.d.sync += [
            end.eq(self.run.start_pos + self.run.prompt), beyond.eq(end + self.run.max_new - 1),
            stop.eq((self.count == self.run.draft_most) | (place == beyond)
                    | (place == context_limit(config)))]

        asks, asked, says = Signal(), Signal(), Signal()    # the table is, the match does
        token, same = reg(Config.TOKEN_BITS, "token"), Signal()
        found, known = Signal(), Signal()
        coming = Signal(TokenMemory.LATENCY)
        reading = Signal()
        m.d.sync += [asks.eq((model.draft_buckets != 0) & (length < model.draft_least)),
                     says.eq(length != 0), self.done.eq(0), coming.eq(Cat(reading, coming))]
        m.d.comb += [
            found.eq(asked & (lookup.o.payload.length != 0)), known.eq(found | says),
            self.write.addr.eq(place), self.write.data.eq(token), self.drafted.eq(self.write.en),
            pushed.eq(token)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(1)
                far = self.position >= KEPT
                m.d.sync += [
                    place.eq(self.position + 1), newest.eq(self.position),
                    count.eq(Mux(far, KEPT, self.position + 1)),
                    at.eq(Mux(far, self.position - (KEPT - 1), 0))]
                with m.If(self.start):
                    m.d.sync += [self.count.eq(0), self.done.eq(~choice.drafts)]
                    with m.If(choice.drafts):
                        m.next = "HISTORY"
            with m.State("HISTORY"):
                m.d.comb += reading.eq(1)
                m.d.sync += at.eq(at + 1)
                with m.If(at == newest):
                    m.next = "ARRIVING"
            with m.State("ARRIVING"):
                with m.If(~coming.any()):
                    m.next = "MATCH"
            with m.State("MATCH"):
                m.d.comb += match.i.valid.eq(1)
                m.next = "SWEEP"
            with m.State("SWEEP"):
                m.d.comb += [sweeping.eq(1), match.o.ready.eq(1)]
                m.d.sync += [at.eq(match.o.payload.at), length.eq(match.o.payload.length)]
                with m.If(match.o.valid):
                    m.next = "PLACE"
            with m.State("PLACE"):          # place and match are new, what follows from them not
                m.next = "STEP"
            with m.State("STEP"):
                m.d.comb += lookup.i.valid.eq(asks & ~stop)
                m.d.sync += asked.eq(asks)
                m.next = "READ"
                with m.If(stop | ~(asks | says)):
                    m.d.sync += self.done.eq(1)
                    m.next = "IDLE"
            with m.State("READ"):           # behind a draft that was just written
                m.next = "SAID"
            with m.State("SAID"):
                m.d.comb += lookup.o.ready.eq(asked)
                m.d.sync += [token.eq(Mux(found, lookup.o.payload.token, self.data))]
                with m.If(~asked | lookup.o.valid):
                    m.next = "SAME"
                    with m.If(~known):
                        m.d.sync += self.done.eq(1)
                        m.next = "IDLE"
            with m.State("SAME"):
                m.d.sync += same.eq(says & (token == self.data))
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += self.write.en.eq(1)
                m.d.sync += [place.eq(place + 1), self.count.eq(self.count + 1), at.eq(at + 1),
                             count.eq(count + (count != KEPT)),
                             length.eq(Mux(same, Mux(length == LONGEST, LONGEST, length + 1), 0))]
                m.next = "PLACE"
        with m.If(coming[-1]):
            m.d.comb += [push.eq(1), pushed.eq(self.data)]
        return m
