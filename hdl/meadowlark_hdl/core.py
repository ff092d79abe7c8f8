"""The core: every block, wired. Nothing is computed here."""
from amaranth import (C, Cat, ClockDomain, ClockSignal, DomainRenamer, Module, ResetInserter,
                      ResetSignal, Signal)
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .compute.tiling_engine import TilingEngine, first_result
from .compute.vector_unit import VectorUnit
from .config import Config
from .control.counters import Counters
from .control.errors import FAULTS, Error
from .control.fetch import Fetch
from .draft.drafter import Drafter
from .sampler.sampler import Sampler
from .control.sequencer import Sequencer
from .issue.issue import Issue
from .lib.countdown import Countdown
from .lib.far import far
from .lib.fanout import near
from .link.link import Link
from .memory.arbiter import MemoryArbiter
from .memory.reader import Reader
from .memory.scratch import Scratch
from .memory.spiller import Spiller
from .memory.store import StoreUnit
from .probe import Probe, shown
from .signatures import LogitPort, MemoryPort
from .sleep import nap, napping
from .weights.decoder import PackedWeightDecoder
from .weights.tile_buffer import TileBuffer


def _restart(m: Module, name: str, *reasons):
    """Two registers for each block: one for all would reach across the whole chip."""
    early = near(m, Cat(*reasons).any(), name=f"restart_{name}_early", reset=True)
    return near(m, early, name=f"restart_{name}", reset=True)


def _restarted(block, when, *domains):
    """Rigid blocks have no other way to forget."""
    return ResetInserter(dict.fromkeys(("sync", *domains), when))(block)


def _causes(reader, store, issue, engine, vector, sequencer, drafted) -> dict:
    """What Counters count, by name, see :mod:`.link.counters_table`."""
    written = store.mem.w_data
    waits = issue.wait_tile | issue.wait_store | issue.wait_vector
    return {
        "accepted": sequencer.accepted, "drafted": drafted,
        "bus_read_words": reader.beats, "bus_write_words": written.valid & written.ready,
        "passes": sequencer.pass_done, "instructions": issue.retired,
        "array_active": issue.array_active,
        "stall_memory": (issue.wait_tile & reader.starved) | issue.wait_store,
        "stall_decoder": issue.wait_tile & ~reader.starved,
        "stall_engine": ~issue.array_active & ~waits & ~sequencer.link_stall,
        "stall_vector": issue.wait_vector, "stall_link": sequencer.link_stall,
        "saturations": vector.saturations, "score_saturations": engine.saturations}


def _sampled(sequencer, sampler):
    """Between the two, as they name it."""
    for name in ("position", "last", "start", "finish", "turn"):
        yield getattr(sampler, name).eq(getattr(sequencer, f"sample_{name}"))
    for name in ("done", "token", "crc"):
        yield getattr(sequencer, f"sample_{name}").eq(getattr(sampler, name))


def _stores(store, scratch, issue, vector):
    """The way to the store unit is in use."""
    return (~store.idle | store.cmd.valid | ~scratch.idle | issue.store_cmd.valid
            | vector.scratch.valid | scratch.places.en)


def _of_some(config, fetch, issue, engine):
    """What only some cores have: Fetch stops for the engine, Issue hears of unified maxima."""
    if config.fences:
        yield from (fetch.retired.eq(issue.retired), fetch.drained.eq(issue.drained))
    if config.unified:
        yield issue.missed.eq(engine.missed)


def _written(seq, fetch, scratch, sampler):
    """What the host writes long before a run needs it: sinks and their sources."""
    for name in ("prog_en", "prog_addr", "prog_data"):
        yield getattr(fetch, name), getattr(seq, name)
    for name in ("en", "addr", "data"):
        for block in (fetch, scratch, sampler):
            yield getattr(block.places, name), getattr(seq.places, name)
        yield getattr(sampler.seeds, name), getattr(seq.seeds, name)


