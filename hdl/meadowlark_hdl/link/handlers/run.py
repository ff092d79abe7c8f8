"""START, ABORT, CREDIT: what concerns a run, by its number."""
from amaranth import Module, Signal
from amaranth.lib.wiring import Out

from ...config import Config
from ..protocol import Result
from .handler import Handler


class RunHandler(Handler):
    """What the three have in common: args[0] begins with the number of a run.

    Members
    -------
    port : In(HandlerPort)
    """

    def own(self, m: Module) -> Signal:
        """A register: it is the run that was started last."""
        own = Signal(name="own", reset_less=True)
        m.d.sync += own.eq(self.port.args[0][:16] == self.port.core.run)
        return own


class Start(RunHandler):
    """Starts a run. The same command once more does nothing: that run is under way, or was.

    Members
    -------
    port : In(HandlerPort)
    start : Out(1)              Pulse.
    run : Out(16)               Number of the run that was started last; changes with ``start``.
    """

    def __init__(self, config: Config):
        super().__init__(config, {"start": Out(1), "run": Out(16)})

    def elaborate(self, platform):
        m = Module()
        port, core = self.port, self.port.core
        again = port.args[0][:16] == core.run
        self.refuse(m, (port.rest != 0, Result.BAD_LENGTH), (~again & core.busy, Result.BUSY),
                    (~again & ~core.ready, Result.NOT_READY))
        m.d.comb += self.answer()
        own = self.own(m)
        m.d.sync += self.start.eq(port.execute & ~own)
        with m.If(port.execute):
            m.d.sync += self.run.eq(port.args[0])
        return m


class Abort(RunHandler):
    """Ends the run that it names, if that is under way: a late one must not hit the run after.

    Members
    -------
    port : In(HandlerPort)
    abort : Out(1)              Pulse.
    """

    def __init__(self, config: Config):
        super().__init__(config, {"abort": Out(1)})

    def elaborate(self, platform):
        m = Module()
        port = self.port
        self.refuse(m, (port.rest != 0, Result.BAD_LENGTH))
        m.d.comb += self.answer()
        m.d.sync += self.abort.eq(port.execute & self.own(m) & port.core.busy)
        return m


class Credit(RunHandler):
    """Acknowledges token events of the run that it names.

    Members
    -------
    port : In(HandlerPort)
    credit, next_index : Out(1), Out(16)    Pulse: events below ``next_index`` have arrived.
    """

    def __init__(self, config: Config):
        super().__init__(config, {"credit": Out(1), "next_index": Out(16)})

    def elaborate(self, platform):
        m = Module()
        port = self.port
        self.refuse(m, (port.rest != 0, Result.BAD_LENGTH))
        m.d.comb += [self.answer(), self.next_index.eq(port.args[0][16:])]
        m.d.sync += self.credit.eq(port.execute & self.own(m))
        return m
