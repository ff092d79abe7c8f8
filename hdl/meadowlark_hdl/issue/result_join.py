"""Joins what the vector unit gets: the array's results and the elements of embeddings."""
from __future__ import annotations

from amaranth import Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.fanout import near
from ..lib.pipe import delay, reg
from ..signatures import ResultPort


class ResultJoin(wiring.Component):
    """One stream of results out of two that are never there at once.

    Timing: ``engine`` 1 cycle, ``element`` 2 cycles to ``result``; one a cycle, never stalled.

    Parameters
    ----------
    config : Config

    Members
    -------
    engine, element : In(ResultPort)    At most one of them valid; ``element`` a cycle earlier.
    result : Out(ResultPort)
    """

    def __init__(self, config: Config):
        self.config = config
        port = ResultPort(config)
        super().__init__({"engine": In(port), "element": In(port), "result": Out(port)})

    def elaborate(self, platform):
        m = Module()
        engine, element, out = self.engine, self.element, self.result
        # The element, a register nearer to the vector unit. So is the choice, for each field.
        valid = delay(m, element.valid, 1, name="element_valid", reset=True)
        m.d.sync += out.valid.eq(engine.valid | valid)
        payload = reg(out.payload.shape(), "payload")
        m.d.comb += out.payload.eq(payload)
        for name in payload.shape().members:
            chosen = near(m, element.valid, name=f"chosen_{name}")
            later = delay(m, element.payload[name], 1, name=f"element_{name}")
            m.d.sync += payload[name].eq(Mux(chosen, later, engine.payload[name]))
        return m
