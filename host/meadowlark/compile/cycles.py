"""Cycle model: what a test will take, from program, Config and memory timing alone.

Two timelines at the grain of a burst and a tile. The memory side walks the jobs in order: a burst
is asked for when the run-ahead FIFO has room for it, a tile enters a half of the tile buffer when
the tile before the last has been used. The engine executes instruction after instruction and waits
for each tile. What is not the array's own work is a latency of some block of the gateware, which
has it as an attribute of its class, or reads it from its pipeline: none is typed here.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil
from typing import TYPE_CHECKING

from meadowlark_hdl.compute.lane import score_cycle
from meadowlark_hdl.compute.tiling_engine import first_result
from meadowlark_hdl.compute.vector_unit import VectorUnit
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.fetch import Fetch
from meadowlark_hdl.control.fetch_golden import walk
from meadowlark_hdl.control.planner import Planner
from meadowlark_hdl.control.sequencer import Sequencer
from meadowlark_hdl.control.sequencer_golden import (Lots, Pass, Place, batch_pass, decode_pass,
                                                     draft_pass, prompt_passes)
from meadowlark_hdl.core import Core
from meadowlark_hdl.draft.context_match_golden import WINDOW
from meadowlark_hdl.draft.drafter import Drafter
from meadowlark_hdl.draft.run_golden import Turn
from meadowlark_hdl.draft.table_lookup import TableLookup
from meadowlark_hdl.draft.table_lookup_golden import BUCKET_BYTES, LENGTHS
from meadowlark_hdl.isa import Fn, Instruction, Mode, Op, Pair, Sink, Src, unified_of
from meadowlark_hdl.issue.dispatch import Dispatch
from meadowlark_hdl.issue.fill import Fill
from meadowlark_hdl.issue.gammas import Gammas
from meadowlark_hdl.issue.judgement import judged_cycle
from meadowlark_hdl.issue.keys import Keys
from meadowlark_hdl.issue.rows import Rows
from meadowlark_hdl.issue.stores import Stores
from meadowlark_hdl.issue.tile_reader import TileReader
from meadowlark_hdl.issue.token_tiles import TokenTiles
from meadowlark_hdl.issue.walker import results_settle
from meadowlark_hdl.memory.arbiter import MemoryArbiter
from meadowlark_hdl.memory.reader import Reader
from meadowlark_hdl.memory.scratch import Scratch
from meadowlark_hdl.memory.store import StoreUnit
from meadowlark_hdl.sampler.sampler import Sampler
from meadowlark_hdl.weights.block_unit import BlockUnit
from meadowlark_hdl.weights.decoder import PackedWeightDecoder
from meadowlark_hdl.weights.decoder_golden import header_chunks
from meadowlark_hdl.weights.modes import MODES
from meadowlark_hdl.weights.packing_golden import CLASS_WORDS, CLASSES, Fields, ahead, head_words
from meadowlark_hdl.weights.tile_buffer import TileBuffer
from meadowlark_hdl.weights.unpacker import Unpacker

from ..errors import UserError
from .disassemble import results
from .drains import Drains
from .passes import prompt_regs

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image, Run


@dataclass
class Spent:
    """Cycles of one instruction, summed over passes.

    work: rows, tokens or drains by the array's own rate. drain: rows of few beats, until results
    of the rows before have left the array. memory: waiting for a tile. overhead: the rest (starts,
    drains of pipelines, gaps). words: that it moved over memory's bus.
    """
    count: int = 0
    work: int = 0
    drain: int = 0
    memory: int = 0
    overhead: int = 0
    words: int = 0

    @property
    def cycles(self) -> int:
        return self.work + self.drain + self.memory + self.overhead

    def add(self, other: Spent, times: int = 1) -> None:
        """As if that were spent too, so many times."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a test takes.

    cycles: from start to the last token; prefill_cycles: of the passes over the prompt, with the
    first token; decode_cycles: of the rest. passes: each pass with its cycles. by_pc: cycles of
    each instruction of the program, over all passes. useful_bytes, useful_macs: of the test, as
    :meth:`meadowlark.compile.image.Image.useful_bytes`. bus_words: words read and written, all
    of them.
    """
    cycles: int
    prefill_cycles: int
    decode_cycles: int
    passes: list[tuple[Pass, int]]
    by_pc: dict[int, Spent]
    program: list[Instruction] = field(repr=False)
    useful_bytes: int
    useful_macs: int
    bus_words: int
    config: Config
    bytes_per_cycle: float

    @property
    def memory_utilisation(self) -> float:
        """useful_bytes / (cycles x bytes that memory moves in one at best)."""
        return self.useful_bytes / (self.cycles * self.bytes_per_cycle)

    @property
    def mac_utilisation(self) -> float:
        """useful_macs / (cycles x W x P)."""
        return self.useful_macs / (self.cycles * self.config.W * self.config.P)

    def by_kind(self) -> dict[str, Spent]:
        """Cycles by kind of instruction, most first; "passes" is what lies between them."""
        kinds: dict[str, Spent] = {}
        for pc, spent in self.by_pc.items():
            kinds.setdefault(kind_of(self.program[pc]), Spent()).add(spent)
        between = self.cycles - sum(s.cycles for s in kinds.values())
        kinds["passes"] = Spent(count=len(self.passes), overhead=between)
        return dict(sorted(kinds.items(), key=lambda item: -item[1].cycles))

    def budget(self) -> str:
        """Table by kind of instruction, in Markdown."""
        lines = ["| instruction | count | cycles | share | work | drain | waits for memory | "
                 "overhead |", "|---|---|---|---|---|---|---|---|"]
        for name, s in self.by_kind().items():
            lines.append(f"| {name} | {s.count:,} | {s.cycles:,} | {s.cycles / self.cycles:.1%} | "
                         f"{s.work:,} | {s.drain:,} | {s.memory:,} | {s.overhead:,} |")
        lines.append(f"| all | | {self.cycles:,} | | | | | |")
        return "\n".join(lines)


def kind_of(instruction: Instruction) -> str:
    """Name of an instruction's kind: operator, and what sets it apart within it."""
    op = Op(instruction["op"])
    return f"{op.name} {results(instruction)}" if op == Op.LINEAR else op.name


