"""The core: every block, wired. Nothing is computed here."""
from amaranth import (Cat, ClockDomain, ClockSignal, DomainRenamer, Module, ResetInserter,
                      ResetSignal, Signal)
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .compute.tiling_engine import TilingEngine
from .compute.vector_unit import VectorUnit
from .config import Config
from .control.counters import Counters
from .control.errors import FAULTS, Error
from .control.fetch import Fetch
from .sampler.sampler import Sampler
from .control.sequencer import Sequencer
from .issue.issue import Issue
from .lib.fanout import near
from .link.link import Link
from .memory.arbiter import MemoryArbiter
from .memory.reader import Reader
from .memory.store import StoreUnit
from .signatures import LogitPort, MemoryPort
from .sleep import napping
from .weights.decoder import PackedWeightDecoder
from .weights.tile_buffer import TileBuffer


def _same(source, sink) -> list:
    """Drive every member of a port without handshake."""
    return [getattr(sink, name).eq(getattr(source, name)) for name in source.signature.members]


class Core(wiring.Component):
    """Runs whole models: memory on one side, a byte stream to the host on the other.

    Parameters
    ----------
    config : Config
    board, clock_hz, memory_bytes
        Told to the host on request, see :class:`~meadowlark_hdl.link.link.Link`.
    sleep : bool
        Blocks with nothing to do get no clock, see :mod:`~meadowlark_hdl.sleep`; for simulation.

    Members
    -------
    mem : Out(MemoryPort)
    rx : In(stream of 8), tx : Out(stream of 8)    Host link; rx is always ready. In reset and for
                                ``FLUSH`` cycles after it bytes are lost.
    tap : Out(LogitPort)        Each logit as the sampler sees it, for simulation.
    """

    #: Cycles a flush lasts at least: longer than the array's and the vector unit's pipelines.
    FLUSH = 128
    #: Cycles from a run's start to its first plan: the flush, two registers to it and two back.
    START = Sequencer.CHECK + FLUSH + 4

    def __init__(self, config: Config, *, board: str = "", clock_hz: int = 0,
                 memory_bytes: int = 0, sleep: bool = False):
        self.config, self.sleep = config, sleep
        self._link = Link(config, board=board, clock_hz=clock_hz, memory_bytes=memory_bytes)
        super().__init__({"mem": Out(MemoryPort(config)), "rx": In(stream.Signature(8)),
                          "tx": Out(stream.Signature(8)), "tap": Out(LogitPort())})

    def elaborate(self, platform):
        # The reset of the domain would reach across the whole chip, through a gate wherever a
        # flush joins it. Here it is one more reason for the registers of ``restart_of``, long
        # enough for what is in flight in a rigid pipeline to leave it.
        m = Module()
        m.domains.core = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal("core").eq(ClockSignal())
        left, restart = Signal(range(self.FLUSH + 1)), Signal()
        m.d.core += restart.eq(left != 0)
        with m.If(ResetSignal(allow_reset_less=True)):
            m.d.core += left.eq(self.FLUSH)
        with m.Elif(left != 0):
            m.d.core += left.eq(left - 1)
        m.submodules.wired = DomainRenamer("core")(self._wired(restart))
        return m

    def _wired(self, restart):
        m = Module()
        config, sleep = self.config, self.sleep
        sequencer, reset = Sequencer(config), Signal()      # reset: the host asks for it

        def restart_of(name, *reasons):
            """Two registers for each block: one for all would reach across the whole chip."""
            early = near(m, Cat(restart, *reasons).any(), name=f"restart_{name}_early", reset=True)
            return near(m, early, name=f"restart_{name}", reset=True)

        def flush_of(name):
            return restart_of(name, sequencer.flush, reset)

        def restarted(block, when, *domains):
            """Rigid blocks have no other way to forget."""
            return ResetInserter(dict.fromkeys(("sync", *domains), when))(block)

        link = self._link
        arbiter = MemoryArbiter(config)
        m.submodules.arbiter = restarted(arbiter, restart_of("arbiter"))
        m.submodules.reader = reader = Reader(config)
        store = StoreUnit(config)
        m.submodules.decoder = decoder = PackedWeightDecoder(config, sleep=sleep)
        m.submodules.tiles = tiles = TileBuffer(config)
        m.submodules.fetch = fetch = Fetch(config)
        engine, vector = TilingEngine(config, sleep=sleep), VectorUnit(config, sleep=sleep)
        issue = Issue(config, sum_gap=vector.sum_gap)
        sampler, counters = Sampler(config), Counters()
        flush = flush_of("core")
        m.submodules.issue = restarted(issue, flush_of("issue"))
        m.submodules.engine = restarted(engine, flush_of("engine"))
        m.submodules.vector = restarted(vector, flush_of("vector"),
                                        *(vector.DOMAINS if sleep else ()))
        m.submodules.sampler = napping(
            m, restarted(sampler, flush_of("sampler")), "sampler", flush | sampler.start
            | sampler.logit.valid | sampler.finish | sampler.busy, sleep=sleep, linger=64)
        known = Signal(2)                       # what the link has seen of the core's state
        m.d.sync += known.eq(Cat(link.seq.busy, self.mem.ready))
        link_restart = restart_of("link")
        m.submodules.link = napping(
            m, restarted(link, link_restart), "link", link_restart | ~link.idle | self.rx.valid
            | self.tx.valid | link.seq.events.valid
            | (known != Cat(link.seq.busy, self.mem.ready)), sleep=sleep, linger=64)
        m.submodules.sequencer = restarted(sequencer, restart_of("sequencer", reset))
        m.submodules.counters = restarted(counters, restart_of("counters"))

        # Flush: what is in flight in a rigid pipeline leaves it while the flush lasts.
        held = Signal(range(self.FLUSH + 1))
        with m.If(~flush):
            m.d.sync += held.eq(0)
        with m.Elif(held != self.FLUSH):
            m.d.sync += held.eq(held + 1)
        m.d.sync += [
            reset.eq(link.reset),
            sequencer.idle.eq(reader.idle & store.idle & (held == self.FLUSH))]
        for name, block in (("reader", reader), ("store", store), ("decoder", decoder),
                            ("tiles", tiles), ("fetch", fetch)):
            m.d.comb += block.flush.eq(flush_of(name))

        m.submodules.store = napping(
            m, store, "store", flush | ~store.idle | issue.store_cmd.valid | engine.store.valid,
            sleep=sleep, linger=64)

        # Memory side
        wiring.connect(m, wiring.flipped(self.mem), arbiter.mem)
        wiring.connect(m, reader.mem, arbiter.reader)
        wiring.connect(m, store.mem, arbiter.store)
        wiring.connect(m, link.mem, arbiter.host)
        wiring.connect(m, fetch.jobs, reader.jobs)
        wiring.connect(m, reader.tags, decoder.tags)
        wiring.connect(m, reader.chunks, decoder.chunks)
        wiring.connect(m, decoder.items, tiles.i)
        wiring.connect(m, issue.tile, tiles.read)
        wiring.connect(m, engine.store, store.words)
        wiring.connect(m, issue.store_cmd, store.cmd)
        m.d.comb += fetch.store_done.eq(store.done)

        # Array
        wiring.connect(m, fetch.out, issue.instr)
        m.d.comb += [
            engine.control.eq(issue.control), engine.lanes.eq(issue.lanes),
            engine.attending.eq(issue.attending), engine.beat.eq(tiles.read.beat),
            engine.scale.eq(tiles.read.scale),
            issue.store_room.eq(engine.store_room),
            _same(engine.result, issue.engine_result), _same(issue.result, vector.r),
            _same(issue.rope, vector.rope), _same(vector.act, engine.act),
            vector.instr.eq(issue.current), vector.norm_start.eq(issue.norm_start),
            vector.gamma.eq(issue.gamma), vector.clear.eq(sequencer.run_start),
            engine.clear.eq(sequencer.run_start),
            issue.norm_done.eq(vector.norm_done), issue.gamma_addr.eq(vector.gamma_addr),
            issue.vector_busy.eq(vector.busy),
            _same(vector.logit, sampler.logit), _same(vector.logit, self.tap)]

        # Control
        faults = {Error.BAD_INSTRUCTION: issue.bad_op, Error.PROGRAM_END: fetch.program_end,
                  Error.BAD_TOKEN: fetch.bad_token, Error.BAD_DATA: decoder.error}
        wiring.connect(m, link.seq, sequencer.link)
        model = link.seq.model
        for block in (issue, vector, fetch):
            m.d.comb += [block.model.eq(model), block.pass_.eq(sequencer.pass_)]
        m.d.comb += [
            fetch.start.eq(sequencer.fetch_start), fetch.start_pc.eq(sequencer.fetch_pc),
            sequencer.token_addr.eq(fetch.token_addr), fetch.token_data.eq(sequencer.token_data),
            sequencer.pass_end.eq(issue.pass_end),
            sampler.run.eq(link.seq.run), sampler.position.eq(sequencer.sample_position),
            sampler.start.eq(sequencer.sample_start), sampler.finish.eq(sequencer.sample_finish),
            sequencer.sample_done.eq(sampler.done), sequencer.sample_token.eq(sampler.token),
            sequencer.sample_crc.eq(sampler.crc), sequencer.ready.eq(self.mem.ready),
            sequencer.fault_pc.eq(issue.pc)]
        m.d.sync += [           # a program is written long before it runs, from across the chip
            fetch.prog_en.eq(link.seq.prog_en), fetch.prog_addr.eq(link.seq.prog_addr),
            fetch.prog_data.eq(link.seq.prog_data)]
        m.d.sync += [
            sequencer.progress.eq(reader.beats | issue.retired),
            sequencer.faults.eq(Cat(faults[error] for error in FAULTS))]

        causes = counters.causes
        written = store.mem.w_data
        m.d.comb += [
            counters.clear.eq(sequencer.run_start), counters.busy.eq(link.seq.busy),
            counters.first_token.eq(sequencer.first_token), counters.hold.eq(link.counter_hold),
            counters.index.eq(link.counter_index), link.counter_data.eq(counters.data),
            causes.bus_read_words.eq(reader.beats),
            causes.bus_write_words.eq(written.valid & written.ready),
            causes.passes.eq(sequencer.pass_done), causes.instructions.eq(issue.retired),
            causes.array_active.eq(issue.array_active),
            causes.stall_memory.eq((issue.wait_tile & reader.starved) | issue.wait_store),
            causes.stall_decoder.eq(issue.wait_tile & ~reader.starved),
            causes.stall_vector.eq(issue.wait_vector),
            causes.stall_engine.eq(~issue.array_active & ~issue.wait_tile & ~issue.wait_store
                                   & ~issue.wait_vector & ~sequencer.link_stall),
            causes.stall_link.eq(sequencer.link_stall),
            causes.saturations.eq(vector.saturations),
            causes.score_saturations.eq(engine.saturations)]

        wiring.connect(m, wiring.flipped(self.rx), link.rx)
        wiring.connect(m, wiring.flipped(self.tx), link.tx)
        return m
