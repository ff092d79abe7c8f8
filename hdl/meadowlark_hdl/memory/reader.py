"""Tile jobs -> memory bursts with space reserved -> run-ahead FIFO -> chunks."""
from amaranth import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..signatures import ReadPort, TileJob, TileTag
from ..lib.bursts import BurstCutter
from ..lib.queues import Queue, RamQueue


class Reader(wiring.Component):
    """Reads tiles ahead of their use, as far as the FIFO has room.

    A job is split into bursts of at most ``burst_words`` bus words. A command is issued only
    when the FIFO has room for all its words, so that memory never waits for the core
    (``r_data.ready`` is always high) and nothing can deadlock behind a read. Words are joined to
    chunks before the FIFO: after a stall the core can take a chunk a cycle whatever the width of
    the bus.

    Timing: ``COMMAND`` cycles from a job to its command, then at most 4 cycles from one command to
    the next and 5 to the first of the next job (while there is room); ``CHUNK`` cycles from the
    last bus word of a chunk to the chunk. One bus word a cycle for tiles of at least 4 bus words.

    Source: the loads that run ahead across operators are those of FlashFormer,
    arXiv:2505.22758.

    Parameters
    ----------
    config : Config
        W, bus_bytes, burst_words, fifo_words (at least two chunks), tile_beats.

    Members
    -------
    jobs : In(stream of TileJob)
        Tiles in order; 1..4095 chunks each.
    tags : Out(stream of TileTag)
        One for each job, in order; at most ``TAGS`` wait.
    mem : Out(ReadPort)
    chunks : Out(stream of 8 * W bits)
        First byte of memory in the low bits.
    flush : In(1)
        From its second cycle on no command is prepared (one already offered stays until it is
        taken), jobs are taken and dropped, and so is what arrives and what is in the FIFO. Dropping
        goes on until nothing is outstanding, even if ``flush`` is low again; jobs then wait.
    idle : Out(1)
        Nothing in progress, outstanding, or in the FIFO; after a flush as after reset.
    beats : Out(1)
        High for one cycle for each bus word received.
    starved : Out(1)
        The decoder waits for a chunk that memory has yet to deliver.
    full : Out(1)
        A command waits for room in the FIFO.
    """

    TAGS = 16
    COMMAND, CHUNK = 3, 7

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "jobs": In(stream.Signature(TileJob(config))),
            "tags": Out(stream.Signature(TileTag(config))),
            "mem": Out(ReadPort(config)),
            "chunks": Out(stream.Signature(8 * config.W)),
            "flush": In(1), "idle": Out(1),
            "beats": Out(1), "starved": Out(1), "full": Out(1)})

    def elaborate(self, platform):
        m = Module()
        c, bpc = self.config, self.config.bus_per_chunk
        shift = exact_log2(bpc)
        drop = Signal()
        empty_when = ResetInserter(drop)
        tags = Queue(TileTag(c), depth=self.TAGS)
        fifo = RamQueue(8 * c.W, depth=c.fifo_words >> shift)
        m.submodules.tags, m.submodules.fifo = empty_when(tags), empty_when(fifo)

        # Bus words asked for, received, and gone from the FIFO, modulo twice its size: used =
        # issued - gone is at most fifo_words.
        issued = Signal(range(2 * c.fifo_words))
        received = Signal.like(issued)
        gone = Signal(len(issued) - shift)              # in chunks
        used = Signal.like(issued)
        m.d.sync += [used.eq(issued - (gone << shift)), gone.eq(gone + fifo.left)]

        job = BurstCutter(m, most=c.burst_words, address_bits=32, left_bits=12 + shift, name="job")
        fits = Signal()
        m.d.comb += [
            fits.eq(used + job.length <= c.fifo_words),
            self.mem.r_cmd.payload.addr.eq(job.address),
            self.mem.r_cmd.payload.len.eq(job.less_one)]
        wiring.connect(m, tags.o, wiring.flipped(self.tags))
        m.d.comb += [tags.i.payload[name].eq(self.jobs.payload[name])
                     for name in ("mode", "header", "rows", "beats", "packed")]

        with m.FSM() as fsm:
            with m.State("JOB"):
                m.d.comb += [self.jobs.ready.eq(Mux(drop, self.flush, tags.i.ready)),
                             tags.i.valid.eq(self.jobs.valid & ~drop)]
                m.d.sync += job.load(self.jobs.payload.addr << shift,
                                     self.jobs.payload.chunks << shift)
                with m.If(self.jobs.valid & self.jobs.ready & ~drop):
                    m.next = "LENGTH"
            with m.State("LENGTH"):
                m.d.sync += job.cut()
                m.next = "ROOM"
                with m.If(drop):
                    m.next = "JOB"
            with m.State("ROOM"):
                # At the earliest two cycles after the last command: used counts its words.
                with m.If(drop):
                    m.next = "JOB"
                with m.Elif(fits):
                    m.next = "COMMAND"
            with m.State("COMMAND"):
                m.d.comb += self.mem.r_cmd.valid.eq(1)
                with m.If(self.mem.r_cmd.ready):
                    m.next = "COUNT"
            with m.State("COUNT"):              # apart from ready, which comes from far
                m.d.sync += [issued.eq(issued + job.length), job.advance()]
                m.next = "LENGTH"
                with m.If(job.final | drop):
                    m.next = "JOB"

        # Arrivals: a register, then the words of a chunk are joined, then the FIFO.
        word = Signal(8 * c.bus_bytes, reset_less=True)
        arrived = Signal()
        m.d.comb += [self.mem.r_data.ready.eq(1), self.beats.eq(arrived)]
        m.d.sync += [word.eq(self.mem.r_data.payload), arrived.eq(self.mem.r_data.valid),
                     received.eq(received + arrived)]
        if bpc == 1:
            m.d.comb += [fifo.i_valid.eq(arrived), fifo.i_data.eq(word)]
        else:
            chunk = Signal(8 * c.W, reset_less=True)
            piece, whole = Signal(range(bpc)), Signal()
            m.d.comb += [fifo.i_valid.eq(whole), fifo.i_data.eq(chunk)]
            m.d.sync += whole.eq(arrived & (piece == bpc - 1) & ~drop)
            with m.If(arrived):
                m.d.sync += [chunk.eq(Cat(chunk[len(word):], word)), piece.eq(piece + 1)]
        wiring.connect(m, fifo.o, wiring.flipped(self.chunks))

        # Everything asked for has come, one cycle ago at least: the pieces above are empty.
        at_rest, waiting = Signal(), Signal()
        m.d.comb += waiting.eq(issued != received)
        m.d.sync += at_rest.eq(fsm.ongoing("JOB") & ~waiting)
        with m.If(self.flush):
            m.d.sync += drop.eq(1)
        with m.Elif(at_rest & ~waiting):
            m.d.sync += drop.eq(0)
        with m.If(drop & at_rest):
            m.d.sync += [issued.eq(0), received.eq(0), gone.eq(0), used.eq(0)]
        m.d.sync += [
            self.idle.eq(at_rest & fsm.ongoing("JOB") & (used == 0) & fifo.empty & ~tags.o.valid
                         & ~(self.jobs.valid & self.jobs.ready & ~drop)),
            self.starved.eq(self.chunks.ready & ~fifo.o.valid & waiting),
            self.full.eq(fsm.ongoing("ROOM") & ~fits)]
        return m
