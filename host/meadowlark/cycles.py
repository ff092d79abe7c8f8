"""Cycle model: what a test will take, from program, Config and memory timing alone.

Two timelines at the grain of a burst and a tile. The memory side walks the jobs in order: a burst
is asked for when the run-ahead FIFO has room for it, a tile enters a half of the tile buffer when
the tile before the last has been used. The engine executes instruction after instruction and waits
for each tile. Whatever is not the array's own work has a name in :class:`Overheads`.
"""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import Pass, prompt_passes
from meadowlark_hdl.isa import Epi, Instruction, Op

from .errors import UserError

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """Latencies in cycles, apart from the work itself; the one table to calibrate.

    Parameters
    ----------
    run : int
        From start to the first job of the first pass.
    pass_ : int
        From the last result or sampled token of a pass to the first job of the next.
    fetch : int
        Of the Fetch unit an instruction, before its first job.
    job : int
        Of the Reader a tile, before its first burst; hidden while it waits for room.
    command : int
        From a read command to the memory bus, beside the memory's own latency.
    decode : int
        From the last chunk of a tile out of the FIFO to ``available``.
    issue : int
        From the end of an instruction to the start of the next.
    tile : int
        From ``available`` to the first beat, each tile the engine waits for.
    next_tile : int
        The same for a tile that was there before it was needed.
    drain : int
        LINEAR: from the last beat until its last result is written, lanes apart (+ P).
    norm_token, norm_drain : int
        NORM: a token beside hidden/4; an instruction.
    embed_token, rope_token : int
        EMBED, ROPE: a token beside hidden, head_pad/2.
    score_drain : int
        QK: from the last beat of an instruction until its last score is written, lanes apart.
    sum_gap : int
        SV: a block, from its last beat to the first row of its drain.
    sv_start : int
        SV: an instruction, until its first probability has come out of the softmax.
    store, store_token : int
        STORE: an instruction; a token beside its words on the bus.
    end : int
        END.
    sample : int
        From the last logit to the token, greedy.
    """
    run: int = 20
    pass_: int = 10
    fetch: int = 8
    job: int = 2
    command: int = 2
    decode: int = 4
    issue: int = 4
    tile: int = 4
    next_tile: int = 3
    drain: int = 30
    norm_token: int = 4
    norm_drain: int = 40
    embed_token: int = 4
    rope_token: int = 4
    score_drain: int = 16
    sum_gap: int = 12
    sv_start: int = 12
    store: int = 8
    store_token: int = 4
    end: int = 2
    sample: int = 30


@dataclass
class Spent:
    """Cycles of one instruction, summed over passes.

    work: rows, tokens or drains by the array's own rate. memory: waiting for a tile. overhead: the
    rest (starts, drains of pipelines, gaps).
    """
    count: int = 0
    work: int = 0
    memory: int = 0
    overhead: int = 0

    @property
    def cycles(self) -> int:
        return self.work + self.memory + self.overhead

    def add(self, other: Spent) -> None:
        self.count += other.count
        self.work += other.work
        self.memory += other.memory
        self.overhead += other.overhead


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a test takes.

    cycles: from start to the last token; prefill_cycles: of the passes over the prompt, with the
    first token; decode_cycles: of the rest. passes: each pass with its cycles. by_pc: cycles of
    each instruction of the program, over all passes. useful_bytes, useful_macs: of the test, as
    :meth:`meadowlark.image.Image.useful_bytes`. bus_words: words read and written, all of them.
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

    @property
    def memory_utilisation(self) -> float:
        """useful_bytes / (cycles x bus_bytes)."""
        return self.useful_bytes / (self.cycles * self.config.bus_bytes)

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
        lines = ["| instruction | count | cycles | share | work | waits for memory | overhead |",
                 "|---|---|---|---|---|---|---|"]
        for name, s in self.by_kind().items():
            lines.append(f"| {name} | {s.count:,} | {s.cycles:,} | {s.cycles / self.cycles:.1%} | "
                         f"{s.work:,} | {s.memory:,} | {s.overhead:,} |")
        lines.append(f"| all | | {self.cycles:,} | | | | |")
        return "\n".join(lines)