class Core(wiring.Component):
    """Runs whole models: memory on one side, a byte stream to the host on the other.

    Parameters
    ----------
    config : Config
    board, clock_hz, memory_bytes
        Told to the host on request, see :class:`~meadowlark_hdl.link.link.Link`.
    sleep : bool
        Blocks with nothing to do get no clock, see :mod:`~meadowlark_hdl.sleep`; for simulation.
    trace : bool
        There is a port ``probe``; for simulation.

    Members
    -------
    mem : Out(MemoryPort)
    rx : In(stream of 8), tx : Out(stream of 8)    Host link; rx is always ready. In reset and for
                                ``FLUSH`` cycles after it bytes are lost.
    tap : Out(LogitPort)        Each logit as the sampler sees it, for simulation.
    probe : Out(Probe)          What the blocks are doing; only with ``trace``.
    """

    #: Cycles a flush lasts at least: longer than the array's and the vector unit's pipelines.
    FLUSH = 128
    #: Cycles from a run's start to its first plan: the flush, two registers to it and two back.
    START = Sequencer.CHECK + FLUSH + 4

    def __init__(self, config: Config, *, board: str = "", clock_hz: int = 0,
                 memory_bytes: int = 0, sleep: bool = False, trace: bool = False):
        self.config, self.sleep, self.trace = config, sleep, trace
        self._link = Link(config, board=board, clock_hz=clock_hz, memory_bytes=memory_bytes)
        super().__init__({"mem": Out(MemoryPort(config)), "rx": In(stream.Signature(8)),
                          "tx": Out(stream.Signature(8)), "tap": Out(LogitPort()),
                          **({"probe": Out(Probe())} if trace else {})})

    def elaborate(self, platform):
        # The reset of the domain would reach across the whole chip, through a gate wherever a
        # flush joins it. Here it is one more reason for the registers of ``restart_of``, long
        # enough for what is in flight in a rigid pipeline to leave it.
        m = Module()
        m.domains.core = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal("core").eq(ClockSignal())
        left = Countdown(m, range(self.FLUSH + 1), name="left", last=False)
        restart = Signal()
        m.d.core += restart.eq(left.some)
        with m.If(ResetSignal(allow_reset_less=True)):
            m.d.core += left.load(self.FLUSH)
        with m.Elif(left.some):
            m.d.core += left.step()
        m.submodules.wired = DomainRenamer("core")(self._wired(restart))
        return m

    def _wired(self, restart):
        m = Module()
        config, sleep, link = self.config, self.sleep, self._link
        sequencer, reset = Sequencer(config), Signal()      # reset: the host asks for it

        def restart_of(name, *reasons):
            return _restart(m, name, restart, *reasons)

        def flush_of(name):
            return restart_of(name, sequencer.flush, reset)
        arbiter = MemoryArbiter(config)
        m.submodules.arbiter = _restarted(arbiter, restart_of("arbiter"))
        # Both count what memory owes them, and after a reset it owes nothing: no flush would end.
        reader, scratch, store = Reader(config), Scratch(config), StoreUnit(config)
        m.submodules.reader = _restarted(reader, restart_of("reader_counts"))
        m.submodules.decoder = decoder = PackedWeightDecoder(config, sleep=sleep)
        m.submodules.tiles = tiles = TileBuffer(config)
        m.submodules.fetch = fetch = Fetch(config)
        engine, vector = TilingEngine(config, sleep=sleep), VectorUnit(config, sleep=sleep)
        issue = Issue(config, sum_gap=vector.sum_gap)
        sampler, counters = Sampler(config), Counters()
        flush = flush_of("core")
        m.submodules.issue = _restarted(issue, flush_of("issue"))
        m.submodules.engine = _restarted(engine, flush_of("engine"))
        m.submodules.vector = _restarted(vector, flush_of("vector"),
                                         *(vector.DOMAINS if sleep else ()))
        m.submodules.sampler = napping(
            m, _restarted(sampler, flush_of("sampler")), "sampler", flush | sampler.start
            | sampler.logit.valid | sampler.finish | sampler.busy | (sampler.turn != 0)
            | sampler.places.en | sampler.seeds.en, sleep=sleep, linger=64)
        known = Signal(2)                       # what the link has seen of the core's state
        m.d.sync += known.eq(Cat(link.seq.busy, self.mem.ready))
        link_restart = restart_of("link")
        m.submodules.link = napping(
            m, _restarted(link, link_restart), "link", link_restart | ~link.idle | self.rx.valid
            | self.tx.valid | link.seq.events.valid
            | (known != Cat(link.seq.busy, self.mem.ready)), sleep=sleep, linger=64)
        m.submodules.sequencer = _restarted(sequencer, restart_of("sequencer", reset))
        m.submodules.counters = _restarted(counters, restart_of("counters"))

        drafts_rest, drafted = self._drafter(m, restart_of, sequencer, arbiter)

        # Flush: what is in flight in a rigid pipeline leaves it while the flush lasts.
        flushing = Countdown(m, range(self.FLUSH + 1), name="flushing", last=False)
        with m.If(~flush):
            m.d.sync += flushing.load(self.FLUSH)
        with m.Elif(flushing.some):
            m.d.sync += flushing.step()
        for name, block in (("reader", reader), ("scratch", scratch), ("store", store),
                            ("decoder", decoder), ("tiles", tiles), ("fetch", fetch)):
            m.d.comb += block.flush.eq(flush_of(name))

        storing = nap(m, "store", flush | _stores(store, scratch, issue, vector), sleep=sleep,
                      linger=64)
        m.submodules.scratch, m.submodules.store = map(
            DomainRenamer(storing), (scratch, _restarted(store, restart_of("store_counts"))))

        # Streams and memory
        for one, other in (
                (wiring.flipped(self.mem), arbiter.mem), (reader.mem, arbiter.reader),
                (store.mem, arbiter.store), (link.mem, arbiter.host), (link.seq, sequencer.link),
                (wiring.flipped(self.rx), link.rx), (wiring.flipped(self.tx), link.tx),
                (fetch.jobs, reader.jobs), (reader.tags, decoder.tags),
                (reader.chunks, decoder.chunks), (decoder.items, tiles.i),
                (issue.tile, tiles.read), (fetch.out, issue.instr), (issue.store_cmd, scratch.cmd),
                *self._spiller(m, flush_of, scratch, store, issue, engine, fetch),
                (engine.result, issue.engine_result), (issue.result, vector.r),
                (issue.rope, vector.rope), (vector.act, engine.act),
                (vector.scratch, scratch.write)):
            wiring.connect(m, one, other)
        wiring.connect(m, vector.logit, sampler.logit, wiring.flipped(self.tap))

        # Array
        m.d.comb += [
            fetch.store_done.eq(store.done), issue.store_done.eq(store.done),
            engine.control.eq(issue.control), engine.lanes.eq(issue.lanes),
            engine.attending.eq(issue.attending), engine.beat.eq(tiles.read.beat),
            engine.scale.eq(tiles.read.scale),
            vector.norm_job.eq(issue.norm_job), vector.norm_start.eq(issue.norm_start),
            vector.gamma.eq(issue.gamma), vector.clear.eq(sequencer.run_start),
            engine.clear.eq(sequencer.run_start), issue.norm_done.eq(vector.norm_done),
            issue.gamma_addr.eq(vector.gamma_addr), issue.vector_busy.eq(vector.busy),
            *_of_some(config, fetch, issue, engine)]

        # Control
        for block in (issue, vector, fetch, scratch):
            m.d.comb += [block.model.eq(link.seq.model), block.pass_.eq(sequencer.pass_)]
        m.d.comb += [
            fetch.start.eq(sequencer.fetch_start), fetch.start_pc.eq(sequencer.fetch_pc),
            sequencer.token_addr.eq(fetch.token_addr), fetch.token_data.eq(sequencer.token_data),
            sequencer.pass_end.eq(issue.pass_end), sampler.run.eq(link.seq.run),
            link.counter_data.eq(counters.data), *_sampled(sequencer, sampler)]

        # What crosses the chip, (sink, source, registers on the way): blocks have none for it.
        faults = {Error.BAD_INSTRUCTION: issue.bad_op, Error.PROGRAM_END: fetch.program_end,
                  Error.BAD_TOKEN: fetch.bad_token, Error.BAD_DATA: decoder.error}
        causes = _causes(reader, store, issue, engine, vector, sequencer, drafted)
        for sink, source, cycles in (
                (reset, link.reset, 1), (sequencer.ready, self.mem.ready, 1),
                (sequencer.idle, reader.idle & scratch.idle & store.idle & drafts_rest
                 & ~flushing.some, 1),
                (sequencer.faults, Cat(faults[error] for error in FAULTS), 2),
                (sequencer.fault_pc, issue.pc, 1),
                (sequencer.progress, reader.beats | issue.retired, 2),
                *((sink, source, 2) for sink, source in _written(
                    link.seq, fetch, scratch, sampler)),
                (counters.clear, sequencer.run_start, 1), (counters.busy, link.seq.busy, 1),
                (counters.first_token, sequencer.first_token, 1),
                (counters.hold, link.counter_hold, 1), (counters.index, link.counter_index, 1),
                *((getattr(counters.causes, name), causes[name], 1) for name in causes)):
            far(m, sink, source, cycles=cycles)
        if self.trace:
            m.d.comb += shown(self.probe, sequencer, fetch, reader, decoder, tiles, issue, vector,
                              store, sampler)
        return m

    def _spiller(self, m, flush_of, scratch, store, issue, engine, fetch):
        """What goes to the store unit: from scratch memory and, if there is one, the spiller."""
        if not self.config.gemm:
            return (scratch.store, store.cmd), (scratch.words, store.words)
        late = first_result(self.config) + self.config.P + 8    # Issue's control, and some to spare
        spiller = Spiller(self.config, late=late)
        m.submodules.spiller = _restarted(spiller, flush_of("spiller"))
        result = engine.result
        m.d.comb += [
            *(getattr(spiller, name).eq(getattr(issue, f"spill_{name}"))
              for name in ("start", "addr", "rows")), issue.spill_room.eq(spiller.room),
            spiller.valid.eq(result.valid), spiller.value.eq(result.payload.acc[:16] ^ 1 << 15),
            fetch.spilled.eq(issue.spill_rows)]
        return ((scratch.store, spiller.from_scratch), (scratch.words, spiller.scratch_words),
                (spiller.store, store.cmd), (spiller.words, store.words))

    def _drafter(self, m, restart_of, sequencer, arbiter):
        """The drafter, if there is one; -> whether it rests, and pulses of its drafts."""
        if not self.config.drafts:
            return 1, C(0)
        # What memory owes it arrives: it ends by itself, whatever becomes of the run.
        drafter, seq = Drafter(self.config), self._link.seq
        m.submodules.drafter = _restarted(drafter, restart_of("drafter"))
        wiring.connect(m, drafter.mem, arbiter.drafter)
        wiring.connect(m, drafter.write, sequencer.draft_write)
        m.d.comb += [
            drafter.model.eq(seq.model), drafter.run.eq(seq.run),
            drafter.begin.eq(sequencer.run_start), drafter.accepted.eq(sequencer.accepted),
            drafter.start.eq(sequencer.draft_start), drafter.position.eq(sequencer.sample_position),
            drafter.data.eq(sequencer.token_data), sequencer.draft_addr.eq(drafter.addr),
            sequencer.draft_done.eq(drafter.done), sequencer.drafts.eq(drafter.count)]
        return drafter.idle, drafter.drafted
