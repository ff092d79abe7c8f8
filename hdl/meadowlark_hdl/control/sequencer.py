"""Runs the model pass after pass and token after token, without the host."""
from amaranth import C, Module, Mux, Signal
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.countdown import Countdown
from ..link.protocol import Reason
from ..signatures import PassLayout, SequencerPort
from .admission import Admission
from .errors import FAULTS, Error
from .generation import Generation
from .guard import Guard
from .passes import Passes
from .token_memory import TokenMemory, TokenWrite

#: Cycles ``flush`` is high at least, so that ``idle`` may come through registers.
FLUSH_CYCLES = 16


class Sequencer(wiring.Component):
    """The token loop of docs/architecture.md, "Passes"; owns the token memory.

    A run: check the request, empty the core (``flush`` until ``idle``), then pass after pass until
    the prompt is done, then one decode pass a token, until a stop id, ``max_new``, the end of the
    context, an abort or an error. Each token is an event with the CRC of its logits; the last
    event of a run has a reason other than 0, and ``link.busy`` falls when it is taken. A pass
    begins only when the event before it has been taken; until then is link stall.

    Where each token of a pass has logits, tokens are drawn from all of them. Of a batch all are
    events. Its next pass takes them, each at the next position, until a stop id is among them or
    ``max_new`` passes have been. With drafts, which the token memory has behind the first token of
    the pass, a drawn token that is its draft is followed by the one drawn behind it, until one is
    not, or there are no more. The next pass begins with that one.

    Before a pass of a generated token, if the run asks for drafts, the Drafter writes them:
    ``draft_start`` pulses, and ``draft_done`` answers.

    A pass: the Planner says how many tokens, ``pass_`` is set, ``fetch_start`` pulses with
    ``fetch_pc``, ``pass_end`` answers. If the pass is final, ``sample_start`` pulses together with
    ``fetch_start`` and ``sample_finish`` after ``pass_end``; ``sample_done`` answers, and
    Generation says whether the run goes on.

    Abort, fault, watchdog or loss of the memory: the pass is given up; ``flush`` is high for
    16 cycles at least and until ``idle``, then the event with reason 4 follows.

    Timing: ``pass_end`` (or the event taken) to the next ``fetch_start`` ``TURN`` + ``PLAN``
    cycles, and those of the :class:`.planner.Planner`; with drafts ``DRAFT`` and those of the
    :class:`..draft.drafter.Drafter` more;
    ``pass_end`` to ``sample_finish`` ``TURN``; ``sample_done`` to the event ``EVENT``; an event
    taken to the next one of the same pass ``NEXT`` + ``EVENT``; a run's start to the flush in front
    of its first plan ``CHECK``.

    Golden: :func:`.sequencer_golden.prompt_passes`.
    Errors: see :class:`.errors.Error`. The code and, for faults, the instruction hold until the
    next start.

    Parameters
    ----------
    config : Config
    watchdog_log2 : int, 5..32
        log2 of the cycles without ``progress`` after which a run is given up.

    Members
    -------
    link : In(SequencerPort)     The host's side. Its ``prog_*`` members are for Fetch.
    token_addr : In              Read port of the token memory: position ...
    token_data : Out(19)         ... and its token, 2 cycles later.
    pass_ : Out(PassLayout)      Constant from ``fetch_start`` to the next plan.
    fetch_start : Out(1)         Pulse: run the list at ``fetch_pc``.
    fetch_pc : Out(16)
    pass_end : In(1)             Pulse: the END of the list has been executed, all is written.
    sample_start : Out(1)        Pulse: a pass with logits begins.
    sample_finish : Out(1)       Pulse: all its logits have been given.
    sample_position : Out(13)    Position of the token to come, the first one of the pass.
    sample_last : Out            Tokens that are drawn, less 1.
    sample_done : In(1)          Pulse: ``sample_token``, ``sample_crc`` are valid.
    sample_turn : Out            Which of them; 0 until ``sample_done``.
    sample_token : In(19)        Follow ``sample_turn`` by a cycle.
    sample_crc : In(32)
    draft_start : Out(1)         Pulse: a text ends at ``sample_position``.
    draft_done, drafts : In      Pulse: so many drafts have been written behind it.
    draft_addr : In              Its read of the token memory, until then ...
    draft_write : In(TokenWrite) ... and writes.
    flush : Out(1)               All units: drop everything, become idle.
    idle : In(1)                 All units are idle and no memory transfer is under way.
    ready : In(1)                The memory is ready.
    faults : In(4)               Levels or pulses, see :data:`.errors.FAULTS`; looked at in a pass.
    fault_pc : In(16)            Instruction that a fault is blamed on.
    progress : In(1)             Something moved: an instruction retired or a bus word passed.
    run_start : Out(1)           Pulse: a run begins (clears the counters).
    pass_done : Out(1)           Pulse: a pass has ended.
    first_token : Out(1)         Pulse: the first final pass (or the last one of max_new = 0)
                                 has ended.
    link_stall : Out(1)          The link does not take an event.
    accepted : Out(1)            Pulse: a token of a pass follows its draft.
    """

    CHECK, TURN, NEXT, DRAFT = Admission.LATENCY, 1, 2, 2
    PLAN, EVENT = Passes.PLAN, Generation.EVENT

    def __init__(self, config: Config, *, watchdog_log2: int = 20):
        if watchdog_log2 not in range(5, 33):
            raise ValueError(f"watchdog_log2 must be in 5..32, not {watchdog_log2!r}")
        self.config = config
        self.watchdog_log2 = watchdog_log2
        super().__init__({
            "link": In(SequencerPort(config)),
            "token_addr": In(range(config.context)), "token_data": Out(Config.TOKEN_BITS),
            "pass_": Out(PassLayout()),
            "fetch_start": Out(1), "fetch_pc": Out(16), "pass_end": In(1),
            "sample_start": Out(1), "sample_finish": Out(1), "sample_position": Out(13),
            "sample_last": Out(range(config.turns)), "sample_turn": Out(range(config.turns)),
            "sample_done": In(1), "sample_token": In(Config.TOKEN_BITS), "sample_crc": In(32),
            "draft_start": Out(1), "draft_done": In(1), "drafts": In(range(config.turns)),
            "draft_addr": In(range(config.context)), "draft_write": In(TokenWrite(config)),
            "flush": Out(1), "idle": In(1), "ready": In(1),
            "faults": In(len(FAULTS)), "fault_pc": In(16), "progress": In(1),
            "run_start": Out(1), "pass_done": Out(1), "first_token": Out(1),
            "link_stall": Out(1), "accepted": Out(1)})

    def elaborate(self, platform):
        m = Module()
        config, link = self.config, self.link
        m.submodules.admission = admission = Admission(config)
        m.submodules.passes = passes = Passes(config)
        m.submodules.generation = generation = Generation(config)
        m.submodules.guard = guard = Guard(watchdog_log2=self.watchdog_log2)
        m.submodules.tokens = tokens = TokenMemory(config)
        self._wire(m, admission, passes, generation, guard, tokens)
        more, drain = self._more(m, passes), self._drain(m)
        m.d.comb += generation.more.eq(more & passes.pass_.batch)

        def refuse(error):
            return [guard.refuse.eq(1), guard.refusal.eq(error)]
        m.d.sync += self.accepted.eq(passes.step & ~passes.pass_.batch)
        m.d.sync += [pulse.eq(0) for pulse in (
            self.draft_start, self.sample_finish, self.run_start, self.pass_done, self.first_token)]
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += [part.eq(link.start) for part in (
                    guard.clear, passes.begin, generation.begin)]
                with m.If(link.start):
                    m.d.sync += self.run_start.eq(1)
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.next = "VERDICT"
            with m.State("VERDICT"):
                # The flush also ends what a fault of the run before may still signal
                m.next = "FLUSH"
                with m.If(admission.error != Error.NONE):
                    m.d.comb += refuse(admission.error)
                    m.next = "ABORTED"
            with m.State("FLUSH"):
                m.d.comb += [self.flush.eq(1), guard.watched.eq(~drain.some)]
                with m.If(~drain.some & self.idle):
                    m.next = "PLAN"
                    with m.If(guard.give_up):
                        m.next = "ABORTED"
                with m.Elif(~drain.some & guard.late):      # nothing helps but a reset
                    m.d.comb += refuse(Error.STUCK)
                    m.next = "ABORTED"
            with m.State("ABORTED"):
                m.d.comb += [generation.end.eq(1), generation.reason.eq(Reason.ABORTED)]
                m.next = "EVENT"
            with m.State("PLAN"):
                m.d.comb += guard.running.eq(1)
                m.next = "FLUSH"
                with m.If(~guard.give_up):
                    m.d.comb += passes.start.eq(1)
                    m.next = "PASS"
            with m.State("PASS"):
                m.d.comb += [guard.running.eq(1), guard.watched.eq(1)]
                with m.If(passes.done):
                    m.next = "FLUSH"
                    with m.If(~guard.give_up):
                        m.d.sync += self.pass_done.eq(1)
                        m.next = "PLAN"
                        with m.If(~passes.left):
                            m.d.sync += self.first_token.eq(passes.prompt)
                            m.d.comb += generation.reason.eq(Reason.FILLED)
                            with m.If(passes.pass_.final):
                                m.d.sync += self.sample_finish.eq(1)
                                m.next = "SAMPLE"
                            with m.Else():
                                m.d.comb += generation.end.eq(1)
                                m.next = "EVENT"
            with m.State("SAMPLE"):
                m.d.comb += [guard.running.eq(1), guard.watched.eq(1)]
                with m.If(guard.give_up):
                    m.next = "FLUSH"
                with m.Elif(self.sample_done):
                    m.d.comb += generation.sampled.eq(1)
                    m.next = "EVENT"
            with m.State("EVENT"):
                with m.If(generation.done):
                    m.next = "PLAN"
                    with m.If(generation.last):
                        m.next = "IDLE"
                    with m.Elif(more & (passes.pass_.batch | generation.drafted)):
                        m.d.comb += passes.step.eq(1)
                        m.next = "NEXT"
                    if config.drafts:
                        with m.Elif(link.run.draft_most != 0):
                            m.d.sync += self.draft_start.eq(1)
                            m.next = "DRAFT"
            if config.drafts:
                self._draft(m, passes, guard)
            with m.State("NEXT"):           # position and turn are new, token and draft not yet
                m.d.comb += guard.running.eq(1)
                m.next = "TOKEN"
                with m.If(guard.give_up):
                    m.next = "FLUSH"
            with m.State("TOKEN"):
                m.d.comb += generation.sampled.eq(1)
                m.next = "EVENT"
        # Drafts are looked at when Fetch is done with the tokens.
        drafting = fsm.ongoing("DRAFT") if config.drafts else C(0)
        m.d.comb += [link.busy.eq(~fsm.ongoing("IDLE")), tokens.addr.eq(
            Mux(fsm.ongoing("PASS"), self.token_addr,
                Mux(drafting, self.draft_addr, passes.position)))]
        self._written(m, tokens, generation, drafting)
        return m

    def _written(self, m: Module, tokens: TokenMemory, generation: Generation,
                 drafting: ValueLike) -> None:
        """Who writes the token memory in a run."""
        m.d.comb += tokens.own.en.eq(generation.memory.en | self.draft_write.en & drafting)
        m.d.comb += [getattr(tokens.own, name).eq(
            Mux(drafting, getattr(self.draft_write, name), getattr(generation.memory, name)))
            for name in ("addr", "data")]

    def _draft(self, m: Module, passes: Passes, guard: Guard) -> None:
        """A state: the drafter is at work."""
        with m.State("DRAFT"):
            m.d.comb += [guard.running.eq(1), guard.watched.eq(1)]
            with m.If(guard.give_up):
                m.next = "FLUSH"
            with m.Elif(self.draft_done):
                m.d.comb += passes.drafted.eq(1)
                m.next = "PLAN"

    def _wire(self, m: Module, admission: Admission, passes: Passes, generation: Generation,
              guard: Guard, tokens: TokenMemory) -> None:
        """The parts, and the ports."""
        link = self.link
        wiring.connect(m, generation.events, wiring.flipped(link.events))
        m.d.comb += [part.run.eq(link.run) for part in (admission, passes, generation)]
        m.d.comb += [part.model.eq(link.model) for part in (admission, passes)]
        m.d.comb += [getattr(guard, name).eq(getattr(self, name))
                     for name in ("faults", "fault_pc", "progress", "ready")]
        m.d.comb += [
            admission.ready.eq(self.ready), guard.abort.eq(link.abort),
            passes.give_up.eq(guard.give_up), passes.pass_end.eq(self.pass_end),
            passes.token.eq(generation.done), generation.position.eq(passes.position),
            passes.drafts.eq(self.drafts),
            generation.draft.eq(tokens.data),
            generation.token.eq(self.sample_token), generation.crc.eq(self.sample_crc),
            tokens.busy.eq(link.busy), tokens.host.en.eq(link.token_en),
            tokens.host.addr.eq(link.token_addr), tokens.host.data.eq(link.token_data),
            self.token_data.eq(tokens.data),
            link.error.eq(guard.error), link.error_pc.eq(guard.error_pc),
            self.link_stall.eq(link.events.valid & ~link.events.ready),
            self.pass_.eq(passes.pass_), self.sample_position.eq(passes.position),
            self.fetch_start.eq(passes.fetch_start), self.fetch_pc.eq(passes.fetch_pc),
            self.sample_start.eq(passes.fetch_start & passes.pass_.final)]

    def _drain(self, m: Module) -> Countdown:
        """The cycles that a flush lasts at least."""
        drain = Countdown(m, range(FLUSH_CYCLES + 1), name="drain", last=False)
        with m.If(~self.flush):
            m.d.sync += drain.load(FLUSH_CYCLES)
        with m.Elif(drain.some):
            m.d.sync += drain.step()
        return drain

    def _more(self, m: Module, passes: Passes) -> Signal:
        """Counts the tokens that are drawn from a pass: whether others follow."""
        more, turn = Signal(), self.sample_turn
        m.d.sync += [more.eq(turn != self.sample_last),
                     self.sample_last.eq(Mux(passes.pass_.each, passes.pass_.n - 1, 0))]
        with m.If(self.sample_start):
            m.d.sync += turn.eq(0)
        with m.If(passes.step):
            m.d.sync += turn.eq(turn + 1)
        return more
