"""One pass after the other over a prompt, and then over each generated token."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from ..signatures import ModelLayout, PassLayout, RunLayout
from .planner import Planner


class Passes(wiring.Component):
    """Knows how far a run is; plans a pass, starts it, and waits for its end.

    Golden: :func:`.sequencer_golden.prompt_passes`.
    Timing: ``start`` to ``fetch_start`` ``PLAN`` cycles and those of the Planner;
    ``done`` in the cycle of ``pass_end``, but ``SETTLING`` later if nothing follows: so that a
    fault of the last cycles can arrive.

    Parameters
    ----------
    config : Config

    Members
    -------
    run, model : In(RunLayout()), In(ModelLayout)
    begin : In(1)               Pulse, at rest: the whole prompt is to be done.
    token : In(1)               Pulse, at rest: a generated token is; of a batch its tokens are,
                                each at the next position.
    drafted, drafts : In(1), In
                                Pulse, at rest, after ``token``: with so many drafts behind it.
    step : In(1)                Pulse, at rest: ``position`` moves on by one.
    start : In(1)               Pulse, at rest: a pass over what is to be done, or as much as fits.
    give_up : In(1)             The pass will not end.
    done : Out(1)               Pulse: the pass has ended or is given up.
    left : Out(1)               With ``done``: something is still to be done.
    prompt : Out(1)             The pass is of the prompt.
    position : Out(13)          Of the next token. From a pass's start on of the one behind it; if
                                ``each`` token has logits, behind its first.
    pass_ : Out(PassLayout)     Constant from ``fetch_start`` to the next start.
    fetch_start, fetch_pc : Out(1), Out(16)
                                Pulse: run the list that begins there.
    pass_end : In(1)            Pulse: all of the pass has been executed.
    """

    PLAN = 3
    SETTLING = 16

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "run": In(RunLayout()), "model": In(ModelLayout), "begin": In(1), "token": In(1),
            "drafted": In(1), "drafts": In(range(config.turns)),
            "step": In(1), "start": In(1), "give_up": In(1), "done": Out(1), "left": Out(1),
            "prompt": Out(1), "position": Out(13), "pass_": Out(PassLayout()),
            "fetch_start": Out(1), "fetch_pc": Out(16), "pass_end": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.planner = planner = Planner(self.config)
        position, remaining = Signal(13), Signal(13)
        pos0, final, behind = Signal(13), Signal(), Signal(13)
        check, each = Signal(), Signal()        # the next pass is one of drafts
        second = reg(13, "second")              # position behind the pass's first token
        settling = Countdown(m, range(self.SETTLING + 1), name="settling", last=False)
        m.d.comb += [
            planner.model.eq(self.model), planner.position.eq(position),
            planner.remaining.eq(remaining), self.position.eq(position),
            self.pass_.pos0.eq(pos0), self.pass_.final.eq(final), self.pass_.n.eq(planner.n),
            self.pass_.batch.eq(self.config.batches & self.run.batch),
            self.pass_.each.eq(each),
            behind.eq(position + 1),
            self.pass_.nb.eq(planner.nb), self.pass_.ctx.eq(planner.ctx),
            self.pass_.sub_heads.eq(planner.sub_heads),
            self.pass_.sub_blocks.eq(planner.sub_blocks)]
        with m.If(self.begin):
            m.d.sync += [position.eq(self.run.start_pos), remaining.eq(self.run.prompt),
                         self.prompt.eq(1), check.eq(0)]
        with m.If(self.token):
            m.d.sync += [remaining.eq(1), self.prompt.eq(0), check.eq(0)]
            with m.If(self.pass_.batch):
                m.d.sync += [remaining.eq(planner.n), position.eq(second)]
        with m.If(self.drafted):
            m.d.sync += [remaining.eq(1 + self.drafts), check.eq(self.drafts != 0)]
        with m.If(self.step):
            m.d.sync += position.eq(behind)
        m.d.sync += [self.fetch_start.eq(0), self.left.eq(remaining != 0)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += planner.start.eq(self.start)
                with m.If(self.start):
                    m.next = "PLAN"
            with m.State("PLAN"):
                with m.If(planner.done):
                    m.next = "SET"
            with m.State("SET"):
                m.d.sync += [
                    pos0.eq(position), each.eq(self.pass_.batch | check),
                    final.eq((planner.n == remaining) & (self.run.max_new != 0)),
                    self.fetch_pc.eq(Mux((remaining == 1) | self.pass_.batch, self.model.decode_pc,
                                         self.model.prefill_pc))]
                m.next = "START"
            with m.State("START"):
                m.d.sync += [self.fetch_start.eq(1), second.eq(behind),
                             position.eq(Mux(self.pass_.each, behind, planner.ctx)),
                             remaining.eq(remaining - planner.n)]
                m.next = "PASS"
            with m.State("PASS"):
                m.d.sync += settling.load(self.SETTLING)
                with m.If(self.pass_end & ~self.left & ~final):
                    m.next = "SETTLE"
                with m.If(self.give_up | self.pass_end & (self.left | final)):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
            with m.State("SETTLE"):
                m.d.sync += settling.step()
                with m.If(self.give_up | ~settling.some):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
