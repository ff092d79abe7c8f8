"""Why a run is given up: an abort, a fault, a memory that is gone, nothing that moves."""
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .errors import FAULTS, Error


class Guard(wiring.Component):
    """Watches a run, and keeps its error.

    The first cause found counts. Only the watchdog's makes way for one that is refused later: it
    says less.

    Timing: ``give_up`` and ``error`` a cycle after the cause, ``late`` ``2**watchdog_log2 + 2``
    cycles after the last progress.

    Parameters
    ----------
    watchdog_log2 : int, 5..32
        log2 of the cycles without progress after which a run is given up.

    Members
    -------
    clear : In(1)               Pulse: a run begins. An abort in this cycle is its own.
    abort : In(1)               Pulse, at any time.
    running : In(1)             Faults, memory and watchdog count.
    watched : In(1)             Something has to move.
    faults, fault_pc : In(4), In(16)
                                Levels or pulses, see :data:`.errors.FAULTS`; the instruction that
                                is to blame.
    progress, ready : In(1)     Something moved; the memory is ready.
    refuse, refusal : In(1), In(8)
                                Pulse: the run is given up for this :class:`.errors.Error`.
    late : Out(1)               Nothing moved for too long.
    give_up : Out(1)            From the cause until ``clear``.
    error, error_pc : Out(8), Out(16)
                                Hold until ``clear``.
    """

    def __init__(self, *, watchdog_log2: int):
        self.watchdog_log2 = watchdog_log2
        super().__init__({
            "clear": In(1), "abort": In(1), "running": In(1), "watched": In(1),
            "faults": In(len(FAULTS)), "fault_pc": In(16), "progress": In(1), "ready": In(1),
            "refuse": In(1), "refusal": In(8),
            "late": Out(1), "give_up": Out(1), "error": Out(8), "error_pc": Out(16)})

    def elaborate(self, platform):
        m = Module()
        aborted, failed = Signal(), Signal()
        patience, restart = Signal(self.watchdog_log2 + 1), Signal()
        m.d.sync += [restart.eq(~self.watched | self.progress),
                     patience.eq(Mux(restart, 0, patience + 1))]
        m.d.comb += [self.late.eq(patience[-1]), self.give_up.eq(aborted | failed)]

        cause = Mux(~self.ready, Error.MEMORY, Mux(self.late, Error.WATCHDOG, Error.NONE))
        for fault, error in reversed(list(zip(self.faults, FAULTS, strict=True))):
            cause = Mux(fault, error, cause)
        with m.If(self.running & ~failed & (self.faults.any() | ~self.ready | self.late)):
            m.d.sync += [self.error.eq(cause), self.error_pc.eq(self.fault_pc), failed.eq(1)]
        with m.If(self.refuse & (~failed | (self.error == Error.WATCHDOG))):
            m.d.sync += [self.error.eq(self.refusal), failed.eq(1)]
        with m.If(self.abort):
            m.d.sync += aborted.eq(1)
        with m.If(self.clear):
            m.d.sync += [aborted.eq(self.abort), failed.eq(0),
                         self.error.eq(Error.NONE), self.error_pc.eq(0)]
        return m
