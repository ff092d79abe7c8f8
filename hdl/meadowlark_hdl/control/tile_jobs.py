"""Makes the tile jobs of an instruction: where its tiles lie, and how large they are."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..isa import Header, Op, Src
from ..lib.pipe import reg
from ..signatures import InstructionLayout, ModelLayout, PassLayout, PlaceWrite, TileJob
from ..tech.cells import FACTOR_BITS, Multiplier
from .tile_walks import KeyTiles, RowTiles, TokenRows

#: An instruction that needs tiles, the STOREs before it in the pass, and the keys that a KV reads:
#: position of the first, how many, and the base of their cache.
WorkLayout = data.StructLayout({"instr": InstructionLayout, "stores": 16, "first": 13, "keys": 13,
                                "base": 27})


class TileJobs(wiring.Component):
    """One instruction at a time becomes tile jobs (``Src``; rows, beats, chunks as in the TileJob):

    - STREAM: ``tiles`` tiles from the stream pointer on, which starts at ``model.stream_addr``.
      All have rows and chunks, the last one last_rows and last_chunks; rows * row_beats beats.
    - TABLE: n tiles, ``addr + (pos0 + t) * chunks``. TOKEN: ``addr + token(pos0 + t) * chunks``.
      In a batch TABLE: ``addr + (pos0 + position(t)) * chunks``.
    - KV: ``keys`` keys of row_beats chunks from ``addr + base + first * row_beats`` on, ``chunks``
      a tile, the last with the rest; no headers. Waits for the stores that came before.
      FILL: as many as ``spilled`` scores take, two chunks a beat, from ``addr`` on.

    Tiles of TABLE, TOKEN and NORM have one row of row_beats beats whatever ``rows`` says. Products
    come from one :class:`~meadowlark_hdl.tech.cells.Multiplier`.

    Timing: the first job 8 cycles after the instruction (TOKEN: 9), further ones every 2 cycles
    (TOKEN: 6). In a batch TABLE is as TOKEN.

    Parameters
    ----------
    config : Config

    Members
    -------
    start : In(1)               Pulse, at rest: a pass begins; ``model`` counts in that cycle.
    model, pass_ : In(ModelLayout), In(PassLayout)
    places : In(PlaceWrite)     Where the tokens of a batch belong.
    work : In(stream of WorkLayout)
                                STREAM, TABLE, TOKEN or KV.
    store_done : In(1)          One cycle for each STORE whose data is in memory; in a batch for
                                each token of it.
    spilled : In(13)            Only with ``config.gemm``, see :class:`.Fetch`.
    jobs : Out(stream of TileJob)
    token_addr, token_data : Out(range(context)), In(19)
                                Read port of the token memory.
    bad_token : Out(1)          High from a token that is none until reset; no job comes any more.
    busy : Out(1)               From the instruction to the transfer of its last job.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "start": In(1), "model": In(ModelLayout), "pass_": In(PassLayout()),
            "places": In(PlaceWrite(config)),
            "work": In(stream.Signature(WorkLayout)), "store_done": In(1),
            "jobs": Out(stream.Signature(TileJob(config))),
            "token_addr": Out(range(config.context)), "token_data": In(Config.TOKEN_BITS),
            "bad_token": Out(1), "busy": Out(1)} | ({"spilled": In(13)} if config.gemm else {}))

    def elaborate(self, platform):
        m = Module()
        config, pass_ = self.config, self.pass_
        m.submodules.rows = rows = RowTiles(config)
        m.submodules.keys = keys = KeyTiles(config)
        m.submodules.tokens = tokens = TokenRows(config)
        work, needed, working = reg(InstructionLayout, "work"), reg(16, "needed"), Signal()
        first_key, all_keys = reg(13, "first_key"), reg(13, "all_keys")
        cache = reg(27, "cache")
        # In a batch rows of positions come one by one, as those of tokens do.
        scattered = reg(1, "scattered")
        wiring.connect(m, wiring.flipped(self.places), tokens.places)
        new = self.work.payload.instr
        put, finished = Signal(), Signal()  # one cycle: a job, all of them are made
        m.d.comb += [self.work.ready.eq(~working), self.busy.eq(working | self.jobs.valid)]
        with m.If(finished):
            m.d.sync += working.eq(0)
        with m.If(self.work.valid & self.work.ready):
            m.d.sync += [work.eq(self.work.payload.instr), needed.eq(self.work.payload.stores),
                         first_key.eq(self.work.payload.first),
                         all_keys.eq(self.work.payload.keys), working.eq(1),
                         cache.eq(self.work.payload.base),
                         scattered.eq((new.src == Src.TABLE) & pass_.batch)]

        # In chunks: of the next tile, and behind the last one of the stream.
        pointer, addr, streamed = reg(27, "pointer"), reg(27, "addr"), Signal()
        vocab = reg(Config.TOKEN_BITS, "vocab")
        streaming = work.src == Src.STREAM
        m.d.sync += streamed.eq(put & streaming)
        with m.If(self.start):
            m.d.sync += [pointer.eq(self.model.stream_addr), vocab.eq(self.model.vocab)]
        with m.Elif(streamed):
            m.d.sync += pointer.eq(addr)

        # Beside a product that is a distance: where it counts from, and the sum, with nothing else
        # in the way from the multiplier.
        m.submodules.multiplier = mul = Multiplier()
        a, b = reg(mul.a.shape(), "a"), reg(mul.b.shape(), "b")
        base, place, missing = reg(27, "base"), reg(27, "place"), reg(27 - FACTOR_BITS, "missing")
        full_beats, last_beats = (reg(rows.full_beats.shape(), name)
                                  for name in ("full_beats", "last_beats"))
        # The multiplier takes the low bits of a token, and those as signed: what it misses.
        low, high = tokens.token[FACTOR_BITS - 1:]
        m.d.sync += missing.eq(Mux(low & high, work.chunks << 1, Mux(low | high, work.chunks, 0)))
        m.d.sync += place.eq(base + mul.p.as_unsigned()[:27])
        m.d.comb += [
            mul.a.eq(a), mul.b.eq(b),
            rows.instr.eq(work), rows.tokens.eq(pass_.n), rows.full_beats.eq(full_beats),
            rows.last_beats.eq(last_beats),
            keys.begin.eq(self.start), keys.store_done.eq(self.store_done),
            keys.stores.eq(needed), keys.beats.eq(mul.p), keys.full_beats.eq(work.chunks),
            tokens.pos0.eq(pass_.pos0), tokens.n.eq(pass_.n), tokens.vocab.eq(vocab),
            tokens.positions.eq(scattered), tokens.token_data.eq(self.token_data),
            self.token_addr.eq(tokens.token_addr),
            self.bad_token.eq(tokens.bad_token),
            finished.eq(rows.done | keys.done | tokens.done)]
        of_cache = work.src == Src.KV
        if config.gemm:
            most, fill = config.spilled_keys - 1, work.op == Op.FILL
            of_cache &= ~fill
            m.d.comb += [keys.fill.eq(fill), keys.filled.eq(
                (self.spilled + most) >> exact_log2(most + 1))]
            m.d.comb += keys.full_beats.eq(work.chunks >> fill)

        # In the states that do not say otherwise.
        m.d.sync += [a.eq(tokens.token), b.eq(work.chunks)]
        with m.FSM(name="make"):
            with m.State("TURN"):
                # The first product starts at once.
                with m.Switch(work.src):
                    with m.Case(Src.TABLE):
                        m.d.sync += a.eq(pass_.pos0)
                    with m.Case(Src.KV):
                        m.d.sync += a.eq(first_key)
                    with m.Default():
                        m.d.sync += a.eq(work.rows)
                m.d.sync += [b.eq(Mux(work.src == Src.TABLE, work.chunks, work.row_beats)),
                             addr.eq(Mux(streaming, pointer, work.addr))]
                with m.If(working):
                    m.next = "SECOND"
                    with m.If((work.src == Src.TOKEN) | scattered):
                        m.d.comb += tokens.start.eq(1)
                        m.next = "TILES"
            with m.State("SECOND"):
                m.d.sync += [a.eq(Mux(work.src == Src.KV, all_keys, work.last_rows)),
                             b.eq(work.row_beats),
                             base.eq(addr + Mux(of_cache, cache, 0))]
                m.next = "WAIT_1"
                with m.If(streaming & (work.tiles == 0)):
                    m.d.comb += finished.eq(1)
                    m.next = "TURN"
            with m.State("WAIT_1"):
                m.next = "WAIT_2"
            with m.State("WAIT_2"):
                m.next = "PRODUCT_1"
            with m.State("PRODUCT_1"):
                m.d.sync += full_beats.eq(mul.p)
                m.next = "PRODUCT_2"
            with m.State("PRODUCT_2"):
                m.d.sync += last_beats.eq(mul.p)
                m.d.comb += [keys.start.eq(work.src == Src.KV), rows.start.eq(work.src != Src.KV)]
                with m.If((work.src == Src.TABLE) | (work.src == Src.KV)):
                    m.d.sync += addr.eq(place)
                m.next = "TILES"
            with m.State("TILES"):
                m.d.sync += base.eq(work.addr + (missing << FACTOR_BITS))
                with m.If(finished):
                    m.next = "TURN"

        self._offer(m, put, work, addr, place, rows, keys, tokens)
        return m

    def _offer(self, m: Module, put, work, addr, place, rows, keys, tokens) -> None:
        """The tile of a walk as a job, with ``put``. It takes several cycles to make one, so it
        need not wait for the ready of the one before."""
        job = reg(TileJob(self.config), "job")
        m.d.comb += [
            self.jobs.payload.eq(job), put.eq((rows.tile | keys.tile | tokens.tile)
                                              & ~self.jobs.valid),
            *(walk.taken.eq(put) for walk in (rows, keys, tokens))]
        # A token's tile is as large as one of a table.
        size = keys.size if not self.config.gemm else keys.size << (work.op == Op.FILL)
        with m.If(put):
            m.d.sync += [
                self.jobs.valid.eq(1), job.mode.eq(work.mode),
                job.addr.eq(Mux(tokens.tile, place, addr)),
                addr.eq(addr + rows.chunks),
                job.chunks.eq(Mux(keys.tile, size, rows.chunks)),
                job.beats.eq(Mux(keys.tile, keys.size, rows.beats)),
                job.rows.eq(Mux(keys.tile, 0, rows.rows)),
                job.packed.eq(work.packed & (work.src == Src.STREAM)),
                job.header.eq(Mux(keys.tile, Header.NONE, work.header))]
        with m.Elif(self.jobs.ready):
            m.d.sync += self.jobs.valid.eq(0)
