"""What each unit of the simulated board did: for Perfetto, and where the cycles went.

The file is in the trace event format of Chrome (JSON), which https://ui.perfetto.dev opens. A
process is a run, a thread a unit, a slice a stretch of cycles; a microsecond of the viewer is a
cycle. Stretches are as :mod:`meadowlark.sim.trace` says: one that is interrupted for a few cycles
goes on, and its args say how many really counted.
"""
from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from meadowlark_hdl.control.fetch_golden import walk
from meadowlark_hdl.control.sequencer_golden import Lots, pass_of
from meadowlark_hdl.isa import Instruction, Op, Src

from ..compile.cycles import kind_of
from ..compile.disassemble import line, subjects
from ..files import write_atomic
from ..sim.trace import DONE, STATES, Track
from .bench import markdown
from .targets import SimTarget, Target

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image

#: Why the array gets no beat. An instruction waits for a tile from memory or in the decoder, for a
#: store, for the vector unit; a pass for the link; the rest is "engine": pipelines fill and drain,
#: rows keep their distance, a pass is planned.
CAUSES = ("memory", "decoder", "store", "vector", "link", "engine")
#: Threads from the top: name and the tracks whose slices they show.
_THREADS: tuple[tuple[str, tuple[Track, ...]], ...] = (
    ("Sequencer", (Track.SEQUENCER, Track.TOKEN)),
    ("Fetch: tiles asked for", (Track.FETCH,)),
    ("Memory bus", (Track.MEMORY,)),
    ("Reader: tiles coming", (Track.READER,)),
    ("Decoder", (Track.DECODER,)),
    ("Tile buffer, half 0", (Track.HALF0,)),
    ("Tile buffer, half 1", (Track.HALF1,)),
    ("Issue", (Track.ISSUE, Track.WAIT)),
    ("Array", (Track.ARRAY,)),
    ("Vector unit", (Track.VECTOR,)),
    ("Store unit", (Track.STORE,)),
    ("Sampler", (Track.SAMPLER,)),
)
_TID = {track: tid for tid, (_, tracks) in enumerate(_THREADS, 1) for track in tracks}
#: Slices with a name of their own whatever their state.
_NAMES = {Track.STORE: "words"}
#: What a slice's ``count`` counts, if not cycles; by track, or by track and state.
_COUNTED: dict[Track | tuple[Track, str], str] = {
    (Track.MEMORY, "read"): "words", (Track.MEMORY, "write"): "words", Track.READER: "words",
    (Track.DECODER, "items"): "items", Track.ARRAY: "beats", Track.STORE: "words",
    (Track.SAMPLER, "logits"): "logits"}


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Cycles of some instructions.

    instructions: how many, without one that was given up. array: cycles with a beat for the array.
    lost: the others, by :data:`CAUSES`.
    """
    instructions: int
    cycles: int
    array: int
    lost: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """begin, end: cycles. done: not given up. tiles: for each, in order, the instruction that asks
    for it, its place among that one's, and how many that one has."""
    begin: int
    end: int
    done: bool
    name: str
    args: dict
    tiles: list[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class Recording:
    """A run, or its first passes.

    Parameters
    ----------
    name : str
    image : Image
        What ran.
    board : Board
        On which.
    records : numpy.ndarray of sim.trace.RECORD
    whole : bool
        The run had no more passes.
    """
    name: str
    image: Image
    board: Board
    records: np.ndarray
    whole: bool

    def track(self, track: Track) -> np.ndarray:
        """Records of a track, by time."""
        return self.records[self.records["track"] == track]

    @cached_property
    def begin(self) -> int:
        """The first cycle."""
        return int(self.records["begin"].min(initial=1 << 63)) if len(self.records) else 0

    @property
    def cycles(self) -> int:
        found = self.track(Track.SEQUENCER)
        return int((found["end"] - found["begin"]).sum())

    def totals(self) -> dict[str, int]:
        """The core's counters (see meadowlark_hdl.link.counters_table), as sums of slices."""
        count, starved = self._count, int(self.track(Track.WAIT)["args"][:, 1].sum())
        found = {
            "cycles": self.cycles, "bus_read_words": count(Track.MEMORY, "read"),
            "bus_write_words": count(Track.MEMORY, "write"),
            "passes": sum(p.done for p in self.passes),
            "instructions": int((self.track(Track.ISSUE)["args"][:, 3] >= DONE).sum()),
            "array_active": count(Track.ARRAY),
            "stall_memory": starved + count(Track.WAIT, "store"),
            "stall_decoder": count(Track.WAIT, "tile") - starved,
            "stall_vector": count(Track.WAIT, "vector"),
            "stall_link": count(Track.SEQUENCER, "link")}
        stalls = sum(v for k, v in found.items() if k.startswith("stall_"))
        return found | {"stall_engine": found["cycles"] - found["array_active"] - stalls}

    def _count(self, track: Track, state: str = "") -> int:
        found = self.track(track)
        if state:
            found = found[found["state"] == STATES[track].index(state) + 1]
        return int(found["count"].sum())

    @cached_property
    def passes(self) -> list[_Pass]:
        found, out = self.track(Track.SEQUENCER), []
        config, regs = self.board.config, self.image.model_regs
        for r in found[found["state"] == STATES[Track.SEQUENCER].index("pass") + 1]:
            pc, pos0, n, last = map(int, r["args"])
            decode, done = pc == regs["decode_pc"], last >= DONE
            p = pass_of(config, regs, pos0, n, final=bool(last >> 16 & 1), decode=decode)
            kind = "decode" if decode else "prefill"
            tokens = f"{n} token{'s' if n > 1 else ''} at position {pos0}"
            out.append(_Pass(
                begin=int(r["begin"]), end=int(r["end"]), done=done,
                name=f"{kind}, {tokens}{'' if done else ', given up'}",
                args={"pos0": pos0, "n": n, "ctx": p.ctx, "final": p.final},
                tiles=[(at, k, count) for at, lots in walk(config, self._program, p, pc)
                       for count in [_tiles(self._program[at], n, lots)] for k in range(count)]))
        return out

    @cached_property
    def _program(self) -> list[Instruction]:
        return self.image.instructions

    @cached_property
    def _subjects(self) -> list[str]:
        return subjects(self.image)

    @cached_property
    def instructions(self) -> list[tuple[int, Spent]]:
        """Each that was executed, in order: its address, and its cycles."""
        issue, wait, array = (self.track(t) for t in (Track.ISSUE, Track.WAIT, Track.ARRAY))
        n = len(issue)
        # Slices of both end with their instruction.
        lost = np.zeros((n, len(CAUSES)), np.int64)
        beats = np.zeros(n, np.int64)
        if n:
            at = np.searchsorted(issue["begin"], wait["begin"], "right") - 1
            count, starved = wait["count"].astype(np.int64), wait["args"][:, 1].astype(np.int64)
            for name in STATES[Track.WAIT]:
                these = wait["state"] == STATES[Track.WAIT].index(name) + 1
                if name == "tile":
                    np.add.at(lost[:, CAUSES.index("memory")], at, starved)
                    np.add.at(lost[:, CAUSES.index("decoder")], at, these * (count - starved))
                else:
                    np.add.at(lost[:, CAUSES.index(name)], at, these * count)
            at = np.searchsorted(issue["begin"], array["begin"], "right") - 1
            np.add.at(beats, at, array["count"].astype(np.int64))
        cycles = (issue["end"] - issue["begin"]).astype(np.int64)
        lost[:, -1] = cycles - beats - lost.sum(axis=1)
        done = issue["args"][:, 3] >= DONE
        return [(int(issue["args"][k, 1]), Spent(
            instructions=int(done[k]), cycles=int(cycles[k]), array=int(beats[k]),
            lost=dict(zip(CAUSES, map(int, lost[k]), strict=True)))) for k in range(n)]

    def spent(self) -> dict[str, Spent]:
        """Cycles by kind of instruction, most first; "between" is what lies between them."""
        kinds: dict[str, list[Spent]] = {}
        for pc, spent in self.instructions:
            kinds.setdefault(kind_of(self._program[pc]), []).append(spent)
        found = {kind: _sum(some) for kind, some in kinds.items()}
        found = dict(sorted(found.items(), key=lambda item: -item[1].cycles))
        rest, link = self.cycles - sum(s.cycles for s in found.values()), self._count(
            Track.SEQUENCER, "link")
        return found | {"between": Spent(instructions=0, cycles=rest, array=0, lost=dict.fromkeys(
            CAUSES, 0) | {"link": link, "engine": rest - link})}

    def bus(self) -> dict[str, float]:
        """Shares of the time of the memory's bus, by the states of Track.MEMORY; the rest is
        "idle"."""
        ticks = self.board.memory.ticks(self.board.clock_mhz, self.board.config.bus_bytes)
        words = max(1, self.cycles * ticks.core / ticks.word)
        found = {state: self._count(Track.MEMORY, state) / words
                 for state in STATES[Track.MEMORY]}
        return found | {"idle": max(0.0, 1 - sum(found.values()))}

    def events(self, pid: int, at: int) -> Iterator[dict]:
        """Trace events, in no order; ``at`` is the time of the first cycle."""
        names = [("process_name", 0, f"{self.name}, {self.image.name} on {self.board.name}; "
                                     "1 us is 1 cycle"),
                 *(("thread_name", tid, name) for tid, (name, _) in enumerate(_THREADS, 1))]
        for what, tid, name in names:
            yield {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
        for event in chain(self._slices(), self._fetched(), self._counters()):
            event["ts"] += at - self.begin
            yield event | {"pid": pid}

    def _slices(self) -> Iterator[dict]:
        executed = iter(self.instructions)
        passes = iter(self.passes)
        begins = np.array([p.begin for p in self.passes], np.uint64)
        for r in self.records:
            track = Track(r["track"])
            if track in (Track.FETCH, Track.WINDOW):
                continue
            begin, end, count, state = (int(r[f]) for f in ("begin", "end", "count", "state"))
            event = {"ph": "X", "tid": _TID[track], "ts": begin, "dur": end - begin}
            names = STATES.get(track)
            name = names[state - 1] if names else _NAMES.get(track, "")
            args: dict = {_COUNTED.get((track, name)) or _COUNTED.get(track, "cycles"): count}
            if track is Track.TOKEN:
                event |= {"ph": "i", "s": "t"}
                del event["dur"]
                name, args = f"token {r['args'][0]}", {"reason": state - 1}
            elif track is Track.SEQUENCER:
                args = {}
                if name == "pass":
                    found = next(passes)
                    name, args = found.name, found.args
            elif track is Track.ISSUE:
                pc, spent = next(executed)
                name, args = self._named(pc), {
                    "pc": pc, "instruction": line(self._program[pc]), "array": spent.array,
                    **{f"lost to {cause}": lost for cause, lost in spent.lost.items() if lost}}
            elif track is Track.ARRAY:
                name = "beats"
            elif track is Track.WAIT:
                if name == "tile":
                    starved = int(r["args"][1])
                    args = {"cycles": count, "memory": starved, "decoder": count - starved}
                name = f"wait: {name}"
            elif track in (Track.READER, Track.HALF0, Track.HALF1):
                which = int(np.searchsorted(begins, r["begin"], "right")) - 1
                what = self._tile(which, int(r["args"][0]))
                if track is Track.READER:
                    name = what
                else:
                    args = {"tile": what}
            yield event | {"name": name, "args": args}

    def _named(self, pc: int) -> str:
        i = self._program[pc]
        return f"{Op(i['op']).name} {self._subjects[pc]}".rstrip()

    def _tile(self, which: int, number: int) -> str:
        """Name of a tile of a pass."""
        if not 0 <= which < len(self.passes) or number >= len(self.passes[which].tiles):
            return "tile"
        pc, k, count = self.passes[which].tiles[number]
        return f"{self._named(pc)}, {k + 1} of {count}"

    def _fetched(self) -> Iterator[dict]:
        """A slice for each instruction with tiles: from its first one's job to its last one's."""
        jobs = self.track(Track.FETCH)
        for p in self.passes:
            lo, hi = np.searchsorted(jobs["begin"], [p.begin, p.end])
            some, k = jobs[lo:hi], 0
            while k < len(some) and k < len(p.tiles):
                pc, _, count = p.tiles[k]
                mine = some[k:k + count]
                k += count
                begin, end = int(mine["begin"][0]), int(mine["end"][-1])
                yield {"ph": "X", "tid": _TID[Track.FETCH], "ts": begin, "dur": end - begin,
                       "name": self._named(pc),
                       "args": {"pc": pc, "tiles": len(mine),
                                "chunks": int(mine["args"][:, 2].sum())}}

    def _counters(self) -> Iterator[dict]:
        """Where they change; the last ones are 0."""
        windows = self.track(Track.WINDOW)
        size = self.board.config.bus_bytes
        shown: dict[str, dict] = {}

        def at(time: int, name: str, args: dict) -> Iterator[dict]:
            if shown.get(name) != args:
                shown[name] = args
                yield {"ph": "C", "tid": 0, "ts": time, "name": name, "args": args}
        bus, fifo = "memory bus, bytes per cycle", "run-ahead FIFO, bytes"
        for r in windows:
            cycles = int(r["end"] - r["begin"])
            read, written = (round(size * int(r["args"][k]) / cycles, 3) for k in range(2))
            yield from at(int(r["begin"]), bus, {"read": read, "written": written})
            yield from at(int(r["end"]), fifo, {"level": size * int(r["count"])})
        if len(windows):
            end = int(windows["end"][-1])
            yield from at(end, bus, {"read": 0.0, "written": 0.0})
            yield from at(end, fifo, {"level": 0})


def _tiles(i: Instruction, n: int, lots: Lots | None) -> int:
    """Tiles of an instruction in a pass of n tokens. lots: of QK and SV."""
    src = i["src"]
    if lots is not None:
        return -(-len(lots.keys) // i["rows"])
    if src == Src.STREAM:
        return i["tiles"]
    return n if src in (Src.TABLE, Src.TOKEN) else 0


def _sum(some: Sequence[Spent]) -> Spent:
    return Spent(instructions=sum(s.instructions for s in some), cycles=sum(s.cycles for s in some),
                 array=sum(s.array for s in some),
                 lost={cause: sum(s.lost[cause] for s in some) for cause in CAUSES})


class Timeline:
    """Recordings of one command, and their file.

    Parameters
    ----------
    passes : int, 1..
        Most passes of a run that are recorded, the first ones.
    """

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.recordings: list[Recording] = []

    @contextmanager
    def recording(self, target: Target, image: Image, name: str) -> Iterator[None]:
        """Record the run within. target: a SimTarget with ``trace``."""
        assert isinstance(target, SimTarget)
        target.sim.record(self.passes)
        yield
        records = target.sim.recorded()
        self.recordings.append(Recording(name, image, target.board, records,
                                         target.counters()["passes"] <= self.passes))

    def write(self, path: str) -> int:
        """Write all recordings, one after the other in time; returns bytes.

        path : str
            Of a name that ends in .gz it is compressed, which Perfetto reads as well.

        Raises
        ------
        UserError
            See :func:`meadowlark.files.write_atomic`.
        """
        parts, at = [], 0
        for pid, recording in enumerate(self.recordings, 1):
            parts += [json.dumps(e, separators=(",", ":")) for e in recording.events(pid, at)]
            at += recording.cycles
        clocks = sorted({r.board.clock_mhz for r in self.recordings})
        head = {"displayTimeUnit": "ns", "otherData": {
            "unit": "a microsecond is a cycle", "clock_mhz": ", ".join(f"{c:g}" for c in clocks)}}
        text = (json.dumps(head)[:-1] + ', "traceEvents": [\n' + ",\n".join(parts)
                + "\n]}\n").encode()
        if path.endswith(".gz"):
            text = gzip.compress(text, mtime=0)
        write_atomic(path, text)
        return len(text)

    def table(self) -> str:
        """Where the cycles of each recording went, and the time of the bus, in Markdown."""
        return "\n\n".join(_table(r) for r in self.recordings)


def _table(recording: Recording) -> str:
    head = (recording.name, "instructions", "cycles", "array", *CAUSES)
    found = recording.spent()
    found["all"] = _sum([*found.values()])
    rows = [head, *((kind, *(f"{v:,}" for v in (s.instructions, s.cycles, s.array,
                                                *s.lost.values()))) for kind, s in found.items())]
    bus = ", ".join(f"{state} {share:.1%}" for state, share in recording.bus().items()
                    if share >= 0.0005)
    return f"{markdown(rows, left={0})}\n\nmemory bus of {recording.name}: {bus}"