class _Memory:
    """Memory bus, FIFO and tile buffer: when does a tile become available?"""

    #: From a command to the bus, beside memory's own latency: it is taken, and the arbiter's.
    BUS = 1 + MemoryArbiter.COMMAND
    #: From the last bus word of a tile to the cycle in which Issue knows of it.
    DECODE = Reader.CHUNK + PackedWeightDecoder.LATENCY + TileBuffer.LATENCY + TileReader.FRONT

    def __init__(self, board: Board) -> None:
        self.c, self.t = board.config, board.memory
        ticks = board.memory.ticks(board.clock_mhz, board.config.bus_bytes)

        def cycles(of: int) -> float:
            """Of the core; whole ones where memory has its clock."""
            return of // ticks.core if of % ticks.core == 0 else of / ticks.core
        self.word, self.latency, self.row_miss, self.turnaround, self.interval, self.pause = map(
            cycles, (ticks.word, ticks.latency, ticks.row_miss, ticks.turnaround,
                     ticks.refresh_interval, ticks.refresh))
        self.per_chunk = self.c.bus_per_chunk
        self.sizes = self.c.burst_words, self.c.fifo_words
        self.pages = self.t.page_bytes, self.t.banks, self.c.bus_bytes
        self.command: float = 0     # time the Reader can ask for the next burst
        self.free: float = 0        # time the bus is free of the last burst
        self.came: float = 0        # time its last word was at the core
        self.refresh = self.interval
        self.began: float = 0       # first cycle of that burst
        self.next = -1              # address after that burst
        self.writing = False
        self.rows = [-1] * self.t.banks
        self.bank = -1              # of the last burst
        self.taken: float = 0       # time the decoder took the last chunk so far
        self.waiting: deque[tuple[float, int]] = deque()    # bursts in the FIFO: (taken at, words)
        self.writes: deque[tuple[float, int, int]] = deque()    # (ready, address, words)
        self.fence: float = 0       # time the last write was in memory
        self.level = 0              # words reserved in the FIFO
        # Times the halves of the tile buffer are free.
        self.halves = deque([0] * (2 - self.c.one_half))
        self.words = 0

    def tile(self, addr: int, chunks: int, earliest: int, idle: int = 0, more: int = 0,
             head: int = 0) -> int:
        """Read a tile; earliest: time its job is known. Returns the time it is available.

        idle: cycles of the decoder before its first chunk. more: those beyond a cycle a chunk.
        head: those of its row headers, which pass beside the codes of the tile before unless these
        are through.
        """
        # The model's innermost loop: comparisons, where max() would be plainer and half as quick.
        total = words = chunks * self.per_chunk
        at, latency, longest, room = addr * self.per_chunk, self.latency, *self.sizes
        command = max(self.command, earliest)
        half = self.halves.popleft()
        taken = max(self.taken, half + head)
        came, level, waiting, chunks = self.came, self.level, self.waiting, chunks + more
        while words:
            n = words if words < longest else longest
            # room in the FIFO for the whole burst
            while level + n > room:
                when, gone = waiting.popleft()
                level -= gone
                if when > command:
                    command = when
            command += Reader.COMMAND
            while self.writes and self.writes[0][0] <= max(self.free, command):
                ready, to, count = self.writes.popleft()
                self.fence = self._burst(to, count, ready, write=True)[1]
            start, end = self._burst(at, n, command, write=False)
            if start > command:
                command = start
            first, last = start + latency, end + latency
            # The port moves a word a cycle at most.
            if first > came:
                came = first
            came += n
            if last > came:
                came = last
            taken += idle
            if first > taken:
                taken = first
            taken -= -n * chunks // total
            if came > taken:
                taken = came
            idle = 0
            waiting.append((taken, n))
            level += n
            at += n
            words -= n
        self.came, self.level = came, level
        self.command, self.taken = command, taken
        return ceil(taken) + self.DECODE

    def write(self, at: int, n: int, ready: int) -> None:
        """A burst of the KV cache whose data is there at ``ready``; goes between reads."""
        self.writes.append((ready, at, n))

    def written(self) -> int:
        """Put all writes on the bus; returns when the last one is in memory."""
        while self.writes:
            ready, at, n = self.writes.popleft()
            self.fence = self._burst(at, n, ready, write=True)[1]
        return ceil(self.fence)

    def _burst(self, at: int, n: int, command: float, *, write: bool) -> tuple[float, float]:
        """Put a burst on the bus; returns its first cycle and the one after its last."""
        page_bytes, banks, bus_bytes = self.pages
        self.words += n
        ready = command + self.BUS
        byte = at * bus_bytes
        page = byte // page_bytes
        bank = page % banks
        if at != self.next and self.rows[bank] != page // banks:
            # opened while the burst before runs, unless that one is in the same bank
            ready = max(ready, self.free if bank == self.bank else self.began) + self.row_miss
        start = self.free if self.free > ready else ready
        if write != self.writing:
            start = max(start, self.free + self.turnaround)
            self.writing = write
        if self.interval:
            while self.refresh <= start:
                start = max(start, max(self.free, self.refresh) + self.pause)
                self.refresh += self.interval
        end = start + n * self.word
        last = (byte + n * bus_bytes - 1) // page_bytes
        while page <= last:
            self.bank = page % banks
            self.rows[self.bank] = page // banks
            page += 1
        self.began, self.free, self.next = start, end, at + n
        return start, end

    def release(self, when: int) -> None:
        """The engine has given a half back."""
        self.halves.append(when + 1)

    def shift(self, cycles: int, words: int, ahead: int = 0) -> None:
        """So many cycles later, with so many words moved, all is as it is now; the next read is so
        many words ahead."""
        for name in ("command", "free", "came", "refresh", "began", "taken", "fence"):
            setattr(self, name, getattr(self, name) + cycles)
        self.waiting = deque((when + cycles, n) for when, n in self.waiting)
        self.writes = deque((ready + cycles, at, n) for ready, at, n in self.writes)
        self.halves = deque(when + cycles for when in self.halves)
        self.words += words
        self.next += ahead


