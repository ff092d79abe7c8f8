"""Coded chunks to plain ones: the layer below the modes of the decoder."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..lib.pipe import delay, reg
from ..config import Config
from ..lib.countdown import Countdown
from ..lib.fanout import near
from ..lib.queues import Queue
from .checksum import Checksum
from .lane import Lane, TableWrite, pieces
from .packing_golden import CLASSES, CLASS_WORDS, PREFIX, TABLE_BYTES, head_words, phases
from .refill import COUNT_BITS, Refill


class PreambleReader(wiring.Component):
    """The head of a segment: fields to registers, tables to the lanes.

    Timing: 4 bytes a cycle, and 2 cycles a chunk; besides 2 for the checksum, and with a table 64
    for its classes.

    Parameters
    ----------
    config : Config
        W.
    meadow : bool
        MEADOW's packing is there; else a preamble of it is wrong. entropy: likewise.

    Members
    -------
    start : In(1)
        High for one cycle while ``done``; a preamble comes.
    done : Out(1)
        Nothing to do: no chunk is taken. Fields hold until the next start.
    wrong : Out(1)
        What was read last is no preamble.
    i : In(stream of 8 * W bits)
    sound : In(1)
        The chunks taken since ``start`` end with their CRC; as late as :class:`.Checksum` says.
    meadow, log2_c, log2_n, steps, words : Out
        The fields.
    tables : Out(TableWrite)
    """

    def __init__(self, config: Config, *, entropy: bool = True, meadow: bool = True):
        self.config, self.with_entropy, self.with_meadow = config, entropy, meadow
        super().__init__({
            "start": In(1), "done": Out(1, init=1), "wrong": Out(1),
            "i": In(stream.Signature(8 * config.W)), "sound": In(1),
            "meadow": Out(1), "log2_c": Out(2), "log2_n": Out(3), "steps": Out(COUNT_BITS),
            "words": Out(COUNT_BITS), "tables": Out(TableWrite())})

    def elaborate(self, platform):
        m = Module()
        W = self.config.W
        hold = Signal(8 * W, reset_less=True)
        in_hold = Countdown(m, range(W // 4 + 1), name="hold", last=False)
        word, there, eat = hold[:32], in_hold.some, Signal()
        reading, new = Signal(), Signal()
        symbols = Countdown(m, range(1 << 16), name="symbols", last=False, reset=False)
        # A chunk is asked for when there is nothing of the one before, and by a register.
        take = self.i.valid & self.i.ready
        m.d.sync += self.i.ready.eq(reading & ~there & ~take)
        # What is offered is copied as long as there is nothing else: only ``there`` waits for it.
        with m.If(~there):
            m.d.sync += [hold.eq(self.i.payload), in_hold.load(W // 4, some=take)]
        with m.Elif(eat):
            m.d.sync += [hold.eq(hold >> 32), in_hold.step()]

        number, settle = Signal(range(head_words(W))), Signal(range(Checksum.LATENCY))
        unit, at_class = Signal(PREFIX), Signal()
        with m.FSM():
            with m.State("REST"):
                with m.If(self.start):
                    m.d.sync += [self.done.eq(0), self.wrong.eq(0), number.eq(0), there.eq(0)]
                    m.next = "FIELDS"
            with m.State("FIELDS"):
                m.d.comb += [reading.eq(1), eat.eq(there)]
                m.d.sync += settle.eq(Checksum.LATENCY - 2)
                with m.If(eat):
                    m.d.sync += number.eq(number + 1)
                    with m.Switch(number):
                        with m.Case(0):
                            m.d.sync += [self.meadow.eq(word[0]), new.eq(word[1]),
                                         self.log2_c.eq(word[2:4]), self.log2_n.eq(word[4:7]),
                                         symbols.load(word[16:])]
                        with m.Case(1):
                            m.d.sync += self.steps.eq(word)
                        with m.Case(2):
                            m.d.sync += self.words.eq(word)
                        with m.Case(head_words(W) - 1):
                            m.next = "SETTLE"
            with m.State("SETTLE"):                     # a word is eaten a cycle after its chunk
                m.d.sync += settle.eq(settle - 1)
                with m.If(settle == 1):
                    m.next = "CHECK"
            with m.State("CHECK"):
                known = Mux(self.meadow, int(self.with_meadow), int(self.with_entropy)).bool()
                good = self.sound & known & (self.log2_c <= Mux(self.meadow, 2, 0)) \
                    & (self.steps != 0)
                m.d.sync += [self.wrong.eq(~good), unit.eq(0)]
                m.next = "END"
                with m.If(good & new):
                    m.next = "CLASSES"
            with m.State("CLASSES"):
                m.d.comb += [reading.eq(1), eat.eq(there & unit[:3].all()), at_class.eq(there)]
                with m.If(there):
                    m.d.sync += [unit.eq(unit + 1), self.tables.word_addr.eq(0)]
                    with m.If(unit.all()):
                        m.next = "SYMBOLS"
            with m.State("SYMBOLS"):
                m.d.comb += [reading.eq(symbols.some), eat.eq(there & symbols.some),
                             self.tables.word_en.eq(eat)]
                with m.If(eat):
                    m.d.sync += [symbols.step(),
                                 self.tables.word_addr.eq(self.tables.word_addr + 1)]
                with m.If(~symbols.some):
                    m.next = "END"
            with m.State("END"):
                m.d.sync += self.done.eq(1)
                m.next = "REST"

        # Classes: a length, how many ranks it has, then its entry with the sum of those before.
        length, late = reg(4, "length"), reg(4, "late")
        ends = reg(PREFIX, "ends")              # this many low bits of the unit are ones
        grows, base = reg(range(1 << 8), "grows"), reg(8, "base")
        valid = delay(m, at_class, 2, name="valid", reset=True)
        m.d.sync += [
            length.eq(word.word_select(unit[:3], 4)), late.eq(length),
            ends.eq(Cat(unit[:k + 1].all() for k in range(PREFIX)))]
        with m.Switch(length):
            for n in range(16):
                with m.Case(n):
                    m.d.sync += grows.eq(ends[PREFIX - 1 - n] if n < PREFIX
                                         else 1 << min(n - PREFIX, 7))
        address = delay(m, unit, 2, name="address")
        with m.If(valid):
            m.d.sync += base.eq(base + grows)
        with m.If(self.start):
            m.d.sync += base.eq(0)
        m.d.comb += [
            self.tables.class_en.eq(valid), self.tables.class_addr.eq(Cat(reversed(address))),
            self.tables.class_data.length.eq(late),
            self.tables.class_data.base.eq(Mux(self.meadow, late - 3, base)),
            self.tables.word_data.eq(word)]
        assert CLASSES == 8 * CLASS_WORDS
        return m


class Unpacker(wiring.Component):
    """Takes segments apart, a tile at a time; see docs/packing.md.

    Golden: :class:`meadowlark_hdl.weights.packing_golden.Unpacker`, bit-exact.
    Timing: C chunks every C cycles (at least ``unpack_cycles``) while words come, a word a cycle,
    also across tiles if the next one is known in time; 9 cycles from a step to its chunk. A segment
    takes besides W cycles for the first words, about 11, and those of :class:`PreambleReader`.
    With ``unpack_cycles`` 4 there are W / 2 lanes: an unpacker for chunks of half the size, between
    a stage that cuts chunks in two and one that joins them; a chunk then takes 3 cycles at least.

    Parameters
    ----------
    config : Config
        W, tile_beats, unpack_cycles.
    entropy, meadow : bool
        Which codes it can read, at least one.

    Members
    -------
    tiles : In(stream)
        Plain chunks of each tile, 1..2 * tile_beats; may run ahead by two.
    ended : Out(1)
        All coded chunks of the tiles so far have been taken, up to the last one that their steps
        asked for, and no other one will be before ``resume``. High after reset.
    resume : In(1)
        High while ``ended``: the next chunk is the next tile's.
    i : In(stream of 8 * W bits)
        Coded chunks.
    o : Out(stream of 8 * W bits)
        Plain chunks.
    busy : Out(1)
        A chunk is on its way to ``o``.
    error : Out(1)
        A segment was not sound; stays until flush. From the next tile on chunks are zeros, and
        none is taken.
    flush : In(1)
        While high, as in reset.
    """

    DEPTH = 16              #: plain chunks under way

    def __init__(self, config: Config, *, entropy: bool = True, meadow: bool = True):
        if not (entropy or meadow):
            raise ValueError("an unpacker reads at least one kind of code")
        self.config, self.with_entropy, self.with_meadow = config, entropy, meadow
        super().__init__({
            "tiles": In(stream.Signature(range(2 * config.tile_beats + 1))),
            "ended": Out(1, init=1), "resume": In(1),
            "i": In(stream.Signature(8 * config.W)), "o": Out(stream.Signature(8 * config.W)),
            "busy": Out(1), "error": Out(1), "flush": In(1)})

    def elaborate(self, platform):
        config, W = self.config, self.config.W
        kinds = {"entropy": self.with_entropy, "meadow": self.with_meadow}
        if config.unpack_lanes < W:
            return self._halved(Unpacker(config.replace(
                W=W // 2, bus_bytes=min(config.bus_bytes, W // 2), unpack_cycles=2,
                tile_beats=2 * config.tile_beats, sv_cycles=2), **kinds))
        m = Module()
        m.submodules.preamble = head = PreambleReader(config, **kinds)
        m.submodules.refill = refill = Refill(config)
        lanes = [Lane(config, phase=int(phase), **kinds) for phase in phases(W)]
        c = Mux(head.log2_c == 0, 1, Mux(head.log2_c == 1, 2, 4)) if self.with_meadow \
            else Const(1, 1)
        size, known = Signal.like(self.tiles.payload, reset_less=True), Signal()    # the next tile
        to_issue = Countdown(m, size.shape(), name="issue", reset=False)  # steps of this tile
        steps = Countdown(m, COUNT_BITS, name="steps")          # of the segment, to issue
        broken, begin, next_tile = Signal(), Signal(), Signal()
        issue, with_room = Signal(), Signal()
        stepping = Signal()             # in STEPS, and steps.some
        m.submodules.check = check = Checksum(8 * W)
        m.d.comb += [self.tiles.ready.eq(~known), self.error.eq(broken)]
        with m.If(self.tiles.valid & ~known):
            m.d.sync += [size.eq(self.tiles.payload), known.eq(1)]

        # Steps, tile after tile.
        finished = Signal()                             # the segment's last chunk was taken
        with m.If(issue):
            m.d.sync += to_issue.step()
        with m.If(next_tile):
            m.d.sync += [to_issue.load(size >> head.log2_c), known.eq(0)]
        with m.FSM() as fsm:
            with m.State("REST"):
                with m.If(known & broken):
                    m.d.sync += [to_issue.left.eq(size), known.eq(0)]
                    m.next = "ZEROS"
                with m.Elif(known & steps.some):
                    m.d.comb += next_tile.eq(1)
                    m.d.sync += stepping.eq(1)
                    m.next = "STEPS"
                    with m.If((size & (c - 1)) != 0):
                        m.d.sync += [to_issue.left.eq(size), broken.eq(1), stepping.eq(0)]
                        m.next = "ZEROS"
                with m.Elif(known & ~self.ended):
                    m.d.comb += head.start.eq(1)
                    m.next = "PREAMBLE"
            with m.State("PREAMBLE"):
                with m.If(head.done):
                    m.d.comb += begin.eq(~head.wrong)
                    m.d.sync += [broken.eq(head.wrong),
                                 steps.load(head.steps, some=~head.wrong)]
                    m.next = "REST"
            with m.State("STEPS"):
                with m.If(~steps.some):                 # and there should be more
                    m.d.sync += [to_issue.left.eq(to_issue.left << head.log2_c), broken.eq(1)]
                    m.next = "ZEROS"
                with m.If(issue & (to_issue.last | steps.last)):
                    m.d.sync += stepping.eq(0)
                with m.If(issue & to_issue.last):
                    m.next = "REST"
                    with m.If(steps.last):
                        m.next = "WORDS"
                    with m.Elif(known & ((size & (c - 1)) == 0)):
                        m.d.comb += next_tile.eq(1)
                        m.d.sync += stepping.eq(1)
                        m.next = "STEPS"
            with m.State("WORDS"):
                with m.If(finished):
                    m.next = "REST"
            with m.State("ZEROS"):
                with m.If(to_issue.left == 0):
                    m.next = "REST"

        # Words, tile after tile; behind the last one what is left, and the checksum.
        trailer = Signal()                              # the next chunk is the checksum
        differs = Signal(8, reset_less=True)            # the chunk from it, by groups of 4 bits
        m.d.sync += differs.eq(Cat(self.i.payload.word_select(k, 4) != check.crc.word_select(k, 4)
                                   for k in range(len(differs))))
        with m.FSM(name="words"):
            with m.State("WORDS"):
                with m.If(self.ended):
                    m.d.comb += refill.resume.eq(self.resume)
                    m.d.sync += self.ended.eq(~self.resume)
                with m.Elif(broken):
                    m.d.sync += self.ended.eq(1)
                with m.Elif(refill.at_end):
                    m.d.sync += self.ended.eq(~refill.at_final)
                    with m.If(refill.at_final):
                        m.next = "DROP"
            with m.State("DROP"):
                m.d.comb += refill.drop.eq(1)
                with m.If(refill.over):
                    m.next = "CHECK"
            with m.State("CHECK"):                      # the last word is in the checksum
                m.next = "TRAILER"
            with m.State("TRAILER"):
                m.d.comb += trailer.eq(1)
                with m.If(self.i.valid):
                    m.next = "VERDICT"
            with m.State("VERDICT"):
                with m.If(differs.any()):
                    m.d.sync += broken.eq(1)
                m.d.comb += finished.eq(1)
                m.d.sync += self.ended.eq(1)
                m.next = "WORDS"

        # Chunks go to the preamble, to the lanes, or are the checksum.
        m.d.comb += [
            head.i.valid.eq(self.i.valid), head.i.payload.eq(self.i.payload),
            # It takes none of the preamble or the checksum: before and behind its words it is over.
            refill.i.valid.eq(self.i.valid & ~broken), refill.i.payload.eq(self.i.payload),
            self.i.ready.eq(head.i.ready | (refill.i.ready & ~broken) | trailer),
            refill.start.eq(begin), refill.words.eq(head.words)]
        # A preamble's first chunk is taken no sooner than two cycles after its start.
        m.d.comb += [check.start.eq(head.start), check.data.eq(self.i.payload),
                     check.valid.eq(self.i.valid & self.i.ready & ~trailer),
                     head.sound.eq(check.sound)]

        # When all words are with the lanes these need no more of them.
        arrive = pieces(config) + 7             # cycles until the last one's pieces have come
        settle = Signal(range(arrive + 1))
        drained = Signal()
        with m.If(~refill.over | begin):
            m.d.sync += [settle.eq(0), drained.eq(0)]
        with m.Elif(settle != arrive):
            m.d.sync += settle.eq(settle + 1)
        with m.Else():
            m.d.sync += drained.eq(1)

        # When is there a step? Whether there may be one is found out a cycle ahead.
        pace = Signal(2)                                # cycles until the next may come
        per_step = Mux(c < config.unpack_cycles, config.unpack_cycles, c)
        packet, packet_end = Signal(7), Signal(7, reset_less=True)
        first, may, may_zero = Signal(), Signal(), Signal()
        starting = Signal()                     # and the lanes do not know it yet
        step = may & stepping
        m.d.sync += [
            starting.eq(begin), packet_end.eq((1 << head.log2_n) - 1),
            may.eq(Cat(k.ready for k in lanes).all() & ~begin & ~starting & refill.room & with_room
                   & Mux(step, per_step == 1, pace <= 1)),
            # Not while the last step still gives its chunks.
            may_zero.eq(fsm.ongoing("ZEROS") & (to_issue.left != 0) & with_room & ~may_zero
                        & (pace <= 1))]
        m.d.comb += issue.eq(step | may_zero)
        with m.If(step):
            m.d.sync += [steps.step(), pace.eq(per_step - 1),
                         packet.eq((packet + 1) & packet_end)]
        with m.Elif(pace != 0):
            m.d.sync += pace.eq(pace - 1)
        with m.If(begin):
            m.d.sync += packet.eq(0)
        m.d.sync += first.eq((packet == 0) & head.meadow)
        m.d.comb += [refill.ends.eq(delay(m, step & (to_issue.last | steps.last), 3, name="ends",
                                          reset=True)),
                     refill.final.eq(delay(m, step & steps.last, 3, name="final", reset=True))]
        late: dict[str, Signal] = {}
        for k, lane in enumerate(lanes):
            go = Signal(name=f"go_{k}", attrs={"keep": 1})
            # The reset of a lane, which needs no other: a flush lets it finish what is on its way,
            # long before the next segment begins.
            start = near(m, begin, name=f"start_{k}", reset=True)
            m.d.sync += go.eq(step)
            m.d.comb += [
                lane.go.eq(go), lane.start.eq(start), lane.first.eq(first),
                lane.meadow.eq(head.meadow), lane.log2_c.eq(head.log2_c),
                lane.drained.eq(drained), lane.load.eq(refill.load[k]),
                lane.buses.eq(refill.buses),
                refill.asks[k].eq(lane.asks)]
            # Tables come by a register for each four lanes: they are written long before a step.
            if k % 4 == 0:
                late = {name: near(m, getattr(head.tables, name), name=f"{name}_{k}",
                                   reset=name.endswith("en"))
                        for name in head.tables.signature.members}
            m.d.comb += [getattr(lane.tables, name).eq(s) for name, s in late.items()]

        # Symbols to chunks: a step gives C of them, one a cycle.
        m.submodules.out = out = Queue(8 * W, depth=self.DEPTH)
        chunk = Signal(8 * W, reset_less=True)
        stepped = delay(m, step, Lane.LATENCY + 1, name="stepped", reset=True)
        void = delay(m, issue & ~stepping, Lane.LATENCY + 1, name="void", reset=True)
        part, more = Signal(2), Signal()
        valid, zero = Signal(), Signal()
        bytes_of = {1: Cat(k.symbol[:8] for k in lanes)}
        if self.with_meadow:
            bytes_of |= {C: Cat(k.symbol[:8 * C] for k in lanes) for C in (2, 4)}
            chosen = Signal(2)
            m.d.comb += [chosen.eq(Mux(stepped, 0, part)), more.eq(stepped | (part != 0))]
            with m.If(more):
                m.d.sync += part.eq((chosen + 1) & (c - 1))
            four = bytes_of[4].word_select(chosen, 8 * W)
            two = bytes_of[2].word_select(chosen[0], 8 * W)
            m.d.sync += chunk.eq(Mux(head.log2_c == 0, bytes_of[1],
                                     Mux(head.log2_c == 1, two, four)))
        else:
            m.d.comb += more.eq(stepped)
            m.d.sync += chunk.eq(bytes_of[1])
        m.d.sync += [valid.eq(more | void), zero.eq(void)]
        room = Signal(range(self.DEPTH + 1), init=self.DEPTH)
        after = Signal.like(room)
        m.d.comb += [
            out.i.valid.eq(valid), out.i.payload.eq(Mux(zero, 0, chunk)),
            self.o.valid.eq(out.o.valid), self.o.payload.eq(out.o.payload),
            out.o.ready.eq(self.o.ready), self.busy.eq(room != self.DEPTH),
            after.eq(room - Mux(issue, Mux(stepping, c, 1), 0) + (self.o.valid & self.o.ready))]
        # The next step's chunks; with C = 1 those of the one before are not in ``room`` yet.
        m.d.comb += with_room.eq(room >= Mux(head.log2_c[1], 4, 2))
        m.d.sync += room.eq(after)
        assert exact_log2(TABLE_BYTES // 4) == 9
        top = Module()
        top.submodules.control = ResetInserter(self.flush)(m)
        for k, lane in enumerate(lanes):
            top.submodules[f"lane{k}"] = lane
        return top

    def _halved(self, inner: Unpacker):
        """Chunks cut in two for ``inner``, and joined behind it."""
        m = Module()
        m.submodules.inner = inner
        bits = 4 * self.config.W
        # A chunk is asked for when ``inner`` has asked and nothing is left of the one before, by a
        # register: inner may pause, but asks again until it gets what it needs.
        chunk, left = Signal(2 * bits, reset_less=True), Signal(2)      # and halves that are left
        asks = Signal()
        m.d.comb += [
            inner.tiles.valid.eq(self.tiles.valid), inner.tiles.payload.eq(self.tiles.payload << 1),
            self.tiles.ready.eq(inner.tiles.ready),
            self.ended.eq(inner.ended), inner.resume.eq(self.resume),
            inner.i.valid.eq(Mux(asks, self.i.valid, left.any())),
            inner.i.payload.eq(Mux(asks, self.i.payload[:bits],
                                   Mux(left[0], chunk[:bits], chunk[bits:]))),
            self.i.ready.eq(asks)]
        m.d.sync += asks.eq(Mux(asks, ~self.i.valid, inner.i.ready & ~left.any()))
        with m.If(asks):
            m.d.sync += [chunk.eq(self.i.payload),
                         left.eq(Cat(~inner.i.ready, 1) & self.i.valid.replicate(2))]
        with m.Elif(inner.i.ready):
            m.d.sync += left.eq(Cat(Const(0, 1), left.all()))
        second, lower = Signal(), Signal(bits, reset_less=True)
        m.d.comb += [
            inner.o.ready.eq(self.o.ready | ~second),
            self.o.valid.eq(inner.o.valid & second), self.o.payload.eq(Cat(lower, inner.o.payload)),
            self.busy.eq(inner.busy | second), self.error.eq(inner.error),
            inner.flush.eq(self.flush)]
        with m.If(inner.o.valid & inner.o.ready):
            m.d.sync += second.eq(~second)
        with m.If(~second):
            m.d.sync += lower.eq(inner.o.payload)
        return ResetInserter(self.flush)(m)
