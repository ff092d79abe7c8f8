"""An SDR SDRAM that knows its datasheet: every command is checked, a violation fails the test."""
from __future__ import annotations

import random
from collections import deque

from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark_hdl.memory.sdram_part import SdramPart


class Violation(AssertionError):
    """The chip was told something its datasheet forbids."""


class SdramDevice:
    """The chip, a clock edge at a time; no simulator in it.

    Times are kept in nanoseconds, not in the cycles that a controller computes from them. Nothing
    is forgiven: what the datasheet calls illegal or undefined is a :class:`Violation`.

    Parameters
    ----------
    part : SdramPart
    clock_mhz : float
    seed : int
        Of the contents before the first write, and of the noise on the pins.

    Attributes
    ----------
    words : dict of int to int          Written contents by {row, bank, column}.
    counts : dict of str to int         Commands by name.
    moved : int                         Words read and written.
    """

    NAMES = {0b111: "NOP", 0b011: "STOP", 0b101: "READ", 0b001: "WRITE", 0b110: "ACTIVATE",
             0b010: "PRECHARGE", 0b100: "REFRESH", 0b000: "MODE"}
    ROW_OPEN_NS = 120_000               # tRAS, the largest

    def __init__(self, part: SdramPart, clock_mhz: float, *, seed: int = 0):
        self.part, self.period = part, 1000 / clock_mhz
        self.words: dict[int, int] = {}
        self.seed, self.noise = seed, random.Random(seed)
        self.cycle = 0
        self.counts = dict.fromkeys(self.NAMES.values(), 0)
        self.moved = 0
        banks = 1 << part.bank_bits
        self.open: list[int | None] = [None] * banks
        never = -1e9
        self.activated, self.precharged = [never] * banks, [never] * banks
        self.written = [never] * banks          # end of the last word written
        self.refreshed = self.mode_at = never
        self.cas: int | None = None
        self.power_up_refreshes = 0
        self.first_refresh: float | None = None
        self.burst: tuple[str, int, int] | None = None      # kind, bank, column of the next word
        self.output: deque = deque()            # (cycle, word) on its way to the pins
        self.masks: deque = deque([0, 0], maxlen=2)         # dqm of the last two edges
        self.last_out = -10                     # edge that sampled the last word read

    # --- helpers ----------------------------------------------------------------------------------

    def _fail(self, what: str) -> None:
        raise Violation(f"cycle {self.cycle}: {what}")

    def _since(self, when: float, least: float, what: str, cycles: int = 0) -> None:
        now = self.cycle * self.period
        least = max(least, cycles * self.period)
        if now - when < least - 1e-6:
            self._fail(f"{what} after {now - when:.1f} ns, {least:g} ns are needed")

    def address(self, bank: int, row: int, col: int) -> int:
        return (row << self.part.bank_bits | bank) << self.part.col_bits | col

    def initial(self, at: int) -> int:
        """What a word holds before it is written."""
        return (at * 2654435761 + self.seed * 40503 >> 7) & (1 << self.part.data_bits) - 1

    def read(self, at: int) -> int:
        return self.words.get(at, self.initial(at))

    # --- a clock edge -----------------------------------------------------------------------------

    def edge(self, *, cke: int, code: int, ba: int, a: int, dqm: int, dq: int | None) -> int | None:
        """What the chip does at an edge that samples these pins.

        code: {ras_n, cas_n, we_n}, ras_n lowest. dq: what the controller drives, or None.
        Returns what the chip drives until the next edge samples it, or None.
        """
        part, now = self.part, self.cycle * self.period
        name = self.NAMES[code]
        if not cke and self.cycle > 2:
            self._fail("CKE is low")
        self.counts[name] += 1
        if self.cas is None and name in ("READ", "WRITE", "ACTIVATE", "STOP"):
            self._fail(f"{name} before the mode register is set")
        if name != "NOP":
            if now < part.init_us * 1000:
                self._fail(f"{name} during power-up")
            self._since(self.refreshed, part.rfc_ns, f"{name} after REFRESH")
            self._since(self.mode_at, 0, f"{name} after MODE", cycles=part.mrd_cycles)
        getattr(self, "_" + name.lower())(ba, a, dq)
        if name in ("NOP", "ACTIVATE", "PRECHARGE"):
            self._continue(dqm, dq)
        elif name in ("READ", "WRITE"):
            self._word(dqm, dq)
        elif dq is not None:
            self._fail(f"data is driven with {name}")
        # Data on the bus.
        driven = None
        if self.output and self.output[0][0] == self.cycle + 1:
            _, word, asked_at = self.output.popleft()
            if self.masks[-1]:          # a mask blanks what leaves two edges later
                self._fail(f"the word asked for in cycle {asked_at} is masked")
            driven = word
            self.last_out = self.cycle + 1
        self.masks.append(dqm)
        budget = now - (self.first_refresh or now)
        owed = budget * part.refreshes / (part.refresh_ms * 1e6) - self.counts["REFRESH"] + 8
        if owed > 9.5:
            self._fail(f"{owed:.1f} refreshes are overdue")
        self.cycle += 1
        return driven

    def _word(self, dqm: int, dq: int | None) -> None:
        """The word of the burst at this edge."""
        assert self.burst is not None and self.cas is not None
        kind, bank, col = self.burst
        row = self.open[bank]
        assert row is not None
        at = self.address(bank, row, col)
        self.burst = kind, bank, (col + 1) % (1 << self.part.col_bits)
        self.moved += 1
        if kind == "READ":
            if dq is not None:
                self._fail("data is driven while a burst is read")
            self.output.append((self.cycle + self.cas, self.read(at), self.cycle))
            return
        if dq is None:
            self._fail("a word to be written is not driven")
            return
        if self.last_out >= self.cycle - 1 or self.output:
            self._fail("data is driven while the chip drives, or in the cycle after")
        old, mask = self.read(at), 0
        for i in range(self.part.data_bits // 8):
            mask |= 0 if dqm >> i & 1 else 255 << 8 * i
        self.words[at] = old & ~mask | dq & mask
        self.written[bank] = self.cycle * self.period

    def _continue(self, dqm: int, dq: int | None) -> None:
        if self.burst is not None:
            self._word(dqm, dq)
        elif dq is not None:
            self._fail("data is driven and no burst is under way")

    def _nop(self, ba, a, dq) -> None:
        pass

    def _stop(self, ba, a, dq) -> None:
        if self.burst is None:
            self._fail("STOP without a burst")
        self.burst = None

    def _column(self, name: str, ba: int, a: int) -> None:
        if self.open[ba] is None:
            self._fail(f"{name} in bank {ba}, which has no open row")
        if a >> 10:
            self._fail(f"{name} with auto-precharge or unused address bits")
        if a >> self.part.col_bits:
            self._fail(f"{name} of column {a}, beyond the row")
        self._since(self.activated[ba], self.part.rcd_ns, f"{name} after ACTIVATE")
        self.burst = name, ba, a

    def _read(self, ba, a, dq) -> None:
        self._column("READ", ba, a)

    def _write(self, ba, a, dq) -> None:
        self._column("WRITE", ba, a)

    def _activate(self, ba, a, dq) -> None:
        if self.open[ba] is not None:
            self._fail(f"ACTIVATE in bank {ba}, which has an open row")
        self._since(self.precharged[ba], self.part.rp_ns, "ACTIVATE after PRECHARGE")
        self._since(self.activated[ba], self.part.rc_ns, "ACTIVATE after ACTIVATE of the bank")
        self._since(max(self.activated), self.part.rrd_ns, "ACTIVATE after ACTIVATE")
        self.open[ba], self.activated[ba] = a & (1 << self.part.row_bits) - 1, \
            self.cycle * self.period

    def _precharge(self, ba, a, dq) -> None:
        for bank in range(len(self.open)) if a >> 10 & 1 else (ba,):
            if self.burst is not None and self.burst[1] == bank:
                self._fail(f"PRECHARGE of bank {bank} under its burst")
            if self.open[bank] is None:
                continue
            self._since(self.activated[bank], self.part.ras_ns, "PRECHARGE after ACTIVATE")
            if self.cycle * self.period - self.activated[bank] > self.ROW_OPEN_NS:
                self._fail(f"the row of bank {bank} was open too long")
            # The last word's own edge counts: recovery starts with it.
            self._since(self.written[bank], self.part.wr_ns, "PRECHARGE after the last word")
            self.open[bank], self.precharged[bank] = None, self.cycle * self.period

    def _refresh(self, ba, a, dq) -> None:
        if any(row is not None for row in self.open):
            self._fail("REFRESH with an open row")
        self._since(max(self.precharged), self.part.rp_ns, "REFRESH after PRECHARGE")
        self.refreshed = self.cycle * self.period
        if self.first_refresh is None:
            self.first_refresh = self.refreshed
        self.power_up_refreshes += self.cas is None

    def _mode(self, ba, a, dq) -> None:
        if any(row is not None for row in self.open) or self.burst is not None:
            self._fail("MODE with an open row")
        if self.power_up_refreshes < 2:
            self._fail("MODE before two refreshes")
        if ba or a & ~0b0_111_111 or a & 0b1111 != 0b0111 or a >> 4 not in self.part.clock_ns:
            self._fail(f"mode {a:#x} is not a full page with a known CAS latency")
        self.cas = a >> 4
        if self.period < self.part.clock_ns[self.cas] - 1e-3:
            self._fail(f"CAS latency {self.cas} is too small for this clock")
        self.mode_at = self.cycle * self.period


async def serve(dut, prefix: str, device: SdramDevice, *, pads: int = 0) -> None:
    """Connect a device to the pins ``<prefix>__cke`` and so on of a component, for ever.

    pads: cycles of registers on the way out and back; they stand on the way back here.
    """
    pins = {name: getattr(dut, f"{prefix}__{name}") for name in
            ("cke", "ras_n", "cas_n", "we_n", "ba", "a", "dqm", "dq_o", "dq_oe", "dq_i")}
    settled, clock = ReadOnly(), RisingEdge(dut.clk)
    bits = device.part.data_bits
    late: deque = deque([None] * pads)
    while True:
        await settled
        value = {name: int(pin.value) for name, pin in pins.items() if name != "dq_i"}
        driven = device.edge(
            cke=value["cke"], code=value["ras_n"] | value["cas_n"] << 1 | value["we_n"] << 2,
            ba=value["ba"], a=value["a"], dqm=value["dqm"],
            dq=value["dq_o"] if value["dq_oe"] else None)
        late.append(driven)
        driven = late.popleft()
        await clock
        pins["dq_i"].value = device.noise.getrandbits(bits) if driven is None else driven