def kind_of(instruction: Instruction) -> str:
    """Name of an instruction's kind: operator, and what sets it apart within it."""
    op = Op(instruction["op"])
    if op == Op.LINEAR:
        return f"LINEAR {Epi(instruction['epi']).name}"
    return op.name


class _Memory:
    """Memory bus, FIFO and tile buffer: when does a tile become available?"""

    def __init__(self, board: Board, overheads: Overheads) -> None:
        self.c, self.t, self.o = board.config, board.memory, overheads
        self.per_chunk = self.c.bus_per_chunk
        self.command = 0            # time the Reader can ask for the next burst
        self.free = 0               # time the bus is free
        self.refresh = self.t.refresh_interval_cycles
        self.rows = [-1] * self.t.banks
        self.bank = -1
        self.taken = 0              # time the decoder took the last chunk so far
        self.waiting: deque[tuple[int, int]] = deque()  # bursts in the FIFO: (taken at, words)
        self.level = 0              # words reserved in the FIFO
        self.halves = deque([0, 0])     # times the two halves are free
        self.writes: deque[tuple[int, int]] = deque()   # (start, words): to be put on the bus
        self.words = 0

    def tile(self, addr: int, chunks: int, earliest: int) -> int:
        """Read a tile; earliest: time its job is known. Returns the time it is available."""
        c, o = self.c, self.o
        words = chunks * self.per_chunk
        at = addr * self.per_chunk
        room = self.halves.popleft()
        command = max(self.command, earliest) + o.job
        taken = max(self.taken, room)
        while words:
            n = min(words, c.burst_words)
            # room in the FIFO for the whole burst
            while self.level + n > c.fifo_words:
                when, gone = self.waiting.popleft()
                self.level -= gone
                command = max(command, when)
            start, end = self._burst(at, n, command)
            command = max(command + 1, start)
            taken = max(taken + -(-n // self.per_chunk), end + self.t.latency_cycles)
            self.waiting.append((taken, n))
            self.level += n
            at += n
            words -= n
        self.command, self.taken = command, taken
        return taken + o.decode

    def _burst(self, at: int, n: int, command: int) -> tuple[int, int]:
        t = self.t
        self.words += n
        page = at * self.c.bus_bytes // t.page_bytes
        last = (at + n) * self.c.bus_bytes - 1
        bank, miss = page % t.banks, 0
        if self.rows[bank] != page // t.banks:
            self.rows[bank] = page // t.banks
            miss = t.row_miss_cycles
        ready = command + self.o.command
        if bank == self.bank:       # the row is opened when the bus is idle
            start = max(self.free, ready) + miss
        else:                       # opened while the burst before runs
            start = max(self.free, ready + miss)
        self.bank = bank
        while self.writes and self.writes[0][0] <= start:
            _, words = self.writes.popleft()
            start = max(start, self.free + words + 2 * t.turnaround_cycles)
        if t.refresh_interval_cycles:
            while self.refresh <= start:
                start = max(start, max(self.free, self.refresh) + t.refresh_cycles)
                self.refresh += t.refresh_interval_cycles
        end = start + n
        if last // t.page_bytes != page:        # the next page is another bank's, opened in time
            page = last // t.page_bytes
            bank = page % t.banks
            if t.banks == 1:
                end += t.row_miss_cycles
            self.rows[bank], self.bank = page // t.banks, bank
        self.free = end
        return start, end

    def release(self, when: int) -> None:
        """The engine has given a half back."""
        self.halves.append(when + 1)

    def write(self, when: int, words: int) -> None:
        self.writes.append((when, words))
        self.words += words


class _Machine:
    """Both timelines; runs passes."""

    def __init__(self, image: Image, board: Board, overheads: Overheads) -> None:
        self.c, self.o = board.config, overheads
        self.program = image.instructions
        self.regs = image.model_regs
        self.memory = _Memory(board, overheads)
        self.by_pc: dict[int, Spent] = {}
        self.now = overheads.run        # engine
        self.stream = 0

    def _wait(self, spent: Spent, addr: int, chunks: int, earliest: int) -> None:
        """Read a tile and wait for it; starts its use."""
        available = self.memory.tile(addr, chunks, earliest)
        if available > self.now:
            spent.memory += available - self.now
            self.now = available
            lead = self.o.tile
        else:
            lead = self.o.next_tile
        spent.overhead += lead
        self.now += lead

    def _work(self, spent: Spent, cycles: int) -> None:
        spent.work += cycles
        self.now += cycles

    def _lose(self, spent: Spent, cycles: int) -> None:
        spent.overhead += cycles
        self.now += cycles

    def run(self, p: Pass) -> int:
        """One pass; returns its cycles."""
        began = self.now
        self.stream = self.regs["stream_addr"]
        self.fetch = self.now           # the memory side begins with the pass
        self.fence = 0
        pc = self.regs["decode_pc" if p.decode else "prefill_pc"]
        while True:
            i = self.program[pc]
            spent = self.by_pc.setdefault(pc, Spent())
            spent.count += 1
            pc += 1
            self.fetch += self.o.fetch
            if i["op"] == Op.END:
                self._lose(spent, self.o.end)
                if not i["last"] or not p.final:
                    break
                continue
            self._lose(spent, self.o.issue)
            getattr(self, "_" + Op(i["op"]).name.lower())(i, p, spent)
        if p.final:
            self.now += self.o.sample
        self.now += self.o.pass_
        return self.now - began

    def _stream_tile(self, i: Instruction, spent: Spent, chunks: int) -> None:
        self._wait(spent, self.stream, chunks, self.fetch)
        self.stream += chunks

    def _embed(self, i: Instruction, p: Pass, spent: Spent) -> None:
        # Token ids are not known to the model: any row will do, each is another page.
        for s in range(p.n):
            self._wait(spent, i["addr"] + (s * 37 % self.regs["vocab"]) * i["chunks"], i["chunks"],
                       self.fetch)
            self._work(spent, self.regs["hidden"])
            self._lose(spent, self.o.embed_token)
            self.memory.release(self.now)

    def _rope(self, i: Instruction, p: Pass, spent: Spent) -> None:
        for s in range(p.n):
            self._wait(spent, i["addr"] + (p.pos0 + s) * i["chunks"], i["chunks"], self.fetch)
            self._work(spent, 1 << self.regs["head_log2"] - 1)
            self._lose(spent, self.o.rope_token)
            self.memory.release(self.now)

    def _norm(self, i: Instruction, p: Pass, spent: Spent) -> None:
        self._stream_tile(i, spent, i["chunks"])
        n = 1 if i["last"] else p.n
        self._work(spent, n * self.regs["hidden"] // Config.NORM_WIDTH)
        self._lose(spent, n * self.o.norm_token + self.o.norm_drain)
        self.memory.release(self.now)

    def _linear(self, i: Instruction, p: Pass, spent: Spent) -> None:
        nb = 1 if i["last"] else p.nb
        a_row = nb * max(i["row_beats"], self.c.P)
        for k in range(i["tiles"]):
            end = k == i["tiles"] - 1
            self._stream_tile(i, spent, i["last_chunks" if end else "chunks"])
            self._work(spent, a_row * i["last_rows" if end else "rows"])
            self.memory.release(self.now)
        self._lose(spent, self.c.P + self.o.drain)

    def _store(self, i: Instruction, p: Pass, spent: Spent) -> None:
        words = p.n * i["row_beats"] * self.c.bus_per_chunk
        self.memory.write(self.now, words)
        self._work(spent, words)
        self._lose(spent, self.o.store + p.n * self.o.store_token)
        self.fence = self.now

    def _kv_tiles(self, i: Instruction, p: Pass, spent: Spent):
        """Reads the cache; yields (keys of each block in this tile, ends a block) a tile."""
        limits = [p.ctx] if i["heads"] else [
            min(p.ctx, p.pos0 + (b + 1) * self.c.P) for b in range(p.nb)]
        for first in range(0, p.ctx, i["rows"]):
            n = min(i["rows"], p.ctx - first)
            self._wait(spent, i["addr"] + first * i["row_beats"], n * i["row_beats"],
                       max(self.fetch, self.fence))
            yield [(max(0, min(limit - first, n)), first < limit <= first + n)
                   for limit in limits]
            self.memory.release(self.now)

    def _qk(self, i: Instruction, p: Pass, spent: Spent) -> None:
        for blocks in self._kv_tiles(i, p, spent):
            self._work(spent, sum(keys for keys, _ in blocks) * i["row_beats"])
        self._lose(spent, self.c.P + self.o.score_drain)

    def _sv(self, i: Instruction, p: Pass, spent: Spent) -> None:
        self._lose(spent, self.o.sv_start)
        rows = 1 + (1 << self.regs["head_log2"])
        for blocks in self._kv_tiles(i, p, spent):
            for keys, last in blocks:
                self._work(spent, keys * i["row_beats"])
                if last:
                    self._work(spent, rows * self.c.P)
                    self._lose(spent, self.o.sum_gap)
        self._lose(spent, self.c.P + self.o.drain)


def predict(image: Image, board: Board, *, prompt: int, generate: int, start_pos: int = 0,
            overheads: Overheads | None = None) -> Prediction:
    """Predict a test: a prompt of ``prompt`` tokens at ``start_pos``, then ``generate`` tokens.

    The last prompt pass gives the first token, so ``generate`` tokens take ``generate - 1`` passes
    more; 0 and 1 take none.

    Parameters
    ----------
    prompt : int, 1..
    generate : int, 0..
    start_pos : int, 0..
        Tokens whose keys and values are in the cache already.
    overheads : Overheads, optional
        Latencies; the calibrated ones by default.

    Raises
    ------
    UserError
        The tokens do not fit the image's context, or the board does not fit the image.
    """
    if prompt < 1 or generate < 0 or start_pos < 0:
        raise UserError(f"a test needs a prompt of at least 1 token, not {prompt}, and generates "
                        f"at least 0, not {generate}, from position 0 or later, not {start_pos}")
    total = start_pos + prompt + max(generate - 1, 0)
    if total > image.context:
        raise UserError(f"{total} tokens do not fit the image's context of {image.context}")
    image.check_board(board)
    machine = _Machine(image, board, overheads or Overheads())
    regs = image.model_regs
    plan = list(prompt_passes(board.config, regs["head_log2"], regs["blocks"], start_pos, prompt,
                              generate > 0))
    first_decode = len(plan)
    end = start_pos + prompt
    plan += [Pass(end + k, 1, 1, end + k + 1, True, True) for k in range(generate - 1)]
    passes = [(p, machine.run(p)) for p in plan]
    prefill = machine.o.run + sum(cycles for _, cycles in passes[:first_decode])
    return Prediction(
        cycles=machine.now, prefill_cycles=prefill, decode_cycles=machine.now - prefill,
        passes=passes, by_pc=dict(sorted(machine.by_pc.items())), program=machine.program,
        useful_bytes=sum(image.useful_bytes(pos0=p.pos0, n=p.n, head=p.final) for p in plan),
        useful_macs=sum(image.useful_macs(pos0=p.pos0, n=p.n, head=p.final) for p in plan),
        bus_words=machine.memory.words, config=board.config)
