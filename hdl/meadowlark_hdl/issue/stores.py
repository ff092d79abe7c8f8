"""STORE: words of all tokens to the store unit, token after token."""
from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..compute.tiling_engine import store_depth
from ..config import Config
from ..isa import Op
from ..lib.countdown import Countdown
from ..lib.pipe import reg
from ..signatures import StoreCommand
from .slots import Slots
from .walker import Walker


class Stores(Walker):
    """Tells the store unit what comes, then asks the lanes for it, a part of a word at a time.

    Timing: row_beats * W / store_bytes cycles a token while there is room, and ``STORE``.

    Members
    -------
    (beside those of :class:`Walker`)
    cmd : Out(stream of StoreCommand)
    room : In       Parts that may still be asked for; looked at a cycle late.
    """

    STORE = 4
    PRESENTS = ("x_addr", "st_en", "st_lane", "st_part", "wait_store")

    def __init__(self, config: Config):
        super().__init__(config, settle={Op.STORE: 0},
                         cmd=Out(stream.Signature(StoreCommand())),
                         room=In(range(store_depth(config) + 1)))

    def elaborate(self, platform):
        m = Module()
        config, c = self.config, self.control
        instr, pass_, model = self.job.instr, self.job.pass_, self.job.model
        log2_parts = ceil_log2(config.W // config.store_bytes)
        parts = Countdown(m, 11, name="parts", behind=True, reset=False)    # of the token's words
        slots = Slots(m, config.P)
        x_block, x_addr = reg(13, "x_block"), reg(13, "x_addr")             # word x of the block
        # What is left has 0 in its low bits in a word's last part.
        word_done = ~parts.left[:log2_parts].any()
        # Up to three parts are on their way to the count of the room.
        with_room = Signal()
        # row_beats = head_dim / W is a power of two.
        log2_words = reg(3, "log2_words")
        m.d.sync += [
            with_room.eq(self.room[2:].any()),
            log2_words.eq(model.head_log2 - ceil_log2(config.W)),
            self.cmd.payload.addr.eq(instr.addr + (pass_.pos0 << log2_words)),
            self.cmd.payload.chunks.eq(pass_.n << log2_words)]
        m.d.comb += [c.x_addr.eq(x_addr), c.st_lane.eq(slots.lane),
                     c.st_part.eq(~parts.left[:log2_parts])]

        words = instr.row_beats << log2_parts
        with m.If(self.idle):
            m.d.sync += [slots.load(pass_.n), parts.load_all(words), x_addr.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.req):
                    m.d.sync += self.idle.eq(0)
                    m.next = "COMMAND"
            with m.State("COMMAND"):
                m.d.comb += [self.cmd.valid.eq(1), c.wait_store.eq(1)]
                m.d.sync += [x_block.eq(instr.x), x_addr.eq(instr.x)]
                with m.If(self.cmd.ready):
                    m.next = "WORDS"
            with m.State("WORDS"):
                m.d.comb += c.wait_store.eq(~with_room)
                with m.If(with_room):
                    m.d.comb += c.st_en.eq(1)
                    m.d.sync += [parts.step(), x_addr.eq(x_addr + word_done)]
                    with m.If(parts.last):
                        m.d.sync += [parts.load_all(words), slots.step(), x_addr.eq(x_block)]
                        with m.If(slots.last_lane):
                            m.d.sync += [x_block.eq(x_block + model.block_words),
                                         x_addr.eq(x_block + model.block_words)]
                        with m.If(slots.last):
                            m.d.sync += self.idle.eq(1)
                            m.next = "IDLE"
        return m