#: Fields of Config on which nothing in the vector unit's pipeline depends: sizes of memories, and
#: what is elsewhere. A test builds it with others.
ELSEWHERE = frozenset((
    "bus_bytes", "act_words", "scratch_bytes", "residual_values", "score_depth", "rope_pairs",
    "tile_beats", "tile_rows", "fifo_words", "prog_depth", "context", "burst_words", "topk",
    "packing", "unpack_cycles"))
_vector_units: dict[tuple, VectorUnit] = {}


def _vector_unit(config: Config) -> VectorUnit:
    """To be asked how long things take: it is built for the answer, once, in half a second."""
    key = tuple(getattr(config, f.name) for f in fields(config) if f.name not in ELSEWHERE)
    if key not in _vector_units:
        _vector_units[key] = VectorUnit(config)
    return _vector_units[key]


class Machine:
    """Both timelines; runs passes. run: of an image, whose registers and ids it has."""

    def __init__(self, image: Image, board: Board, run: Run | None = None) -> None:
        self.c, self.vector = board.config, _vector_unit(board.config)
        self.program = image.listed
        self.regs = image.model_regs if run is None else run.model_regs
        self.ids = None if run is None else run.tokens
        self.data = image.memory
        self.memory = _Memory(board)
        self.by_pc: dict[int, Spent] = {}
        self.now = Core.START           # engine
        self.stream = 0                 # pointer into the weight stream
        self.fetch = 0                  # time Fetch has reached the instruction: jobs are later
        self.storing = 0                # time the StoreUnit has taken all chunks so far
        self.stores: deque[int] = deque()   # times at which the last STOREs began
        self.started: deque[int] = deque()  # those of the instructions that fill the queue
        # From the last beat of an instruction to the last result of lane 0.
        self.array = first_result(self.c) - 1
        self.drains = Drains(self.c, self.vector.sum_gap)
        # Of a unified maximum: when the latest QK's is judged; SVs that began before they were, as
        # a share of one to come, and the share of rows that have another, by calibration.
        self.judged, self.again, self.missed = 0, 0.0, image.facts.get("missed", 0) / 1e6
        self.tile_at = 0                # when the latest tile of keys began

    def _read(self, spent: Spent, i: Instruction, addr: int, chunks: int, earliest: int,
              unpack: int = 0) -> int:
        """Read a tile of an instruction; when it is available. unpack: cycles of the unpacker."""
        idle, more, info = 0, max(unpack - chunks, 0), MODES[Mode(i["mode"])]
        head = header_chunks(i["header"], i["rows"], self.c.W) if unpack else 0
        if info.group:
            # Row headers wait until the unit is empty.
            idle = 1 + PackedWeightDecoder.LATENCY + BlockUnit.LATENCY
        if info.bits < 8:               # several beats a chunk
            beats = i["rows"] * i["row_beats"]
            more = (beats - info.code_chunks(beats)) * chunks // i["chunks"]
        spent.words += chunks * self.c.bus_per_chunk
        return self.memory.tile(addr, chunks, earliest, idle, more, head)

    def _wait(self, spent: Spent, available: int) -> None:
        """Until then."""
        if available > self.now:
            spent.memory += available - self.now
            self.now = available

    def _drained(self) -> int:
        """When nothing of the SVs before is left to do."""
        return self.drains.last + 1 + self.array + self.c.P + self._effect()

    def _work(self, spent: Spent, cycles: int) -> None:
        spent.work += cycles
        self.now += cycles

    def _effect(self, i: Instruction | None = None) -> int:
        """From a result to its effect, by default a write's; a shorter one ends as late."""
        latency_of = self.vector.latency_of
        return max(latency_of(Sink.ACT), 0 if i is None else latency_of(
            Sink(i["sink"]), Pair(i["pair"]), Fn(i["fn"])))

    def _lose(self, spent: Spent, cycles: int) -> None:
        spent.overhead += cycles
        self.now += cycles

    def draft(self, position: int, k: int) -> int:
        """Cycles of the drafter, at most: a sweep of the text up to a position, then k steps that
        all ask the table."""
        memory, words = self.memory, BUCKET_BYTES // self.c.bus_bytes
        reads = len(LENGTHS) * (memory.row_miss + words * memory.word)
        step = ceil(TableLookup.READ + memory.BUS + memory.latency + reads) + TableLookup.LATENCY
        return Sequencer.DRAFT + Drafter.cycles(position, min(position, WINDOW), 0, k * [step],
                                                False)

    def run(self, p: Pass, more: int = 0) -> int:
        """One pass; returns its cycles. more: events behind its first one."""
        began = self.now
        self.now += Sequencer.PLAN + Planner.cycles(p, self.regs["group"])
        self.stream = self.regs["stream_addr"]
        self.fetch = self.now
        self.started.clear()
        for pc, lots in self._walk(p, self.regs["decode_pc" if p.decode else "prefill_pc"]):
            i = self.program[pc]
            spent = self.by_pc.setdefault(pc, Spent())
            spent.count += 1
            if len(self.started) > Fetch.QUEUE:
                self.fetch = max(self.fetch, self.started.popleft())
            self.fetch += Fetch.FIRST
            if self.c.fences and i["more"] and i["op"] in (Op.NORM, Op.LINEAR):
                done = max(self.now, self._drained())
                self.fetch = max(self.fetch, done + Fetch.FENCE - Fetch.START + Fetch.FIRST)
                self._lose(spent, max(done + Fetch.QUEUED - self.now, 0))
            self.started.append(self.now)
            self._execute(spent, i, p, lots)
        self.now += Sequencer.TURN
        if p.final:                     # the event is taken at once
            self.now += Sampler.GREEDY + Sequencer.EVENT + Sequencer.TURN
            self.now += more * (Sequencer.NEXT + Sequencer.EVENT)
        return self.now - began

    def _walk(self, p: Pass, begin: int) -> Iterator[tuple[int, Lots | None]]:
        """Instructions of a pass that are executed one by one, in order."""
        return walk(self.c, self.program, p, begin)

    def _tiles(self, i: Instruction, spent: Spent) -> Iterator[int]:
        """Tiles of a LINEAR that are read one by one, in order."""
        return iter(range(i["tiles"]))

    def shift(self, cycles: int, words: int, ahead: int = 0) -> None:
        """See :meth:`_Memory.shift`."""
        self.memory.shift(cycles, words, ahead)
        self.drains.shift(cycles)
        for name in ("now", "fetch", "storing", "judged"):
            setattr(self, name, getattr(self, name) + cycles)
        self.stores = deque(when + cycles for when in self.stores)
        self.started = deque(when + cycles for when in self.started)

    def _execute(self, spent: Spent, i: Instruction, p: Pass, lots: Lots | None) -> None:
        """From an instruction's turn to the next one's; of END to its walker's, if it had one."""
        self._lose(spent, Dispatch.START)
        if i["op"] in (Op.END, Op.SPILL):
            self._wait(spent, self.memory.written())
        if i["op"] != Op.QK:            # all others wait for the drains
            self._lose(spent, max(self._drained() + Dispatch.DRAINED - self.now, 0))
        if i["op"] == Op.END:
            return
        if i["last"]:                   # looks for the last block
            self._lose(spent, p.nb - 1)
        execute = getattr(self, "_" + Op(i["op"]).name.lower())
        execute(i, p, spent, *([] if lots is None else [lots]))
        if i["op"] != Op.SV:            # of which the rest is Drain's
            self._lose(spent, Dispatch.SETTLE)

    def _stream_tile(self, i: Instruction, spent: Spent, chunks: int, unpack: int = 0) -> int:
        """Read the next tile; when it is available."""
        self.stream += chunks
        return self._read(spent, i, self.stream - chunks, chunks, self.fetch, unpack)

    def _unpacking(self, i: Instruction) -> Iterator[int]:
        """Cycles of the unpacker for each tile of a packed instruction: its beats, and before those
        the preamble where a segment begins. The first one is read; the others are as long and
        keep its tables."""
        c, lanes, left = self.c, self.c.unpack_lanes, 0
        head = (self.stream + header_chunks(i["header"], i["rows"], c.W)) * c.W
        fields = Fields.of(self.data[head:head + 12])
        table = fields.table_words
        for k in range(i["tiles"]):
            beats = i["last_rows" if k == i["tiles"] - 1 else "rows"] * i["row_beats"]
            cycles = beats * c.unpack_cycles
            if left < beats:
                left = fields.steps * fields.C * lanes // c.W
                # 4 bytes a cycle and 2 cycles more a chunk, but 8 for a word of classes; then the
                # lanes' first words, one a cycle.
                words = head_words(lanes) + table
                cycles += words + 2 * -(-4 * words // lanes) + (CLASSES - CLASS_WORDS
                                                                 if table else 0)
                cycles += ahead(lanes) * lanes + Unpacker.SEGMENT
                table = 0
            left -= beats
            yield cycles

    def _rows_of_table(self, i: Instruction, p: Pass, rows: Sequence[int], values: int,
                       spent: Spent) -> None:
        for row in rows:
            self._wait(spent, self._read(
                spent, i, i["addr"] + row * i["chunks"], i["chunks"],
                self.fetch + Fetch.TOKEN * (i["src"] == Src.TOKEN or bool(p.batch))))
            self._work(spent, values)
            self._lose(spent, TokenTiles.TOKEN)
            self.memory.release(self.now)

    def _embed(self, i: Instruction, p: Pass, spent: Spent) -> None:
        # Ids of a text are not known to the model: it takes rows far from each other.
        ids = self.ids or [position * 37 % self.regs["vocab"] for position in p.positions]
        self._rows_of_table(i, p, ids if i["src"] == Src.TOKEN else p.positions,
                            i["row_beats"] * self.c.W, spent)
        self._lose(spent, self._effect(i))

    def _rope(self, i: Instruction, p: Pass, spent: Spent) -> None:
        self._rows_of_table(i, p, p.positions, 1 << self.regs["head_log2"] - 1, spent)
        self._lose(spent, TokenTiles.ANGLES)

    def _norm(self, i: Instruction, p: Pass, spent: Spent) -> None:
        self._wait(spent, self._stream_tile(i, spent, i["chunks"]))
        tokens = (p.n - 1) % self.c.P + 1 if i["last"] else p.n
        self._work(spent, tokens * i["row_beats"] * self.c.W // self.c.norm_width)
        self._lose(spent, self.vector.norm_latency + Gammas.NORM)
        self.memory.release(self.now)

    def _linear(self, i: Instruction, p: Pass, spent: Spent) -> None:
        nb, unpacking = 1 if i["last"] else p.nb, list(
            self._unpacking(i)) if i["packed"] else i["tiles"] * [0]

        def read(k: int) -> int:
            chunks = i["last_chunks" if k == i["tiles"] - 1 else "chunks"]
            return self._stream_tile(i, spent, chunks, unpacking[k])
        ahead: list[int] = []
        if i["wait"]:                   # while it does, tiles come
            ahead = [read(k) for k in range(min(i["tiles"], len(self.memory.halves)))]
            self._wait(spent, self.memory.written())
        self._lose(spent, Rows.TILE)
        row = max(i["row_beats"], self.c.row_cycles)
        if i["sink"] == Sink.LOGIT and p.each:
            row = max(row, p.n * self.c.LOGIT_CYCLES)
        wait = row - i["row_beats"]         # for the results of the row before
        for k in self._tiles(i, spent):
            rows = i["last_rows" if k == i["tiles"] - 1 else "rows"]
            self._wait(spent, ahead[k] if k < len(ahead) else read(k))
            self._lose(spent, max(Rows.TILE - (wait if k else 0), 0))
            self._work(spent, i["row_beats"] * nb * rows)
            spent.drain += wait * nb * rows
            self.now += wait * nb * rows
            self.memory.release(self.now)
        self._lose(spent, self.array + self.c.P + self._effect(i) - wait)

    def _store(self, i: Instruction, p: Pass, spent: Spent) -> None:
        c = self.c
        words = p.n * i["row_beats"] * c.bus_per_chunk
        spent.words += words
        if len(self.stores) == Scratch.COMMANDS:        # they wait for this one's turn
            self._work(spent, max(0, self.stores.popleft() - self.now))
        self.storing = max(self.now + Scratch.FIRST, self.storing + Scratch.NEXT)
        self.stores.append(self.storing)
        # Tokens of a batch are written each where it belongs.
        places = p.places() if p.batch else p.places()[:1]
        of_place = words // len(places)
        for place in places:
            at = (i["addr"] + place.base + place.position * i["row_beats"]) * c.bus_per_chunk
            for first in range(0, of_place, c.burst_words):
                n = min(c.burst_words, of_place - first)
                self.storing += n + StoreUnit.BURST
                self.memory.write(at + first, n, self.storing)
        self._lose(spent, Stores.TURN - Dispatch.START - Dispatch.SETTLE)

    def _seen(self, i: Instruction, p: Pass, lots: Lots) -> list[range]:
        """The keys that each lot sees."""
        sees = [lots.keys] if i["heads"] else [p.sees(self.c, i, block) for block in lots.blocks]
        return sees * len(lots.heads)

    def _lots(self, i: Instruction, p: Pass, spent: Spent, lots: Lots):
        """Reads the cache; yields (lot, keys that it sees of the tile, whether they are its last
        ones), tile after tile."""
        sees = self._seen(i, p, lots)
        self._lose(spent, Keys.SPAN)
        for first in lots.keys[::i["rows"]]:
            n = min(i["rows"], lots.keys.stop - first)
            self._wait(spent, self._read(
                spent, i, i["addr"] + lots.base + first * i["row_beats"], n * i["row_beats"],
                max(self.fetch, self.memory.written())))
            self._lose(spent, Keys.TILE)
            self.tile_at = self.now
            for lot, keys in enumerate(sees):
                seen = range(max(first, keys.start), min(first + n, keys.stop))
                yield lot, len(seen), first < keys.stop <= first + n
            self.memory.release(self.now)

    def _qk(self, i: Instruction, p: Pass, spent: Spent, lots: Lots) -> None:
        for _, keys, _ in self._lots(i, p, spent, lots):
            self._lose(spent, Keys.BLOCK)
            self._work(spent, keys * i["row_beats"])
        if not unified_of(i):
            self._lose(spent, score_cycle(self.c) - 1)
            return
        self.judged = self.now - 2 + judged_cycle(self.c)       # the last beat was 2 cycles ago
        begins = self.tile_at + score_cycle(self.c) + i["row_beats"] - Dispatch.START
        self._lose(spent, max(begins - Dispatch.SETTLE - self.now, 0) - Dispatch.SETTLE)

    def _assumed(self, spent: Spent, rows: int, work: int) -> None:
        """The first lot of an SV, that is over by now after so much work, assumed its maximum."""
        began = self.now - work
        if began > self.judged:
            return
        self.again += 1 - (1 - self.missed) ** rows
        if self.again >= 1:
            self.again -= 1
            self._lose(spent, self.judged + Keys.AGAIN - began)
        self._lose(spent, max(self.judged + 1 - self.now, 0))

    def _sv(self, i: Instruction, p: Pass, spent: Spent, lots: Lots) -> None:
        pairs = self.c.sv_cycles if i["add"] else 1     # lanes of a head
        steps = i["row_beats"] * self.c.sv_cycles // pairs      # of a key
        places = self.c.acc_slots // steps
        rows, first = i["lanes"] if i["heads"] else len(lots.heads) * sum(
            min(self.c.P, p.n - block * self.c.P) for block in lots.blocks), True
        self.drains.begin()
        for lot, keys, last in self._lots(i, p, spent, lots):
            self._lose(spent, Keys.BLOCK - 1)
            if keys:
                if lot >= places:       # all are in one tile
                    self._lose(spent, max(self.drains.room(lot - places) - self.now, 0))
                work = (keys - 1) * max(self.c.ACC_TURN, steps) + steps
                end = self.drains.beats(self.now, work)
                self._lose(spent, end - self.now - work)
                self._work(spent, work)
                if lot == 0 and first:
                    first = False
                    self._assumed(spent, rows, work)
            if last:
                self.drains.lot(self.now - 1, i["row_beats"] * self.c.W // pairs)
            self._lose(spent, 1)

    def _spill(self, i: Instruction, p: Pass, spent: Spent, lots: Lots) -> None:
        c, began = self.c, self.now
        lots_keys = [len(keys) for keys in self._seen(i, p, lots)]
        self._lose(spent, Keys.SPAN + Keys.TILE)
        for keys in lots_keys:
            self._lose(spent, Keys.BLOCK)
            self._work(spent, (keys - 1) * c.row_cycles + 1)
        self._lose(spent, results_settle(c))
        # Bursts one behind the other, each when all of its values have come.
        words = 2 * -(-sum(lots_keys) // c.spilled_keys) * c.bus_per_chunk
        spent.words += words
        at, took = i["addr"] * c.bus_per_chunk, self.now - began
        for first in range(0, words, c.burst_words):
            n = min(c.burst_words, words - first)
            self.memory.write(at + first, n, began + self.array + StoreUnit.BURST
                              + took * (first + n) // words)

    def _fill(self, i: Instruction, p: Pass, spent: Spent, lots: Lots) -> None:
        c, keys, addr = self.c, sum(map(len, self._seen(i, p, lots))), i["addr"]
        beats = -(-keys // c.spilled_keys)
        for first in range(0, beats, i["chunks"] // 2):
            n = min(i["chunks"] // 2, beats - first)
            self._wait(spent, self._read(spent, i, addr + 2 * first, 2 * n,
                                         max(self.fetch, self.memory.written())))
            self._lose(spent, Fill.TILE)
            self._work(spent, min(n * c.spilled_keys, keys - first * c.spilled_keys))
            self.memory.release(self.now)
        self._lose(spent, score_cycle(c))


def predict_batch(image: Image, board: Board, *, sequences: int, position: int,
                  passes: int) -> Prediction:
    """Predict a run of a batch: so many sequences at the same position go on by so many tokens.

    Raises
    ------
    UserError
        The tokens do not fit the image's context, or the board does not fit the image.
    """
    check_test(image, board, 1, passes, position)
    machine = Machine(image, board)
    places = [Place(image.base(k), position) for k in range(sequences)]
    plan = [batch_pass(board.config, image.model_regs, places, before) for before in range(passes)]
    done = [(p, machine.run(p, sequences - 1)) for p in plan]
    # Of each pass what one of its decodes needs, and of the others what is theirs alone.
    at = [p.positions[0] for p in plan]
    own = sum(image.bytes_per_token(k + 1) - image.shared_bytes for k in at)
    return Prediction(
        cycles=machine.now, prefill_cycles=0, decode_cycles=machine.now, passes=done,
        by_pc=dict(sorted(machine.by_pc.items())), program=machine.program,
        useful_bytes=passes * image.shared_bytes + sequences * own,
        useful_macs=sequences * sum(image.useful_macs(pos0=k, n=1, final=True) for k in at),
        bus_words=machine.memory.words, config=board.config,
        bytes_per_cycle=board.bytes_per_cycle)


def predict_image(image: Image, board: Board) -> Prediction:
    """Predict what the class of an image takes: all runs of :attr:`.Image.runs`, each from its own
    start. useful_bytes and useful_macs are those of a pass over all tokens.

    Raises
    ------
    UserError
        The board does not fit the image.
    """
    image.check_board(board)
    done: list[tuple[Pass, int]] = []
    by_pc, cycles, words = dict[int, Spent](), 0, 0
    for run in image.runs:
        machine = Machine(image, board, run=run)
        for p in prompt_passes(board.config, run.model_regs, run.start_pos, len(run.tokens),
                               run.final):
            p = replace(p, base=run.base)
            done.append((p, machine.run(p)))
        for pc, spent in machine.by_pc.items():
            by_pc.setdefault(pc, Spent()).add(spent)
        cycles, words = cycles + machine.now, words + machine.memory.words
    needs: dict = dict(pos0=0, n=image.context, final=True)
    return Prediction(
        cycles=cycles, prefill_cycles=cycles, decode_cycles=0, passes=done,
        by_pc=dict(sorted(by_pc.items())), program=image.listed,
        useful_bytes=image.useful_bytes(**needs), useful_macs=image.useful_macs(**needs),
        bus_words=words, config=board.config, bytes_per_cycle=board.bytes_per_cycle)


def draft_prices(image: Image, board: Board, most: int) -> list[float]:
    """What a pass that checks 1..most drafts takes longer than one without, in the middle of the
    context and with the drafter's own time, as a share of that pass."""
    machine, position = Machine(image, board), image.context // 2
    machine.run(decode_pass(board.config, image.model_regs, position))
    one = machine.run(decode_pass(board.config, image.model_regs, position))
    return [(machine.run(draft_pass(board.config, image.model_regs, position, 1 + k))
             + machine.draft(position, k)) / one - 1 for k in range(1, most + 1)]


def check_test(image: Image, board: Board, prompt: int, generate: int, start_pos: int) -> None:
    """Raise :class:`UserError` unless :func:`predict` can predict such a test."""
    if prompt < 1 or generate < 0 or start_pos < 0:
        raise UserError(f"a test needs a prompt of at least 1 token, not {prompt}, and generates "
                        f"at least 0, not {generate}, from position 0 or later, not {start_pos}")
    total = start_pos + prompt + max(generate - 1, 0)
    if total > image.context:
        raise UserError(f"{total} tokens do not fit the image's context of {image.context}")
    image.check_board(board)


def predict(image: Image, board: Board, *, prompt: int, generate: int,
            start_pos: int = 0, turns: Sequence[Turn] | None = None,
            blocks: int | None = None) -> Prediction:
    """Predict a test: a prompt of ``prompt`` tokens at ``start_pos``, then ``generate`` tokens.

    The last prompt pass gives the first token, so ``generate`` tokens take ``generate - 1`` passes
    more; 0 and 1 take none. With drafts they take fewer.

    Parameters
    ----------
    prompt : int, 1..
    generate : int, 0..
    start_pos : int, 0..
        Tokens whose keys and values are in the cache already.
    turns : sequence of Turn, optional
        Of a run with drafts: its passes from the prompt's last one on, by the golden model.
    blocks : int, optional
        Of the prompt's passes; as the driver takes them by default.

    Raises
    ------
    UserError
        The tokens do not fit the image's context, or the board does not fit the image.
    """
    check_test(image, board, prompt, generate, start_pos)
    machine = Machine(image, board)
    regs = prompt_regs(image, board, prompt, start_pos, blocks)
    plan = list(prompt_passes(board.config, regs, start_pos, prompt, generate > 0))
    end = start_pos + prompt
    passes = [(p, machine.run(p)) for p in plan]
    prefill = machine.now
    for turn in ([Turn(end + k, [], [0]) for k in range(generate - 1)] if turns is None
                 else turns[1:]):
        p = decode_pass(board.config, regs, turn.position)
        if turn.drafts:
            machine.now += machine.draft(turn.position, len(turn.drafts))
            p = draft_pass(board.config, regs, turn.position, turn.n)
        passes.append((p, machine.run(p, turn.accepted)))
    plan = [p for p, _ in passes]
    return Prediction(
        cycles=machine.now, prefill_cycles=prefill, decode_cycles=machine.now - prefill,
        passes=passes, by_pc=dict(sorted(machine.by_pc.items())), program=machine.program,
        useful_bytes=sum(image.useful_bytes(pos0=p.pos0, n=p.n, final=p.final) for p in plan),
        useful_macs=sum(image.useful_macs(pos0=p.pos0, n=p.n, final=p.final) for p in plan),
        bus_words=machine.memory.words, config=board.config,
        bytes_per_cycle=board.bytes_per_cycle)
