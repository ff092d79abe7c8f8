"""Walks a list of instructions: queues them for the engine and makes their tile jobs."""
from __future__ import annotations

from amaranth import Module, Mux, ResetInserter, Signal, signed, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ..lib.collisions import NO_RW_CHECK
from ..lib.countdown import Countdown
from ..tech.cells import Multiplier
from ..config import Config
from ..isa import INSTRUCTION_BITS, Header, Op, Src
from ..lib.queues import Queue
from ..signatures import FetchedInstruction, InstructionLayout, ModelLayout, PassLayout, TileJob


class Fetch(wiring.Component):
    """Fetches the instructions of one pass and the tiles they need, ahead of the engine.

    An instruction is queued as soon as its jobs can be made next, so the engine knows it before
    its tiles arrive. Jobs (``Src``; rows, beats, chunks as in the TileJob):

    - STREAM: ``tiles`` tiles from the stream pointer on, which starts at ``model.stream_addr``.
      All have rows and chunks, the last one last_rows and last_chunks; rows * row_beats beats.
    - TABLE: n tiles, ``addr + (pos0 + t) * chunks``. TOKEN: ``addr + token(pos0 + t) * chunks``.
    - KV: ctx keys of row_beats chunks from ``addr`` on, rows keys a tile, the last with the rest;
      no headers. Waits until as many stores are done as STORE instructions were fetched before.

    Tiles of TABLE, TOKEN and NORM have one row of row_beats beats whatever ``rows`` says. Products
    come from one :class:`~meadowlark_hdl.tech.cells.Multiplier`. An unknown ``src`` makes
    no jobs. A token beyond ``model.vocab`` and a list that runs past the program memory stop the
    walk until ``flush``: nothing is read that is not the model's.

    Timing: the next instruction is fetched while jobs are made (5 cycles each). The first job of
    an instruction comes ``FIRST`` cycles after the last one of the instruction before (TOKEN:
    ``TOKEN`` more); further ones follow every 2 cycles (TOKEN: 6).

    Parameters
    ----------
    config : Config
        prog_depth, context, tile_beats.

    Members
    -------
    start : In(1)
        One cycle, while not busy; ``start_pc`` and ``model`` count in that cycle. A ``start_pc``
        beyond the program memory is past its end.
    start_pc : In(16)
    pass_ : In(PassLayout)
        Constant while busy; valid from ``start`` on.
    model : In(ModelLayout)
    prog_en, prog_addr, prog_data : In
        Write port of the program memory, while not busy.
    out : Out(stream of FetchedInstruction)
        ``QUEUE`` of them wait. The END that ends the list is its last element, another is
        skipped.
    jobs : Out(stream of TileJob)
    token_addr : Out(range(context))
        Position of a token; ``token_data`` : In(18) holds its id 2 cycles later.
    store_done : In(1)
        One cycle for each STORE instruction whose data is in memory.
    flush : In(1)
        While high, as in reset; the program stays.
    busy : Out(1)
        Between ``start`` and the transfer of the last instruction and job.
    pc : Out(16)
        The instruction being fetched; after the end that of END.
    bad_token, program_end : Out(1)
        High from such a token, such an end, until ``flush``.
    """

    QUEUE = 8
    FIRST, TOKEN = 10, 1

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "start": In(1), "start_pc": In(16), "pass_": In(PassLayout()),
            "model": In(ModelLayout),
            "prog_en": In(1), "prog_addr": In(range(config.prog_depth)),
            "prog_data": In(unsigned(INSTRUCTION_BITS)),
            "out": Out(stream.Signature(FetchedInstruction())),
            "jobs": Out(stream.Signature(TileJob(config))),
            "token_addr": Out(range(config.context)), "token_data": In(Config.TOKEN_BITS),
            "store_done": In(1), "flush": In(1), "busy": Out(1), "pc": Out(16),
            "bad_token": Out(1), "program_end": Out(1)})

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.program = program = memory.Memory(
            shape=unsigned(INSTRUCTION_BITS), depth=c.prog_depth, init=[], attrs=NO_RW_CHECK)
        w, r = program.write_port(), program.read_port()
        m.submodules.queue = queue = Queue(FetchedInstruction(), depth=self.QUEUE)
        # The host's way across the chip is long.
        m.d.sync += [
            w.en.eq(self.prog_en), w.addr.eq(self.prog_addr), w.data.eq(self.prog_data)]
        # One bit more than an address can have: behind the last place comes none.
        pc = Signal(17)
        outside = Signal(reset_less=True)
        m.d.sync += outside.eq(pc >= c.prog_depth)
        m.d.comb += [
            self.pc.eq(pc), r.addr.eq(pc),
            self.out.valid.eq(queue.o.valid), self.out.payload.eq(queue.o.payload),
            queue.o.ready.eq(self.out.ready)]

        # The walk. `word` is the next instruction; `work` the one whose jobs are being made.
        word = Signal(InstructionLayout, reset_less=True)
        work, work_valid = Signal(InstructionLayout, reset_less=True), Signal()
        finished = Signal()                 # one cycle: all jobs of work are made
        stores = Signal(16)                 # STORE instructions queued in this pass
        needed = Signal(16, reset_less=True)        # stores, when work was fetched
        stored = Signal(16)                 # STORE instructions completed
        ahead = Signal(signed(17))          # later STOREs may be done as well
        m.d.sync += [word.eq(r.data), stored.eq(stored + self.store_done),
                     ahead.eq(stored - needed)]
        stores_done = ahead >= 0
        # What kind it is, in registers a cycle behind it.
        skipped, ends, has_jobs, is_store = (Signal(name=name, reset_less=True) for name in (
            "skipped", "ends", "has_jobs", "is_store"))
        is_end = word.op == Op.END
        goes_on = word.last & self.pass_.final
        m.d.sync += [
            skipped.eq(is_end & goes_on), ends.eq(is_end & ~goes_on),
            has_jobs.eq((word.src != Src.NONE) & (word.src <= Src.KV) & ~is_end),
            is_store.eq(word.op == Op.STORE)]
        m.d.comb += [queue.i.payload.instr.eq(word), queue.i.payload.pc.eq(pc)]
        # A cycle old: what WORD changes of them counts not before the next instruction.
        room, working = Signal(), Signal()
        m.d.sync += [room.eq(queue.i.ready), working.eq(work_valid)]
        with m.If(finished):
            m.d.sync += work_valid.eq(0)
        with m.FSM(name="walk") as walk:
            with m.State("STOPPED"):
                with m.If(self.start):
                    m.d.sync += [pc.eq(self.start_pc), stores.eq(0), stored.eq(0)]
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.next = "RAM"
            with m.State("RAM"):
                m.next = "KIND"
            with m.State("KIND"):
                m.next = "WORD"
            with m.State("WORD"):
                with m.If(outside):
                    m.next = "OUTSIDE"
                with m.Elif(skipped):
                    m.d.sync += pc.eq(pc + 1)
                    m.next = "ADDRESS"
                with m.Elif(room & ~(has_jobs & working)):
                    m.d.comb += queue.i.valid.eq(1)
                    m.d.sync += stores.eq(stores + is_store)
                    with m.If(has_jobs):
                        m.d.sync += [work.eq(word), needed.eq(stores), work_valid.eq(1)]
                    with m.If(ends):
                        m.next = "STOPPED"
                    with m.Else():
                        m.d.sync += pc.eq(pc + 1)
                        m.next = "ADDRESS"
            with m.State("OUTSIDE"):
                m.d.sync += self.program_end.eq(1)

        self._jobs(m, work, work_valid, finished, stores_done)
        m.d.comb += self.busy.eq(~walk.ongoing("STOPPED") | work_valid | self.jobs.valid
                                 | queue.o.valid)
        return ResetInserter(self.flush)(m)

    def _jobs(self, m, work, work_valid, finished, stores_done):
        c, pass_ = self.config, self.pass_
        m.submodules.multiplier = mul = Multiplier()
        a, b = (Signal.like(x, reset_less=True) for x in (mul.a, mul.b))
        m.d.comb += [mul.a.eq(a), mul.b.eq(b)]
        job = Signal(TileJob(c), reset_less=True)
        # A job takes several cycles to make, so it need not wait for the ready of the one before.
        free, put = Signal(), Signal()
        m.d.comb += [free.eq(~self.jobs.valid), self.jobs.payload.eq(job)]
        with m.If(put):
            m.d.sync += [self.jobs.valid.eq(1), job.mode.eq(work.mode),
                         job.packed.eq(work.packed & (work.src == Src.STREAM)),
                         job.header.eq(Mux(work.src == Src.KV, Header.NONE, work.header))]
        with m.Elif(self.jobs.ready):
            m.d.sync += self.jobs.valid.eq(0)

        # One row of row_beats beats, whatever rows says. Constant while work is.
        one_row, streaming = Signal(), work.src == Src.STREAM
        many = Signal.like(work.tiles, reset_less=True)
        m.d.sync += [one_row.eq(~streaming | (work.op == Op.NORM)),
                     many.eq(Mux(streaming, work.tiles, pass_.n))]

        # Of the weight stream, in chunks: ``addr`` as it is behind the stream's last tile.
        pointer, streamed = Signal(27, reset_less=True), Signal()
        addr = Signal(27, reset_less=True)
        m.d.sync += streamed.eq(0)
        with m.If(self.start):
            m.d.sync += pointer.eq(self.model.stream_addr)
        with m.Elif(streamed):
            m.d.sync += pointer.eq(addr)
        tiles = Countdown(m, 15, name="tiles", behind=True, reset=False, reset_flags=False)
        full_beats = Signal.like(job.beats, reset_less=True)
        last_beats = Signal.like(job.beats, reset_less=True)
        # KV: at most 4096 keys (13 bits) of row_beats (11 bits).
        keys_left, keys_after = (Signal(24, reset_less=True),
                                 Signal(signed(25), reset_less=True))
        token, vocab = (Signal(Config.TOKEN_BITS, reset_less=True, name=name)
                        for name in ("token", "vocab"))
        with m.If(self.start):
            m.d.sync += vocab.eq(self.model.vocab)
        unknown = Signal(reset_less=True)
        m.d.sync += unknown.eq(token >= vocab)
        # Beside a product that is a distance: where it counts from, and the sum, with nothing else
        # in the way from the multiplier.
        base, place = Signal(27, reset_less=True), Signal(27, reset_less=True)
        m.d.sync += place.eq(base + mul.p.as_unsigned()[:27])
        chunks = Signal(12, reset_less=True)        # of the tile to come
        # In the states that do not say otherwise.
        m.d.sync += [a.eq(token.as_signed()), b.eq(work.chunks)]

        with m.FSM(name="make"):
            with m.State("TURN"):
                # The first product starts at once.
                m.d.sync += [a.eq(Mux(work.src == Src.TABLE, pass_.pos0, work.rows)),
                             b.eq(Mux(work.src == Src.TABLE, work.chunks, work.row_beats))]
                m.d.sync += [addr.eq(Mux(streaming, pointer, work.addr)),
                             self.token_addr.eq(pass_.pos0)]
                with m.If(work_valid):
                    m.next = "SECOND"
                    with m.If(work.src == Src.TOKEN):
                        m.next = "TOKEN_RAM"
            with m.State("SECOND"):
                m.d.sync += [a.eq(Mux(work.src == Src.KV, pass_.ctx, work.last_rows)),
                             b.eq(work.row_beats), base.eq(addr)]
                m.next = "WAIT_1"
                with m.If(streaming & (work.tiles == 0)):
                    m.d.comb += finished.eq(1)
                    m.next = "TURN"
            with m.State("WAIT_1"):
                m.d.sync += tiles.load_all(many)
                m.next = "WAIT_2"
            with m.State("WAIT_2"):
                m.next = "PRODUCT_1"
            with m.State("PRODUCT_1"):
                m.d.sync += full_beats.eq(mul.p)
                m.next = "PRODUCT_2"
            with m.State("PRODUCT_2"):
                m.d.sync += [last_beats.eq(mul.p), keys_left.eq(mul.p)]
                with m.If(work.src == Src.TABLE):
                    m.d.sync += addr.eq(place)
                m.next = "TILE_SIZE"
                with m.If(work.src == Src.KV):
                    m.next = "KV_STORES"
            with m.State("TILE_SIZE"):
                m.d.sync += chunks.eq(Mux(tiles.last & streaming, work.last_chunks, work.chunks))
                m.next = "TILE"
            with m.State("TILE"):
                with m.If(free):
                    m.d.comb += put.eq(1)
                    m.d.sync += [
                        job.addr.eq(addr), job.chunks.eq(chunks),
                        job.beats.eq(Mux(one_row, work.row_beats,
                                         Mux(tiles.last, last_beats, full_beats))),
                        job.rows.eq(Mux(one_row, 1, Mux(tiles.last, work.last_rows, work.rows))),
                        addr.eq(addr + chunks)]
                    m.d.sync += tiles.step()
                    m.next = "TILE_SIZE"
                    m.d.sync += streamed.eq(streaming)
                    with m.If(tiles.last):
                        m.d.comb += finished.eq(1)
                        m.next = "TURN"
            with m.State("KV_STORES"):
                m.d.sync += keys_after.eq(keys_left - full_beats)
                with m.If(stores_done):
                    m.next = "KV_TILE"
            with m.State("KV_COMPARE"):
                m.d.sync += keys_after.eq(keys_left - full_beats)
                m.next = "KV_TILE"
            with m.State("KV_TILE"):
                more = Signal()
                size = Mux(more, full_beats, keys_left)
                m.d.comb += more.eq(keys_after > 0)
                with m.If(free):
                    m.d.comb += put.eq(1)
                    m.d.sync += [job.addr.eq(addr), job.chunks.eq(size), job.beats.eq(size),
                                 job.rows.eq(0), addr.eq(addr + full_beats),
                                 keys_left.eq(keys_after)]
                    m.next = "KV_COMPARE"
                    with m.If(~more):
                        m.d.comb += finished.eq(1)
                        m.next = "TURN"
            with m.State("TOKEN_RAM"):
                m.d.sync += tiles.load_all(many)
                m.next = "TOKEN_REGISTER"
            with m.State("TOKEN_REGISTER"):
                m.next = "TOKEN"
            with m.State("TOKEN"):
                # The read of the next token starts here; 6 cycles later its id is there.
                m.d.sync += [token.eq(self.token_data), a.eq(self.token_data.as_signed()),
                             self.token_addr.eq(self.token_addr + 1)]
                m.next = "TOKEN_PRODUCT"
            with m.State("TOKEN_PRODUCT"):
                # The multiplier takes the 18 bits as signed: correct by 2**18 * chunks.
                m.d.sync += base.eq(addr + Mux(token[-1], work.chunks << 18, 0))
                m.next = "TOKEN_WAIT"
            with m.State("TOKEN_WAIT"):
                m.next = "TOKEN_PIPE_1"
            with m.State("TOKEN_PIPE_1"):
                m.next = "TOKEN_PIPE_2"
            with m.State("TOKEN_PIPE_2"):
                m.next = "TOKEN_TILE"
                with m.If(unknown):
                    m.next = "TOKEN_UNKNOWN"
            with m.State("TOKEN_UNKNOWN"):
                m.d.sync += self.bad_token.eq(1)
            with m.State("TOKEN_TILE"):
                with m.If(free):
                    m.d.comb += put.eq(1)
                    m.d.sync += [
                        job.addr.eq(place), job.chunks.eq(work.chunks),
                        job.beats.eq(work.row_beats), job.rows.eq(1)]
                    m.d.sync += tiles.step()
                    m.next = "TOKEN"
                    with m.If(tiles.last):
                        m.d.comb += finished.eq(1)
                        m.next = "TURN"
