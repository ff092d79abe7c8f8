"""External memory for benches: serves a MemoryPort, or one half of it."""
from __future__ import annotations

import random
from collections import deque

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from bench import cycles, start


class SimMemory:
    """Memory behind the ports ``<prefix>__r_cmd__valid`` and so on of a component.

    Data is exact, timing as asked for. The rules of a stream are checked: what is offered stays
    the same until it is taken.

    Parameters
    ----------
    dut
        The cocotb handle of the component.
    prefix : str
        Of the port's Verilog names.
    size : int
        Bytes; all accesses must be within.
    bus_bytes : int
        Width of the bus.
    latency : int
        Cycles from a read command to its first word, at least 1; and from the last beat of a
        write to its ``w_done``.
    gap : int
        Idle cycles after each read burst.
    stall : float
        Probability that a handshake is refused, and that no word comes, in each cycle.
    queue : int
        Read or write commands taken before the first of them is served.
    command_first : bool
        Write data is taken only after its command; otherwise only the order counts.

    Attributes
    ----------
    data : numpy.ndarray of uint8
        The contents, to be set and looked at by the test.
    reads, writes : list of (cycle, address, words)
        The commands taken, address in bus words.
    read_times : list of int
        Cycle of each bus word delivered.
    """

    def __init__(self, dut, prefix: str, size: int, *, bus_bytes: int, latency: int = 8,
                 gap: int = 0, stall: float = 0.0, queue: int = 4, command_first: bool = False):
        self.dut, self.prefix, self.bus_bytes = dut, prefix, bus_bytes
        self.latency, self.gap, self.stall, self.queue = latency, gap, stall, queue
        self.command_first = command_first
        self.data = np.zeros(size, np.uint8)
        self.reads: list = []
        self.writes: list = []
        self.read_times: list = []

    def start(self) -> SimMemory:
        """Begins to serve; to be called after ``bench.start``."""
        for half, serve in (("r_cmd", self._serve_reads), ("w_cmd", self._serve_writes)):
            if hasattr(self.dut, f"{self.prefix}__{half}__valid"):
                cocotb.start_soon(serve())
        if hasattr(self.dut, f"{self.prefix}__ready"):
            getattr(self.dut, f"{self.prefix}__ready").value = 1
        return self

    def _port(self, *names):
        return [getattr(self.dut, f"{self.prefix}__{name}") for name in names]

    def _goes(self) -> bool:
        return not self.stall or random.random() >= self.stall

    def _command(self, bits: int) -> tuple[int, int]:
        addr, words = bits & 0xFFFF_FFFF, (bits >> 32) + 1
        end = (addr + words) * self.bus_bytes
        assert end <= len(self.data), f"{words} words at {addr:#x} end beyond the memory"
        return addr, words

    async def _serve_reads(self):
        valid, payload, ready, d_valid, d_payload, d_ready = self._port(
            "r_cmd__valid", "r_cmd__payload", "r_cmd__ready",
            "r_data__valid", "r_data__payload", "r_data__ready")
        jobs: deque = deque()               # (first cycle, address, words)
        held = None                         # the command offered and not taken
        word = None                         # offered and not taken
        ready_at = 0
        settled, clock = ReadOnly(), RisingEdge(self.dut.clk)
        while True:
            now = cycles(self.dut)
            accept = len(jobs) < self.queue and self._goes()
            ready.value = int(accept)
            if word is None and jobs and now >= max(jobs[0][0], ready_at) and self._goes():
                at = jobs[0][1] * self.bus_bytes
                word = int.from_bytes(self.data[at:at + self.bus_bytes].tobytes(), "little")
            d_valid.value = int(word is not None)
            d_payload.value = word if word is not None else random.getrandbits(len(d_payload))
            await settled
            offered = int(payload.value) if valid.value else None
            assert held is None or offered == held, "a read command changed before it was taken"
            held = None if accept else offered
            if word is not None and d_ready.value:
                word = None
                self.read_times.append(now)
                first, addr, words = jobs.popleft()
                if words > 1:
                    jobs.appendleft((first, addr + 1, words - 1))
                else:
                    ready_at = now + 1 + self.gap
            if accept and offered is not None:
                addr, words = self._command(offered)
                self.reads.append((now, addr, words))
                jobs.append((now + self.latency, addr, words))
            await clock

    async def _serve_writes(self):
        valid, payload, ready, d_valid, d_payload, d_ready, done = self._port(
            "w_cmd__valid", "w_cmd__payload", "w_cmd__ready",
            "w_data__valid", "w_data__payload", "w_data__ready", "w_done")
        commands: deque = deque()           # (address, words)
        beats: deque = deque()
        finished: deque = deque()           # cycles of w_done
        held = held_beat = None
        settled, clock = ReadOnly(), RisingEdge(self.dut.clk)
        while True:
            now = cycles(self.dut)
            accept = len(commands) < self.queue and self._goes()
            room = (len(beats) < sum(words for _, words in commands) if self.command_first
                    else len(beats) < 64)
            accept_beat = room and self._goes()
            ready.value, d_ready.value = int(accept), int(accept_beat)
            done.value = int(bool(finished) and finished[0] <= now)
            if finished and finished[0] <= now:
                finished.popleft()
            await settled
            offered = int(payload.value) if valid.value else None
            assert held is None or offered == held, "a write command changed before it was taken"
            held = None if accept else offered
            if accept and offered is not None:
                addr, words = self._command(offered)
                self.writes.append((now, addr, words))
                commands.append((addr, words))
            beat = int(d_payload.value) if d_valid.value else None
            assert held_beat is None or beat == held_beat, "write data changed before it was taken"
            held_beat = None if accept_beat else beat
            if accept_beat and beat is not None:
                beats.append(beat)
            while commands and len(beats) >= commands[0][1]:
                addr, words = commands.popleft()
                for i in range(addr * self.bus_bytes, (addr + words) * self.bus_bytes,
                               self.bus_bytes):
                    beat = beats.popleft()
                    for b in range(self.bus_bytes):
                        if beat >> 8 * self.bus_bytes + b & 1:
                            self.data[i + b] = beat >> 8 * b & 255
                # One completion a cycle at most.
                at = now + self.latency + random.randrange(8 if self.stall else 1)
                finished.append(max(at, finished[-1] + 1) if finished else at)
            await clock


async def begin(dut, prefix: str, size: int, **timing) -> SimMemory:
    """Reset the component, and serve its port from a memory of random bytes."""
    await start(dut)
    memory = SimMemory(dut, prefix, size, **timing)
    memory.data[:] = np.random.default_rng(random.getrandbits(32)).integers(0, 256, size, np.uint8)
    return memory.start()
