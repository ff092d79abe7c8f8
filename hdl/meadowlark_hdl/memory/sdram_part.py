"""SDR SDRAM chips: what their datasheets say, and what follows in cycles of a clock."""
from dataclasses import dataclass
from math import ceil, floor


@dataclass(frozen=True, kw_only=True)
class SdramTiming:
    """A chip at one clock; everything in cycles, see :meth:`SdramPart.at`.

    cas: from READ to its first word. rcd, rp, ras, rrd, rfc, wr, mrd: least distances of commands
    under their JEDEC names; ras is long enough to keep tRC as well. refresh: between two refreshes
    on average. init: NOPs after power-up.
    """
    cas: int
    rcd: int
    rp: int
    ras: int
    rrd: int
    rfc: int
    wr: int
    mrd: int
    refresh: int
    init: int


@dataclass(frozen=True, kw_only=True)
class SdramPart:
    """A chip as its datasheet describes it.

    Parameters
    ----------
    name : str
        With the speed grade.
    row_bits, col_bits, bank_bits, data_bits : int
        Geometry; a word has data_bits.
    rcd_ns, rp_ns, ras_ns, rc_ns, rrd_ns, rfc_ns, wr_ns : float
        Least times: ACTIVATE to READ or WRITE; PRECHARGE to ACTIVATE; ACTIVATE to PRECHARGE;
        ACTIVATE to ACTIVATE in a bank; in different banks; REFRESH to the next command; last word
        written to PRECHARGE.
    mrd_cycles : int
        Mode register set to the next command.
    clock_ns : dict of int to float
        CAS latency -> shortest clock period.
    access_ns, hold_ns : float
        tAC and tOH at the larger CAS latency: a word is there from ``access_ns`` after one clock
        edge until ``hold_ns`` after the next.
    refreshes, refresh_ms : int, float
        So many REFRESH commands in so long.
    init_us : float
        NOPs after power-up.
    """
    name: str
    row_bits: int
    col_bits: int
    bank_bits: int = 2
    data_bits: int = 16
    rcd_ns: float
    rp_ns: float
    ras_ns: float
    rc_ns: float
    rrd_ns: float
    rfc_ns: float
    wr_ns: float
    mrd_cycles: int = 2
    clock_ns: dict[int, float]
    access_ns: float
    hold_ns: float
    refreshes: int = 8192
    refresh_ms: float = 64.0
    init_us: float = 100.0

    @property
    def size_bytes(self) -> int:
        """Capacity."""
        return (self.data_bits // 8) << self.row_bits + self.col_bits + self.bank_bits

    @property
    def page_bytes(self) -> int:
        """Bytes of a row in one bank."""
        return (self.data_bits // 8) << self.col_bits

    def round_trip(self, clock_mhz: float, phase: float) -> tuple[float, float]:
        """Least and most ns that pads and wires may take, out and back together.

        The chip's clock is later than the controller's by ``phase`` of a period, every pin has a
        register in its pad, and the word is taken at the controller's second edge after the one
        from which the chip's clock is late (``SdramTop``). Set-up and hold of that register come
        off both ends.
        """
        period = 1000 / clock_mhz
        return (1 - phase) * period - self.hold_ns, (2 - phase) * period - self.access_ns

    def at(self, clock_mhz: float) -> SdramTiming:
        """Timing at a clock, with the largest CAS latency: a stream does not feel it, and data
        is on the pins earlier in the cycle.

        Raises
        ------
        ValueError
            The chip is too slow for that clock.
        """
        period = 1000 / clock_mhz
        # A hair of tolerance, so that 7.5 ns is 133.333 MHz.
        allowed = [cas for cas, least in self.clock_ns.items() if period >= least - 1e-3]
        if not allowed:
            raise ValueError(f"{self.name} reaches {1000 / min(self.clock_ns.values()):.0f} MHz, "
                             f"not {clock_mhz:g}; lower the memory clock")

        def cycles(ns: float) -> int:
            return max(1, ceil(ns / period - 1e-6))
        ras, rp = cycles(self.ras_ns), cycles(self.rp_ns)
        # One cycle less than the average allows: in 64 ms that makes up for a group of refreshes
        # that waits for the end of a burst.
        interval = floor(self.refresh_ms * 1e6 / self.refreshes / period) - 1
        return SdramTiming(
            cas=max(allowed), rcd=cycles(self.rcd_ns), rp=rp,
            ras=max(ras, cycles(self.rc_ns) - rp), rrd=cycles(self.rrd_ns),
            rfc=cycles(self.rfc_ns), wr=cycles(self.wr_ns), mrd=self.mrd_cycles,
            refresh=interval, init=cycles(1000 * self.init_us))


#: Micron 256Mb SDR SDRAM datasheet, table of AC characteristics, -75.
MT48LC16M16A2_75 = SdramPart(
    name="MT48LC16M16A2-75", row_bits=13, col_bits=9, rcd_ns=20, rp_ns=20, ras_ns=44, rc_ns=66,
    rrd_ns=15, rfc_ns=66, wr_ns=15, clock_ns={2: 10.0, 3: 7.5}, access_ns=5.4, hold_ns=2.7)

#: ISSI IS42S16160G datasheet, -7.
IS42S16160G_7 = SdramPart(
    name="IS42S16160G-7", row_bits=13, col_bits=9, rcd_ns=15, rp_ns=15, ras_ns=37, rc_ns=60,
    rrd_ns=14, rfc_ns=60, wr_ns=14, clock_ns={2: 10.0, 3: 7.0}, access_ns=5.4, hold_ns=2.7)

#: Alliance AS4C32M16SB datasheet, table 16, -7.
AS4C32M16SB_7 = SdramPart(
    name="AS4C32M16SB-7", row_bits=13, col_bits=10, rcd_ns=21, rp_ns=21, ras_ns=42, rc_ns=63,
    rrd_ns=14, rfc_ns=63, wr_ns=14, clock_ns={2: 10.0, 3: 7.0}, access_ns=5.4, hold_ns=2.5,
    init_us=200.0)

#: By name, without the speed grade.
PARTS = {part.name.partition("-")[0]: part
         for part in (MT48LC16M16A2_75, IS42S16160G_7, AS4C32M16SB_7)}
