"""Tokens by position: the prompt as the host writes it, and what is generated."""
from amaranth import Module, Mux
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.collisions import NO_RW_CHECK
from ..lib.pipe import reg
from ..signatures import WordWrite


def TokenWrite(config: Config) -> WordWrite:
    """A token for a position."""
    return WordWrite(config.context, Config.TOKEN_BITS)


class TokenMemory(wiring.Component):
    """One token a position; written by the host or, while ``busy``, by the token loop.

    Timing: a token can be read 2 cycles after it was written; a read takes ``LATENCY`` cycles.

    Parameters
    ----------
    config : Config

    Members
    -------
    busy : In(1)
    host, own : In(TokenWrite)
    addr, data : In(range(context)), Out(19)
    """

    LATENCY = 2         # the RAM, and its output register

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "busy": In(1), "host": In(TokenWrite(config)), "own": In(TokenWrite(config)),
            "addr": In(range(config.context)), "data": Out(Config.TOKEN_BITS)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = memory.Memory(
            shape=Config.TOKEN_BITS, depth=self.config.context, init=[], attrs=NO_RW_CHECK)
        write, read = ram.write_port(), ram.read_port()
        m.d.sync += [getattr(write, name).eq(
            Mux(self.busy, getattr(self.own, name), getattr(self.host, name)))
            for name in ("en", "addr", "data")]
        data = reg(Config.TOKEN_BITS, "data")
        m.d.sync += data.eq(read.data)
        m.d.comb += [read.addr.eq(self.addr), read.en.eq(1), self.data.eq(data)]
        return m
