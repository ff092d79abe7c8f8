"""LiteDRAM's native port for benches: what its crossbar does to the one who reads and writes."""
from __future__ import annotations

import random
from collections import deque

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from bench import cycles


class NativeMemory:
    """Memory behind the ports ``<prefix>__cmd_valid`` and so on.

    Commands are served in order, one in ``pace`` cycles. As in LiteDRAM nothing holds a word up:
    ``wdata_ready`` and ``rdata_valid`` come when they are due, and it is an error if the word is
    not there or, without a queue behind it, not taken. A write is in memory when its word is
    taken; reads see what is there when they are served.

    Parameters
    ----------
    dut, prefix
        The component's handle, and the name of its port.
    size, native_bytes : int
        Of the memory and of a word, bytes.
    pace, latency : int
        Cycles from one command served to the next, and from there to its word.
    stall : float
        Probability that nothing is served or that a command is refused, in each cycle.
    depth : int
        Commands that wait.

    Attributes
    ----------
    data : numpy.ndarray of uint8
    reads, writes : int
        Native words.
    turns : int
        Changes of direction.
    """

    def __init__(self, dut, prefix: str, size: int, *, native_bytes: int, pace: int = 2,
                 latency: int = 16, stall: float = 0.0, depth: int = 16):
        self.dut, self.prefix, self.bytes = dut, prefix, native_bytes
        self.pace, self.latency, self.stall, self.depth = pace, latency, stall, depth
        self.data = np.frombuffer(random.randbytes(size), np.uint8).copy()
        self.reads = self.writes = self.turns = 0

    def start(self) -> NativeMemory:
        cocotb.start_soon(self._serve())
        return self

    def _word(self, addr: int) -> slice:
        assert (addr + 1) * self.bytes <= len(self.data), f"{addr:#x} is beyond the memory"
        return slice(addr * self.bytes, (addr + 1) * self.bytes)

    async def _serve(self):
        names = ("cmd_valid", "cmd_ready", "cmd_we", "cmd_addr", "wdata_valid", "wdata_ready",
                 "wdata_we", "wdata_data", "rdata_valid", "rdata_data")
        p = {name: getattr(self.dut, f"{self.prefix}__{name}") for name in names}
        settled, clock = ReadOnly(), RisingEdge(self.dut.clk)
        waiting: deque = deque()                # (we, addr)
        due: deque = deque()                    # (cycle, we, addr), in order
        served = last_we = None
        offered = None
        while True:
            now = cycles(self.dut)
            ready = len(waiting) < self.depth and random.random() >= self.stall
            if waiting and (served is None or now - served >= self.pace) \
                    and random.random() >= self.stall:
                we, addr = waiting.popleft()
                self.turns += last_we is not None and we != last_we
                served, last_we = now, we
                due.append((now + (self.latency // 2 if we else self.latency), we, addr))
            # A write's word is due sooner than that of a read before it; each kind is in order.
            write = next((x for x in due if x[1] and x[0] <= now), None)
            read = next((x for x in due if not x[1] and x[0] <= now), None)
            p["cmd_ready"].value = ready
            p["wdata_ready"].value = write is not None
            p["rdata_valid"].value = read is not None
            p["rdata_data"].value = random.getrandbits(8 * self.bytes)
            if read:
                due.remove(read)
                p["rdata_data"].value = read[3] if len(read) > 3 else int.from_bytes(
                    self.data[self._word(read[2])].tobytes(), "little")
                self.reads += 1
            await settled
            if offered is not None:             # what is offered stays until it is taken
                assert p["cmd_valid"].value and offered == (int(p["cmd_we"].value),
                                                            int(p["cmd_addr"].value))
            offered = None
            if p["cmd_valid"].value:
                offered = int(p["cmd_we"].value), int(p["cmd_addr"].value)
                if ready:
                    waiting.append(offered)
                    offered = None
            if write:
                assert p["wdata_valid"].value, "the word to be written is not there"
                due.remove(write)
                strobes, at = int(p["wdata_we"].value), self._word(write[2])
                # Reads that came before keep what they were to see.
                for i, x in enumerate(due):
                    if not x[1] and x[2] == write[2] and len(x) == 3 and x[0] - self.latency \
                            <= write[0] - self.latency // 2:
                        due[i] = (*x, int.from_bytes(self.data[at].tobytes(), "little"))
                word = np.frombuffer(int(p["wdata_data"].value).to_bytes(self.bytes, "little"),
                                     np.uint8)
                mask = [bool(strobes >> k & 1) for k in range(self.bytes)]
                self.data[at][mask] = word[mask]
                self.writes += 1
            await clock
