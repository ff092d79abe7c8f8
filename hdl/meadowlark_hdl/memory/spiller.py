"""Scores and probabilities that leave the lanes -> parts of words for the store unit."""
from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import Config
from ..lib.pipe import reg
from ..lib.queues import Queue
from ..signatures import StoreCommand


class Spiller(wiring.Component):
    """Packs what a SPILL gives, 16 bits of each lane for each key, and hands it to the store unit
    between the STOREs of scratch memory.

    Source: the baseline that MEADOW, arXiv:2503.11663, is measured against (GEMM).
    Timing: a value a cycle. ``room`` is known a cycle late; it leaves place for ``LATE`` cycles of
    values, which is how long they are on their way.

    Parameters
    ----------
    config : Config
        With ``gemm``.

    Members
    -------
    start : In(1)           Pulse, while ``idle``: a SPILL begins.
    addr, rows : In(27), In(13)     With it: the first chunk in memory; keys, 1..
    valid, value : In(1), In(16)    Results of lanes, P for each key, lane 0 first. Others than
                            those of a SPILL are let pass.
    room : Out(1)           A key's values may set out.
    from_scratch, scratch_words : In(stream)    What the store unit gets else.
    store : Out(stream of StoreCommand), words : Out(stream of 8 * store_bytes bits)
                            Keys fill up two chunks, the last ones with zeros.
    idle : Out(1)           All of it is handed on.
    """

    DEPTH = 32

    def __init__(self, config: Config, *, late: int):
        self.config, self.LATE = config, late
        words = stream.Signature(8 * config.store_bytes)
        super().__init__({
            "start": In(1), "addr": In(27), "rows": In(13), "valid": In(1), "value": In(16),
            "room": Out(1), "from_scratch": In(stream.Signature(StoreCommand())),
            "scratch_words": In(words), "store": Out(stream.Signature(StoreCommand())),
            "words": Out(words), "idle": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        config, per_part = self.config, self.config.store_bytes // 2
        log2_p, log2_keys = exact_log2(config.P), exact_log2(config.spilled_keys)
        m.submodules.queue = queue = Queue(8 * config.store_bytes, depth=self.DEPTH)
        left, pad = Signal(13 + log2_p), Signal(log2_keys + log2_p)     # values to come; zeros
        command, offered = reg(StoreCommand(), "command"), Signal()
        part, count = reg(8 * config.store_bytes, "part"), Signal(range(per_part))
        level, full = Signal(range(self.DEPTH + 1)), Signal()
        take, come, zero = Signal(), Signal(), Signal()
        m.d.comb += [
            come.eq(self.valid & (left != 0)),
            zero.eq((left == 0) & (pad != 0) & (level < self.DEPTH - 2)),
            queue.i.valid.eq(full), queue.i.payload.eq(part),
            take.eq(queue.o.valid & queue.o.ready)]
        m.d.sync += [full.eq(0), level.eq(level + full - take),
                     self.room.eq(level < self.DEPTH - self._late_parts())]
        with m.If(come | zero):
            m.d.sync += [part.eq(Cat(part[16:], Mux(come, self.value, 0))), count.eq(count + 1),
                         full.eq(count == per_part - 1)]
        with m.If(come):
            m.d.sync += left.eq(left - 1)
        with m.If(zero):
            m.d.sync += pad.eq(pad - 1)
        with m.If(self.start):
            keys = (self.rows + config.spilled_keys - 1) >> log2_keys
            m.d.sync += [left.eq(self.rows << log2_p), pad.eq((-self.rows)[:log2_keys] << log2_p),
                         command.addr.eq(self.addr), command.chunks.eq(keys << 1), offered.eq(1),
                         self.idle.eq(0)]
        with m.Elif((left == 0) & (pad == 0) & ~full & (level == 0) & ~offered):
            m.d.sync += self.idle.eq(1)

        for ours, valid, theirs, to in (
                (command, offered, self.from_scratch, self.store),
                (queue.o.payload, queue.o.valid, self.scratch_words, self.words)):
            m.d.comb += [to.payload.eq(Mux(self.idle, theirs.payload, ours)),
                         to.valid.eq(Mux(self.idle, theirs.valid, valid)),
                         theirs.ready.eq(self.idle & to.ready)]
        m.d.comb += queue.o.ready.eq(~self.idle & self.words.ready)
        with m.If(~self.idle & self.store.ready & ~self.start):
            m.d.sync += offered.eq(0)
        return m

    def _late_parts(self) -> int:
        """Parts that may come after ``room`` is gone."""
        config = self.config
        keys = -(-self.LATE // config.row_cycles) + 1
        return -(-2 * keys * config.P // config.store_bytes) + 1
