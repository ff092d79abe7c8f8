"""How an instruction's tiles follow each other, by where they come from.

Each walk is told to ``start``, then offers a ``tile`` until it is ``taken``, and is ``done`` with
the last one. What a walk is told of an instruction is constant from ``start`` to ``done``.
"""
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..isa import Op, Src
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from ..lib.table import Table
from ..signatures import InstructionLayout, PlaceWrite
from .token_memory import TokenMemory


class RowTiles(wiring.Component):
    """Tiles of the weight stream, or of a table: rows one behind the other.

    All have rows and chunks, the last one of a stream last_rows and last_chunks. Those of TABLE and
    NORM have one row of row_beats beats whatever ``rows`` says.

    Timing: ``start`` to the first tile 2 cycles, ``taken`` to the next one 2.

    Parameters
    ----------
    config : Config

    Members
    -------
    start : In(1)               Pulse, at rest; at least 2 cycles after a new instruction.
    instr : In(InstructionLayout)
    tokens : In(13)             Of the pass: tiles of a table.
    full_beats, last_beats : In Of a tile of rows, and of last_rows.
    chunks, beats, rows : Out   As in the TileJob; at rest those of a table.
    tile, taken, done : Out(1), In(1), Out(1)
                                There is a tile; pulse: it is taken; it was the last one.
    """

    def __init__(self, config: Config):
        beats = range(config.tile_beats + 1)
        super().__init__({
            "start": In(1), "instr": In(InstructionLayout), "tokens": In(13),
            "full_beats": In(beats), "last_beats": In(beats),
            "chunks": Out(12), "beats": Out(beats), "rows": Out(8),
            "tile": Out(1), "taken": In(1), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        instr, streaming = self.instr, self.instr.src == Src.STREAM
        one_row, many = Signal(), reg(instr.tiles.shape(), "many")
        chunks = reg(12, "chunks")
        tiles = Countdown(m, many.shape(), name="tiles", behind=True, reset=False,
                          reset_flags=False)
        m.d.sync += [one_row.eq(~streaming | (instr.op == Op.NORM)),
                     many.eq(Mux(streaming, instr.tiles, self.tokens)),
                     chunks.eq(Mux(tiles.last & streaming, instr.last_chunks, instr.chunks))]
        m.d.comb += [
            self.chunks.eq(chunks),
            self.beats.eq(Mux(one_row, instr.row_beats,
                              Mux(tiles.last, self.last_beats, self.full_beats))),
            self.rows.eq(Mux(one_row, 1, Mux(tiles.last, instr.last_rows, instr.rows)))]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += tiles.load_all(many)
                with m.If(self.start):
                    m.next = "SIZE"
            with m.State("SIZE"):
                m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += self.tile.eq(1)
                with m.If(self.taken):
                    m.d.sync += tiles.step()
                    m.next = "SIZE"
                    with m.If(tiles.last):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
        return m


class KeyTiles(wiring.Component):
    """Tiles of the KV cache: as many keys in each, the last one with the rest.

    Waits until as many STOREs are done as came before the instruction.

    Timing: ``start`` to the first tile 2 cycles, ``taken`` to the next one 2.

    Parameters
    ----------
    config : Config

    Members
    -------
    begin : In(1)               Pulse: a pass begins, nothing has been stored.
    store_done : In(1)          One cycle for each STORE instruction whose data is in memory.
    start : In(1)               Pulse, at rest.
    stores : In(16)             STORE instructions before this one.
    beats : In(24)              Of all keys; counts with ``start``.
    full_beats : In             Of a full tile.
    fill, filled : In(1), In    Only with ``config.gemm``: not ``beats`` but these, once the STOREs
                                are done.
    size : Out                  Beats of the tile.
    tile, taken, done : Out(1), In(1), Out(1)
                                There is a tile; pulse: it is taken; it was the last one.
    """

    def __init__(self, config: Config):
        beats, self.gemm = range(config.tile_beats + 1), config.gemm
        super().__init__({
            **({"fill": In(1), "filled": In(13)} if config.gemm else {}),
            "begin": In(1), "store_done": In(1), "start": In(1), "stores": In(16),
            "beats": In(24), "full_beats": In(beats), "size": Out(beats),
            "tile": Out(1), "taken": In(1), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        stored, ahead = Signal(16), Signal(signed(17))      # later STOREs may be done as well
        left, after, more = reg(24, "left"), reg(24, "after"), reg(1, "more")
        m.d.sync += [ahead.eq(stored - self.stores), after.eq(left - self.full_beats),
                     more.eq(left > self.full_beats),
                     stored.eq(Mux(self.begin, 0, stored + self.store_done))]
        m.d.comb += self.size.eq(Mux(more, self.full_beats, left))
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += left.eq(self.beats)
                with m.If(self.start):
                    m.next = "STORED"
            with m.State("STORED"):
                with m.If(ahead >= 0):
                    m.next = "TILE"
                    if self.gemm:
                        with m.If(self.fill):
                            m.d.sync += left.eq(self.filled)
                            m.next = "LEFT"
            with m.State("LEFT"):
                m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += self.tile.eq(1)
                with m.If(self.taken):
                    m.d.sync += left.eq(after)
                    m.next = "LEFT"
                    with m.If(~more):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
        return m


class TokenRows(wiring.Component):
    """Reads the tokens of a pass from the token memory; none that is beyond the vocabulary. Or the
    positions of the tokens of a batch.

    Timing: ``start`` to the first tile ``FIRST`` cycles; ``taken`` to the next one
    ``AFTER_TOKEN + 1``.

    Parameters
    ----------
    config : Config

    Members
    -------
    start : In(1)               Pulse, at rest; ``pos0``, ``n``, ``vocab`` are constant from then
                                to ``done``, and ``pos0`` from the cycle before.
    pos0, n : In(13), In(13)    The positions of the tokens: n of them, 1..
    vocab : In(19)
    places : In(PlaceWrite)     Where the tokens of a batch belong, ``pos0`` less.
    positions : In(1)           Of the batch, not its tokens; constant likewise.
    token_addr, token_data : Out(range(context)), In(19)
                                Read port of the token memory.
    token : Out(19)             The tile's row, from ``AFTER_TOKEN`` cycles before ``tile``.
    tile, taken, done : Out(1), In(1), Out(1)
                                There is a tile; pulse: it is taken; it was the last one.
    bad_token : Out(1)          A token is none; nothing comes any more until reset.
    """

    AFTER_TOKEN = 5
    FIRST = TokenMemory.LATENCY + 1 + AFTER_TOKEN

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "start": In(1), "pos0": In(13), "n": In(13), "vocab": In(Config.TOKEN_BITS),
            "places": In(PlaceWrite(config)), "positions": In(1),
            "token_addr": Out(range(config.context)), "token_data": In(Config.TOKEN_BITS),
            "token": Out(Config.TOKEN_BITS), "tile": Out(1), "taken": In(1), "done": Out(1),
            "bad_token": Out(1)})

    def elaborate(self, platform):
        m = Module()
        rows = Countdown(m, 13, name="rows", behind=True, reset=False, reset_flags=False)
        token, unknown = reg(Config.TOKEN_BITS, "token"), reg(1, "unknown")
        m.submodules.table = table = Table(13, self.config.P)
        slot, placed = Signal(range(self.config.P)), reg(13, "placed")
        number = Mux(self.positions, placed, self.token_data)
        m.d.comb += [table.en.eq(self.places.en), table.at.eq(self.places.addr),
                     table.entry.eq(self.places.data.position), table.addr.eq(slot)]
        m.d.sync += placed.eq(table.now + self.pos0)
        m.d.sync += unknown.eq((token >= self.vocab) & ~self.positions)
        m.d.comb += self.token.eq(token)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [self.token_addr.eq(self.pos0), slot.eq(0)]
                with m.If(self.start):
                    m.next = "RAM"
            with m.State("RAM"):
                m.d.sync += rows.load_all(self.n)
                m.next = "REGISTER"
            with m.State("REGISTER"):
                m.next = "TOKEN"
            with m.State("TOKEN"):
                # The read of the next token starts here; 6 cycles later its id is there.
                m.d.comb += self.token.eq(number)
                m.d.sync += [token.eq(number), self.token_addr.eq(self.token_addr + 1),
                             slot.eq(slot + 1)]
                m.next = "AFTER_1"
            for cycle in range(1, self.AFTER_TOKEN - 1):
                with m.State(f"AFTER_{cycle}"):
                    m.next = f"AFTER_{cycle + 1}"
            with m.State(f"AFTER_{self.AFTER_TOKEN - 1}"):
                m.next = "TILE"
                with m.If(unknown):
                    m.next = "UNKNOWN"
            with m.State("UNKNOWN"):
                m.d.sync += self.bad_token.eq(1)
            with m.State("TILE"):
                m.d.comb += self.tile.eq(1)
                with m.If(self.taken):
                    m.d.sync += rows.step()
                    m.next = "TOKEN"
                    with m.If(rows.last):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
        return m
