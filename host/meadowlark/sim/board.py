"""The simulated board: a verilated core with memory, link and logits tap, clocked in C++."""
from __future__ import annotations

import ctypes
from dataclasses import asdict
from pathlib import Path

import numpy as np

from meadowlark_boards import Board

from ..errors import UserError
from .build import Progress, build, core_verilog
from .trace import RECORD

#: Counters of the harness, in the order of its struct. Words are those of the core's port; the time
#: of one on the memory's bus either moves one or is idle for the one cause named: no command, a row
#: being opened, the bus turning round, refresh, or the core not taking data.
COUNTERS = ("cycles", "read_words", "write_words", "read_bursts", "write_bursts",
            "idle_no_command", "idle_row", "idle_turnaround", "idle_refresh", "idle_core",
            "rx_bytes", "tx_bytes", "logits")

#: Longest stretch in C++ without a look at Ctrl-C; less than a tenth of a second.
SLICE = 50_000


class SimulationError(RuntimeError):
    """The core did what no memory would answer."""


class _Timing(ctypes.Structure):
    _fields_ = [(x, ctypes.c_uint64) for x in (
        "size_bytes", "page_bytes", "banks", "ahead_words", "core", "word", "latency", "row_miss",
        "turnaround", "refresh_interval", "refresh")]


class _Counters(ctypes.Structure):
    _fields_ = [(x, ctypes.c_uint64) for x in COUNTERS]


def open_library(path: Path, *, trace: bool = False, waves: bool = False) -> ctypes.CDLL:
    """A shared object of :func:`.build.build`, its functions declared."""
    lib = ctypes.CDLL(str(path))
    u64, ptr = ctypes.c_uint64, ctypes.c_void_p
    for name, result, *args in (
            ("sim_new", ptr, ptr), ("sim_free", None, ptr),
            ("sim_reset", None, ptr), ("sim_memory", ptr, ptr),
            ("sim_push", None, ptr, ctypes.c_char_p, u64), ("sim_waiting", u64, ptr),
            ("sim_pop", u64, ptr, ctypes.c_char_p, u64),
            ("sim_run", u64, ptr, u64, u64, u64, ctypes.c_int),
            ("sim_counters", None, ptr, ctypes.POINTER(_Counters)),
            ("sim_fault", ctypes.c_int, ptr, ctypes.POINTER(u64), ctypes.POINTER(u64)),
            ("sim_logits", u64, ptr), ("sim_starts", u64, ptr),
            ("sim_take_logits", None, ptr, ptr, ptr),
            *((("sim_trace", None, ptr, u64, ctypes.c_uint32), ("sim_traced", u64, ptr),
               ("sim_take_trace", None, ptr, ptr)) if trace else ()),
            *((("sim_waves", ctypes.c_int, ptr, ctypes.c_char_p, u64, u64),
               ("sim_waved", u64, ptr)) if waves else ())):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, args
    return lib


