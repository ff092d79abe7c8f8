"""A core beside a processor system: AXI4 to its memory, AXI4-Lite registers for its programs."""
from amaranth import ClockDomain, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..core import Core
from ..link.axi_lite import AxiLite, AxiLiteLink
from ..link.axi_lite_table import WINDOW_BITS
from ..memory.axi import Axi4, AxiMaster

#: Vendors' tools know an interface by the names of its signals and, where those say too little, by
#: attributes: the clock has to tell which interfaces and which reset are its own.
ATTRIBUTES = {
    "aclk": {"X_INTERFACE_INFO": "xilinx.com:signal:clock:1.0 aclk CLK",
             "X_INTERFACE_PARAMETER": "ASSOCIATED_BUSIF s_axi:m_axi, ASSOCIATED_RESET aresetn"},
    "aresetn": {"X_INTERFACE_INFO": "xilinx.com:signal:reset:1.0 aresetn RST",
                "X_INTERFACE_PARAMETER": "POLARITY ACTIVE_LOW"},
    "irq": {"X_INTERFACE_INFO": "xilinx.com:signal:interrupt:1.0 irq INTERRUPT",
            "X_INTERFACE_PARAMETER": "SENSITIVITY LEVEL_HIGH"},
}


class AxiTop(wiring.Component):
    """The whole chip of a board whose memory and host are behind AXI; one clock.

    Timing: see :class:`~..link.axi_lite.AxiLiteLink` for the registers and
    :class:`~..memory.axi.AxiMaster` for the memory. The reset must not come while a burst is under
    way, unless it resets the other side too.

    Parameters
    ----------
    config : Config
        bus_bytes is the width of ``m_axi``.
    name : str
        The board's, told to the host.
    clock_mhz : float
        Of ``aclk``, told to the host.
    memory_bytes : int, power of two
        Size of the region that the host reserves; nothing outside of it is touched.

    Members
    -------
    aclk, aresetn : In(1)       Clock and synchronous reset, low when asserted.
    irq : Out(1)                Bytes wait for the host; level.
    s_axi_* : In                AXI4-Lite, 32 bits, 4 KiB: ``link/axi_lite_table.py``.
    m_axi_* : Out               AXI4, 8 * bus_bytes bits.
    """

    #: Cycles after the reset until the core takes bytes: the flush and the registers around it.
    HOLD = Core.FLUSH + 8

    def __init__(self, config: Config, *, name: str, clock_mhz: float, memory_bytes: int):
        self.core = Core(config, board=name, clock_hz=round(clock_mhz * 1e6),
                         memory_bytes=memory_bytes)
        self.link = AxiLiteLink(memory_bytes=memory_bytes, hold=self.HOLD)
        self.memory = AxiMaster(config, memory_bytes=memory_bytes)
        self.interfaces = {"s_axi": AxiLite(WINDOW_BITS).flip(),
                           "m_axi": Axi4(8 * config.bus_bytes)}
        super().__init__({"aclk": In(1), "aresetn": In(1), "irq": Out(1)} | {
            f"{interface}_{name}": member for interface, signature in self.interfaces.items()
            for name, member in signature.members.items()})
        for port, attributes in ATTRIBUTES.items():
            getattr(self, port).attrs.update(attributes)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = sync = ClockDomain()
        sync.clk, sync.rst = self.aclk, Signal(name="reset")
        m.d.comb += sync.rst.eq(~self.aresetn)
        m.submodules.core, m.submodules.link = core, link = self.core, self.link
        m.submodules.memory = memory = self.memory
        wiring.connect(m, link.rx, core.rx)
        wiring.connect(m, core.tx, link.tx)
        wiring.connect(m, core.mem, memory.port)
        m.d.comb += [memory.base.eq(link.base), memory.enable.eq(link.enable),
                     link.fault.eq(memory.fault), self.irq.eq(link.irq)]
        for inside, (interface, signature) in zip((link.bus, memory.axi), self.interfaces.items()):
            for name, member in signature.members.items():
                port, signal = getattr(self, f"{interface}_{name}"), getattr(inside, name)
                m.d.comb += signal.eq(port) if member.flow is In else port.eq(signal)
        return m
