"""Runs the model pass after pass and token after token, without the host."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..lib.collisions import NO_RW_CHECK
from ..config import Config
from ..signatures import STOP_IDS, PassLayout, SequencerPort
from .errors import FAULTS, Error
from .sequencer_golden import MAX_TILE_KEYS, context_limit

#: Cycles ``flush`` is high at least, so that ``idle`` may come through registers.
FLUSH_CYCLES = 16


class Sequencer(wiring.Component):
    """The token loop of docs/architecture.md, "Passes"; owns the token memory.

    A run: check the request, empty the core (``flush`` until ``idle``), then pass after pass until
    the prompt is done, then one decode pass a token, until a stop id, ``max_new``, the end of the
    context, an abort or an error. Each token is an event with the CRC of its logits; the last
    event of a run has a reason other than 0, and ``link.busy`` falls when it is taken. A pass
    begins only when the event before it has been taken; until then is link stall.

    A pass is planned by counting blocks up while they fit, two additions a step, as
    :func:`.sequencer_golden.plan` does. A pass: ``pass_`` is set, ``fetch_start`` pulses with
    ``fetch_pc``, ``pass_end`` answers. If the pass is final, ``sample_start`` pulses together with
    ``fetch_start`` and ``sample_finish`` after ``pass_end``; ``sample_done`` answers.

    Abort, fault, watchdog or loss of the memory: the pass is given up; ``flush`` is high for
    16 cycles at least and until ``idle``, then the event with reason 4 follows.

    Timing: ``pass_end`` (or the event taken) to the next ``fetch_start`` ``TURN`` + ``PLAN``
    cycles, and ``TRY`` for each number of blocks that is tried, so 9 for a decode pass;
    ``pass_end`` to ``sample_finish`` ``TURN``; ``sample_done`` to the event ``EVENT``; a run's
    start to the flush in front of its first plan ``CHECK``.

    Errors: see :class:`.errors.Error`. The code and, for faults, the instruction hold until the
    next start.

    Parameters
    ----------
    config : Config
    watchdog_log2 : int, 4..32
        log2 of the cycles without ``progress`` after which a run is given up.

    Members
    -------
    link : In(SequencerPort)     The host's side. Its ``prog_*`` members are for Fetch.
    token_addr : In              Read port of the token memory: position ...
    token_data : Out(18)         ... and its token, 2 cycles later.
    pass_ : Out(PassLayout)      Constant from ``fetch_start`` to the next plan.
    fetch_start : Out(1)         Pulse: run the list at ``fetch_pc``.
    fetch_pc : Out(16)
    pass_end : In(1)             Pulse: the END of the list has been executed, all is written.
    sample_start : Out(1)        Pulse: a pass with logits begins.
    sample_finish : Out(1)       Pulse: all its logits have been given.
    sample_position : Out(13)    Position of the token to come.
    sample_done : In(1)          Pulse: ``sample_token``, ``sample_crc`` are valid.
    sample_token : In(18)
    sample_crc : In(32)
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
    """

    CHECK, TURN, PLAN, TRY, EVENT = 2, 1, 3, 5, 4

    def __init__(self, config: Config, *, watchdog_log2: int = 20):
        if watchdog_log2 not in range(4, 33):
            raise ValueError(f"watchdog_log2 must be in 4..32, not {watchdog_log2!r}")
        self.config = config
        self.watchdog_log2 = watchdog_log2
        super().__init__({
            "link": In(SequencerPort(config)),
            "token_addr": In(range(config.context)), "token_data": Out(Config.TOKEN_BITS),
            "pass_": Out(PassLayout()),
            "fetch_start": Out(1), "fetch_pc": Out(16), "pass_end": In(1),
            "sample_start": Out(1), "sample_finish": Out(1), "sample_position": Out(13),
            "sample_done": In(1), "sample_token": In(Config.TOKEN_BITS), "sample_crc": In(32),
            "flush": Out(1), "idle": In(1), "ready": In(1),
            "faults": In(len(FAULTS)), "fault_pc": In(16), "progress": In(1),
            "run_start": Out(1), "pass_done": Out(1), "first_token": Out(1),
            "link_stall": Out(1)})

    def elaborate(self, platform):
        m = Module()
        config, link, run, model = self.config, self.link, self.link.run, self.link.model
        limit = context_limit(config)

        # Token memory: written by the link between runs, by the token loop within. Fetch reads a
        # token in a later pass than the one that wrote it.
        m.submodules.tokens = tokens = memory.Memory(
            shape=Config.TOKEN_BITS, depth=config.context, init=[], attrs=NO_RW_CHECK)
        write, read = tokens.write_port(), tokens.read_port()
        own_write = Signal()
        token = Signal(Config.TOKEN_BITS)
        position = Signal(13)               # of the next token, 0..limit
        m.d.sync += [
            write.en.eq(Mux(link.busy, own_write, link.token_en)),
            write.addr.eq(Mux(link.busy, position, link.token_addr)),
            write.data.eq(Mux(link.busy, token, link.token_data))]
        token_data = Signal(Config.TOKEN_BITS, reset_less=True)     # the RAM's output register
        m.d.sync += token_data.eq(read.data)
        m.d.comb += [read.addr.eq(self.token_addr), read.en.eq(1), self.token_data.eq(token_data)]

        # What the model allows. head_log2 < log2 W is refused, so the shifts are as meant; when a
        # block needs more than acc_slots the quotient is 0 and nothing fits.
        w_log2 = config.W.bit_length() - 1
        slice_log2 = config.sv_columns.bit_length() - 1
        tile_log2 = w_log2 + config.tile_beats.bit_length() - 1
        keys_max = MAX_TILE_KEYS.bit_length() - 1
        tile_keys = Signal(range(MAX_TILE_KEYS + 1))
        acc_blocks = Signal(range(config.acc_slots + 1))
        with m.Switch(model.head_log2):
            for h in range(8):
                with m.Case(h):
                    m.d.sync += [
                        tile_keys.eq(1 << min(tile_log2 - h, keys_max) if h <= tile_log2 else 0),
                        acc_blocks.eq(config.acc_slots >> max(h - slice_log2, 0))]

        # Reasons to give a run up. Inputs are registered: they come from all over the chip.
        active = Signal()
        aborted = Signal()
        failed = Signal()
        running = Signal()                  # in a pass or its sample, where these reasons count
        faults = Signal(len(FAULTS))
        fault_pc = Signal(16, reset_less=True)
        progress = Signal()
        unready = Signal()
        m.d.sync += [faults.eq(self.faults), fault_pc.eq(self.fault_pc),
                     progress.eq(self.progress), unready.eq(~self.ready)]
        first_fault = Const(0, 8)
        for i, error in reversed(list(enumerate(FAULTS))):
            first_fault = Mux(faults[i], Const(error, 8), first_fault)
        patience = Signal(self.watchdog_log2 + 1)
        watched, restart = Signal(), Signal()
        m.d.sync += [restart.eq(~watched | progress), patience.eq(Mux(restart, 0, patience + 1))]
        late = patience[-1]

        def fail(error):
            return [link.error.eq(error), failed.eq(1)]
        with m.If(running & ~failed):
            with m.If(faults.any()):
                m.d.sync += [*fail(first_fault), link.error_pc.eq(fault_pc)]
            with m.Elif(unready):
                m.d.sync += [*fail(Error.MEMORY), link.error_pc.eq(fault_pc)]
            with m.Elif(late):
                m.d.sync += [*fail(Error.WATCHDOG), link.error_pc.eq(fault_pc)]
        give_up = Signal()
        m.d.comb += give_up.eq(aborted | failed)

        # State of the run.
        remaining = Signal(13)              # prompt tokens after position
        generated = Signal(13)
        first = Signal()                    # no final pass has ended yet
        end = Signal(14)                    # start_pos + prompt
        # State of the plan: the candidate, b blocks of which the last may be ragged.
        blocks = Signal(6)                  # most that may be tried
        b = Signal(6)
        tokens_b = Signal(12)               # b * P, at most 63 * 32
        step = Signal(14)                   # pos0 + P*(2b + 1): 8191 + 32 * 127
        area_full = Signal(20)              # b * (pos0 + b*P), at most 63 * (8191 + 2016)
        area_rest = Signal(20)              # b * (pos0 + remaining), at most 63 * 16382
        area = Signal(20)
        n = Signal(13)
        ctx = Signal(14)
        rest = Signal(14)                   # pos0 + remaining
        ragged = Signal()
        more = Signal()
        good_area = Signal()
        good_acc = Signal()
        drain = Signal(range(FLUSH_CYCLES + 1))
        hit = Signal(STOP_IDS)
        stopped = Signal()
        counted = Signal()
        full = Signal()
        bad = Signal(4)
        begin = Signal()                    # the flush before the first pass

        m.d.comb += link.busy.eq(active)
        for pulse in (self.fetch_start, self.sample_start, self.sample_finish, self.run_start,
                      self.pass_done, self.first_token, own_write):
            m.d.sync += pulse.eq(0)
        with m.If(link.abort & (active | link.start)):
            m.d.sync += aborted.eq(1)
        m.d.comb += self.link_stall.eq(link.events.valid & ~link.events.ready)

        with m.FSM():
            with m.State("IDLE"):
                with m.If(link.start):
                    m.d.sync += [
                        active.eq(1), self.run_start.eq(1), aborted.eq(link.abort),
                        failed.eq(0), link.error.eq(0), link.error_pc.eq(0),
                        position.eq(run.start_pos), remaining.eq(run.prompt),
                        generated.eq(0), first.eq(1), end.eq(run.start_pos + run.prompt)]
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += bad.eq(Cat(
                    (run.prompt == 0) | (end > limit),
                    model.head_log2 < w_log2,
                    (run.top_k > config.topk) | (run.stop_count > STOP_IDS),
                    model.blocks == 0))
                m.next = "VERDICT"
            with m.State("VERDICT"):
                m.d.sync += [drain.eq(FLUSH_CYCLES), begin.eq(1)]
                m.next = "FLUSH"
                # The flush also ends what a fault of the run before may still signal
                with m.If(bad.any() | unready):
                    m.d.sync += fail(Mux(
                        bad[3], Error.NO_MODEL, Mux(unready, Error.NOT_READY, Mux(
                            bad[0], Error.BAD_RUN, Mux(
                                bad[1], Error.BAD_MODEL, Error.BAD_SAMPLING)))))
                    m.next = "LAST"
            with m.State("FLUSH"):
                m.d.comb += [self.flush.eq(1), watched.eq(drain == 0)]
                m.d.sync += running.eq(0)
                with m.If(drain != 0):
                    m.d.sync += drain.eq(drain - 1)
                with m.Elif(self.idle):
                    m.d.sync += begin.eq(0)
                    m.next = "PLAN"
                    with m.If(~begin | give_up):
                        m.next = "LAST"
                with m.Elif(late):
                    # Nothing helps but a reset; a cause found earlier is more useful
                    with m.If(~failed | (link.error == Error.WATCHDOG)):
                        m.d.sync += fail(Error.STUCK)
                    m.next = "LAST"
            with m.State("LAST"):
                m.d.sync += [link.events.valid.eq(1), link.events.payload.reason.eq(4)]
                m.next = "EVENT"

            with m.State("PLAN"):
                m.d.sync += [
                    # A lone token runs the decode list, which knows one block only
                    blocks.eq(Mux(remaining == 1, 1, model.blocks)),
                    rest.eq(position + remaining),
                    b.eq(0), tokens_b.eq(0), area_full.eq(0), area_rest.eq(0),
                    step.eq(position + config.P), self.pass_.nb.eq(0)]
                m.next = "TRY"
                with m.If(give_up):
                    m.d.sync += drain.eq(FLUSH_CYCLES)
                    m.next = "FLUSH"
            with m.State("TRY"):
                m.d.sync += [
                    b.eq(b + 1), tokens_b.eq(tokens_b + config.P),
                    area_full.eq(area_full + step), area_rest.eq(area_rest + rest),
                    step.eq(step + 2 * config.P)]
                m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.sync += [ragged.eq(tokens_b >= remaining), ctx.eq(position + tokens_b),
                             more.eq(b != blocks), good_acc.eq(b <= acc_blocks)]
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += [n.eq(Mux(ragged, remaining, tokens_b)),
                             ctx.eq(Mux(ragged, rest, ctx)),
                             area.eq(Mux(ragged, area_rest, area_full))]
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += [good_area.eq(area <= config.score_depth),
                             good_acc.eq(good_acc | (ctx <= tile_keys))]
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.next = "SET"
                with m.If(good_area & good_acc):
                    m.d.sync += [self.pass_.nb.eq(b), self.pass_.n.eq(n), self.pass_.ctx.eq(ctx)]
                    with m.If(more & ~ragged):
                        m.next = "TRY"
            with m.State("SET"):
                m.d.sync += [
                    self.pass_.pos0.eq(position),
                    self.pass_.final.eq((self.pass_.n == remaining) & (run.max_new != 0)),
                    self.sample_position.eq(self.pass_.ctx),
                    self.fetch_pc.eq(Mux(remaining == 1, model.decode_pc, model.prefill_pc))]
                m.next = "START"
                with m.If(self.pass_.nb == 0):
                    m.d.sync += [*fail(Error.NO_PASS), drain.eq(FLUSH_CYCLES)]
                    m.next = "FLUSH"
            with m.State("START"):
                m.d.sync += [running.eq(1),
                             self.fetch_start.eq(1), self.sample_start.eq(self.pass_.final),
                             position.eq(self.pass_.ctx), remaining.eq(remaining - self.pass_.n)]
                m.next = "PASS"

            with m.State("PASS"):
                m.d.comb += watched.eq(1)
                with m.If(give_up):
                    m.d.sync += drain.eq(FLUSH_CYCLES)
                    m.next = "FLUSH"
                with m.Elif(self.pass_end):
                    m.d.sync += self.pass_done.eq(1)
                    with m.If(remaining != 0):
                        m.next = "PLAN"
                    with m.Else():
                        m.d.sync += [self.first_token.eq(first), first.eq(0),
                                     self.sample_finish.eq(self.pass_.final)]
                        m.next = "SAMPLE"
                        with m.If(~self.pass_.final):
                            m.d.sync += drain.eq(FLUSH_CYCLES)
                            m.next = "FILLED"
            with m.State("FILLED"):         # leaves a fault of the last cycles time to arrive
                m.d.sync += drain.eq(drain - 1)
                with m.If(give_up):
                    m.d.sync += drain.eq(FLUSH_CYCLES)
                    m.next = "FLUSH"
                with m.Elif(drain == 0):
                    m.d.sync += [running.eq(0), link.events.valid.eq(1),
                                 link.events.payload.reason.eq(5)]
                    m.next = "EVENT"
            with m.State("SAMPLE"):
                m.d.comb += watched.eq(1)
                with m.If(give_up):
                    m.d.sync += drain.eq(FLUSH_CYCLES)
                    m.next = "FLUSH"
                with m.Elif(self.sample_done):
                    m.d.sync += [token.eq(self.sample_token),
                                 link.events.payload.crc.eq(self.sample_crc),
                                 running.eq(0), generated.eq(generated + 1)]
                    m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += [hit[i].eq((run.stop_ids[i] == token) & (i < run.stop_count))
                             for i in range(STOP_IDS)]
                m.d.sync += [counted.eq(generated == run.max_new), full.eq(position == limit),
                             link.events.payload.token.eq(token)]
                m.next = "REASON"
            with m.State("REASON"):
                # The token is at home in the token memory even if the run ends with it, so that
                # a later run can go on from there. There is no place for one beyond the context.
                m.d.sync += [own_write.eq(~full), stopped.eq(hit.any()), remaining.eq(1)]
                m.next = "SEND"
            with m.State("SEND"):
                m.d.sync += [link.events.valid.eq(1), link.events.payload.reason.eq(
                    Mux(stopped, 1, Mux(counted, 2, Mux(full, 3, 0))))]
                m.next = "EVENT"

            with m.State("EVENT"):
                with m.If(link.events.ready):
                    m.d.sync += link.events.valid.eq(0)
                    with m.If(link.events.payload.reason == 0):
                        m.next = "PLAN"
                    with m.Else():
                        m.d.sync += [active.eq(0), aborted.eq(0)]
                        m.next = "IDLE"
        return m