class SimBoard:
    """A board in memory. One clock, started and stopped by :meth:`run`.

    Parameters
    ----------
    board : Board
        Its core is built (once, see :mod:`.build`) and its memory simulated.
    verilog : str, optional
        Another core with the same ports, module ``core``.
    tap : bool
        The core has a logits tap.
    sleep : bool
        Idle blocks stand still (:mod:`meadowlark_hdl.sleep`): the same results in the same cycles,
        sooner.
    trace : bool
        It can record what the units do, see :meth:`record`; another build, and a slower one.
    waves : bool
        It can write its signals, see :meth:`write_waves`; likewise.
    progress : callable, optional
        See :func:`.build.build`.

    Attributes
    ----------
    memory : numpy.ndarray, uint8[size_bytes]
        The external memory itself: reading and writing it takes no cycles.
    quiet : int
        Cycles without a byte after which what came so far is worth a look.
    """

    #: Frames leave the core a byte every few cycles, so whole frames arrive in one read.
    quiet = 32

    def __init__(self, board: Board, *, verilog: str | None = None, tap: bool = True,
                 sleep: bool = True, trace: bool = False, waves: bool = False,
                 progress: Progress | None = None) -> None:
        self.board = board
        if verilog is None:
            verilog = core_verilog(board, sleep=sleep, trace=trace, progress=progress)
        self._lib = open_library(build(verilog, board.config, tap=tap, trace=trace, waves=waves,
                                       progress=progress), trace=trace, waves=waves)
        m = board.memory
        self._begin(_Timing(
            size_bytes=m.size_bytes, page_bytes=m.page_bytes, banks=m.banks,
            ahead_words=m.ahead_words,
            **asdict(m.ticks(board.clock_mhz, board.config.bus_bytes))))

    def _begin(self, facts: ctypes.Structure) -> None:
        """The simulation itself; facts: its memory's, with size_bytes."""
        self._sim = self._lib.sim_new(ctypes.byref(facts))
        at = ctypes.cast(self._lib.sim_memory(self._sim), ctypes.POINTER(ctypes.c_uint8))
        self.memory = np.ctypeslib.as_array(at, (facts.size_bytes,))
        self._forget()
        self._recorded: list[np.ndarray] | None = None      # parts of a recording

    def close(self) -> None:
        """Free the core and its memory; ``memory`` is empty afterwards."""
        if self._sim:
            self.memory = np.zeros(0, np.uint8)
            self._lib.sim_free(self._sim)
            self._sim = None

    def __enter__(self) -> SimBoard:
        return self

    def __exit__(self, *what) -> None:
        self.close()

    def reset(self) -> None:
        """Reset the core, empty the queues and clear the counters; memory keeps its contents."""
        self._lib.sim_reset(self._sim)
        self._forget()

    def push(self, raw: bytes) -> None:
        """Queue bytes towards the core; they move while :meth:`run` runs."""
        self._lib.sim_push(self._sim, bytes(raw), len(raw))

    @property
    def waiting(self) -> int:
        """Bytes from the core that wait for :meth:`pop`."""
        return self._lib.sim_waiting(self._sim)

    def pop(self, limit: int | None = None) -> bytes:
        """Take bytes that the core has sent, at most ``limit``."""
        n = self.waiting if limit is None else min(limit, self.waiting)
        raw = ctypes.create_string_buffer(max(n, 1))
        n = self._lib.sim_pop(self._sim, raw, n)
        return raw.raw[:n]

    def run(self, cycles: int, *, until_bytes: int = 0, quiet: int = 0,
            until_sent: bool = False) -> int:
        """Run the clock.

        Parameters
        ----------
        cycles : int
            Most cycles to run.
        until_bytes : int
            Stop early when that many bytes wait (0: do not look) and none came for ``quiet``
            cycles.
        until_sent : bool
            Stop early when the core has taken all bytes pushed.

        Returns
        -------
        int
            Cycles run.

        Raises
        ------
        SimulationError
            The core addressed memory beyond its end.
        """
        if cycles < 0:
            raise ValueError(f"cycles must not be negative, not {cycles!r}")
        done = 0
        while done < cycles:
            part = min(cycles - done, SLICE)
            ran = self._lib.sim_run(self._sim, part, until_bytes, quiet, until_sent)
            done += ran
            if self._recorded is not None:
                self._recorded.append(self._take_records())
            fault = self._faulty()
            if fault:
                raise fault
            if ran < part:
                break
        return done

    def _faulty(self) -> SimulationError | None:
        """What the core did wrong, if anything."""
        cycle, addr = ctypes.c_uint64(), ctypes.c_uint64()
        if not self._lib.sim_fault(self._sim, ctypes.byref(cycle), ctypes.byref(addr)):
            return None
        return SimulationError(
            f"a burst at byte {addr.value:#x} in cycle {cycle.value} leaves the memory of "
            f"{self.board.memory.size_bytes} bytes")

    def counters(self) -> dict[str, int]:
        """Counters since reset, see :data:`COUNTERS`."""
        c = _Counters()
        self._lib.sim_counters(self._sim, ctypes.byref(c))
        return {x: int(getattr(c, x)) for x in COUNTERS}

    def take_logits(self, rows: int) -> list[np.ndarray]:
        """Logits of the head passes completed since the last call: int32[rows] for each token that
        has some, in order.

        A pass that is not complete yet waits for the next call; one that was cut short by an abort
        is dropped.
        """
        values = np.empty(self._lib.sim_logits(self._sim), np.int32)
        starts = np.empty(self._lib.sim_starts(self._sim), np.uint64)
        self._lib.sim_take_logits(self._sim, values.ctypes.data, starts.ctypes.data)
        starts = np.concatenate([self._begun, starts.astype(np.int64) + len(self._tapped)])
        values = np.concatenate([self._tapped, values])
        # The tokens' logits of a row stand one behind the other, and each of row 0 is a start.
        passes = np.flatnonzero(np.diff(starts, prepend=-2) > 1)
        out: list[np.ndarray] = []
        self._forget()
        for first, behind in zip(passes, [*passes[1:], len(starts)]):
            end = len(values) if behind == len(starts) else starts[behind]
            part, turns = values[starts[first]:end], behind - first
            if len(part) == turns * rows:
                out += list(part.reshape(rows, turns).T)
            elif end == len(values):
                self._tapped, self._begun = part, starts[first:] - starts[first]
        return out

    def _forget(self) -> None:
        self._tapped, self._begun = np.zeros(0, np.int32), np.zeros(0, np.int64)

    def drop_logits(self) -> None:
        """Forget what the tap has seen."""
        self.take_logits(0)
        self._forget()

    def record(self, passes: int) -> None:
        """Record what the units do in runs from now on, in so many passes at most.

        Parameters
        ----------
        passes : int, 1..
            Behind them nothing is recorded, so that a long run takes no more memory.
        """
        self._lib.sim_trace(self._sim, passes, self.board.config.bus_per_chunk)
        self._recorded = []

    def recorded(self) -> np.ndarray:
        """End the recording: an array of :data:`~.trace.RECORD`, by their ends."""
        parts, self._recorded = self._recorded or [], None
        self._lib.sim_trace(self._sim, 0, 1)
        return np.concatenate([np.zeros(0, RECORD), *parts])

    def write_waves(self, path: Path, first: int, last: int) -> None:
        """Write signals of the core as VCD: cycles ``first`` to ``last - 1`` from now on. A
        microsecond of the file is a cycle, and it shows what signals are just before its end.

        Raises
        ------
        UserError
            The file cannot be written.
        """
        if not self._lib.sim_waves(self._sim, str(path).encode(), first, last):
            raise UserError(f"cannot write {path}")

    def end_waves(self) -> int:
        """Complete the file of :meth:`write_waves`; returns the cycles in it."""
        return self._lib.sim_waved(self._sim)

    def _take_records(self) -> np.ndarray:
        records = np.empty(self._lib.sim_traced(self._sim), RECORD)
        self._lib.sim_take_trace(self._sim, records.ctypes.data)
        return records
