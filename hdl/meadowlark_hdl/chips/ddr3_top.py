"""A core with DDR3 behind a LiteDRAM core and a UART, down to the pins of an ECP5."""
from amaranth import (ClockDomain, ClockSignal, Const, DomainRenamer, Elaboratable, Instance,
                      Module, ResetInserter, ResetSignal, Signal)
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.fanout import near
from ..core import Core
from ..link.uart import Uart
from ..memory.ddr3_init import Ddr3Init, LiteDramCore
from ..memory.litedram import LiteDramPort
from ..signatures import MemoryPort

#: Pins of the chip: LiteDRAM's name -> name in amaranth-boards. Its own pads invert where needed.
OUTPUTS = {"a": "a", "ba": "ba", "ras_n": "ras", "cas_n": "cas", "we_n": "we", "cke": "clk_en",
           "odt": "odt", "dm": "dm", "clk_p": "clk"}
BOTH_WAYS = {"dq": "dq", "dqs_p": "dqs"}


class Ddr3Memory(wiring.Component):
    """A LiteDRAM core, what wakes its chip, and its native port as a MemoryPort.

    The module ``litedram_core`` comes from LiteDRAM's generator (``meadowlark.chip.litedram``);
    it has the clock's PLL in it, so the domain ``sync`` is to be made of ``clk`` and ``rst``.

    Timing: see :class:`..memory.litedram.LiteDramPort` for the port.

    Parameters
    ----------
    config : Config
    core : LiteDramCore
        What the generator said.
    clock_mhz : float
        Of ``clk``.
    pads : dict
        Arguments of the instance for the pins of the chip.

    Members
    -------
    oscillator : In(1)      Clock from a pin.
    clk, rst : Out(1)       The core's clock, and its reset, synchronous when it ends.
    port : In(MemoryPort)   Ready when the chip is.
    failed : Out(1)         The chip does not read what was written.
    """

    def __init__(self, config: Config, core: LiteDramCore, *, clock_mhz: float,
                 pads: dict | None = None):
        self.pads = pads or {}
        self.init = Ddr3Init(core, clock_mhz=clock_mhz)
        self.bridge = LiteDramPort(config, native_bytes=core.native_bytes,
                                   address_bits=core.address_bits)
        super().__init__({"oscillator": In(1), "clk": Out(1), "rst": Out(1),
                          "port": In(MemoryPort(config)), "failed": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.domains.beside = ClockDomain(reset_less=True, local=True)
        m.d.comb += ClockSignal("beside").eq(ClockSignal())
        for name, block in (("init", self.init), ("bridge", self.bridge)):
            # A register of reset for each block, as in the core: one would reach across the chip.
            reset = near(m, ResetSignal(allow_reset_less=True), name=f"reset_{name}",
                         domain="beside")
            m.submodules[name] = ResetInserter({"beside": reset})(DomainRenamer("beside")(block))
        wiring.connect(m, wiring.flipped(self.port), self.bridge.port)
        bus, native = self.init.bus, self.bridge.native
        init_done, init_error = Signal(), Signal()
        m.d.comb += [self.bridge.enable.eq(init_done & ~init_error),
                     self.failed.eq(self.init.failed)]

        def connect(prefix, interface, names):
            return {f"{'o' if flow == In else 'i'}_{prefix}_{name}": getattr(interface, name)
                    for name, flow in names.items()}
        m.submodules.litedram = Instance(
            "litedram_core",
            i_clk=self.oscillator, i_rst=Const(0), o_user_clk=self.clk, o_user_rst=self.rst,
            o_init_done=init_done, o_init_error=init_error,
            **connect("user_port_0", native,
                      {name: member.flow for name, member in native.signature.members.items()}),
            **connect("wb_ctrl", bus,
                      {name: member.flow for name, member in bus.signature.members.items()}),
            i_wb_ctrl_cti=Const(0, 3), i_wb_ctrl_bte=Const(0, 2), **self.pads)
        return m


class Ddr3Top(Elaboratable):
    """The whole chip of a board with DDR3.

    One clock for core and controller; that of the pins is twice as fast and inside of LiteDRAM.

    Parameters
    ----------
    config : Config
    core : LiteDramCore
    name : str
        The board's, told to the host.
    clock_mhz : float
        The core's clock, for which ``core`` was generated.
    clock_pin : str
        Resource of the oscillator.
    baud : int
    memory_bytes : int
    stand_in : Component, optional
        In the core's place, with its ``mem``, ``rx`` and ``tx``: to see what the rest comes to.
    """

    def __init__(self, config: Config, core: LiteDramCore, *, name: str, clock_mhz: float,
                 clock_pin: str, baud: int, memory_bytes: int,
                 stand_in: wiring.Component | None = None):
        self.config, self.core, self.name = config, core, name
        self.clock_mhz, self.clock_pin, self.baud = clock_mhz, clock_pin, baud
        self.memory_bytes, self.stand_in = memory_bytes, stand_in

    def elaborate(self, platform):
        m = Module()
        hz = round(self.clock_mhz * 1e6)
        m.submodules.core = core = self.stand_in or Core(
            self.config, board=self.name, clock_hz=hz, memory_bytes=self.memory_bytes)
        ports = platform.request("ddr3", dir=dict.fromkeys(
            [*OUTPUTS.values(), *BOTH_WAYS.values()], "-"))
        pads = {}
        for name, pin in OUTPUTS.items():
            port = getattr(ports, pin)
            # The pin as it is: an inverter would stand between LiteDRAM's cell and the pad. Of a
            # pair the other pin follows by its I/O type.
            port = port.p if isinstance(port, io.DifferentialPort) else port.io
            m.submodules[f"{name}_pin"] = buffer = io.Buffer(
                "o", io.SingleEndedPort(port, direction="o"))
            pads[f"o_ddram_{name}"] = buffer.o
        for name, pin in BOTH_WAYS.items():
            port = getattr(ports, pin)
            pads[f"io_ddram_{name}"] = (port.p if isinstance(port, io.DifferentialPort)
                                        else port.io)
        m.submodules.memory = memory = Ddr3Memory(self.config, self.core, clock_mhz=self.clock_mhz,
                                                  pads=pads)
        m.domains.sync = ClockDomain()
        # nextpnr derives what the clock has to reach from the oscillator's, through the PLL.
        m.d.comb += [ClockSignal().eq(memory.clk), ResetSignal().eq(memory.rst)]
        m.submodules.oscillator = oscillator = io.Buffer(
            "i", platform.request(self.clock_pin, dir="-"))
        m.d.comb += memory.oscillator.eq(oscillator.i)

        uart = Uart(clock_hz=hz, baud=self.baud)
        m.domains.around = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal("around").eq(ClockSignal())
        reset = near(m, ResetSignal(), name="reset_uart", domain="around")
        m.submodules.uart = ResetInserter({"around": reset})(DomainRenamer("around")(uart))
        wiring.connect(m, core.mem, memory.port)
        wiring.connect(m, uart.rx, core.rx)
        wiring.connect(m, core.tx, uart.tx)
        pins = platform.request("uart", dir={"rx": "-", "tx": "-"})
        m.submodules.rx_pin = rx = io.Buffer("i", pins.rx)
        m.submodules.tx_pin = tx = io.Buffer("o", pins.tx)
        m.d.comb += [uart.rx_pin.eq(rx.i), tx.o.eq(uart.tx_pin)]
        # Red: the memory cannot be used. Green: it can.
        led = platform.request("rgb_led", dir=dict.fromkeys("rgb", "-"))
        for colour, lit in (("r", memory.failed), ("g", memory.port.ready), ("b", Const(0))):
            m.submodules[f"led_{colour}"] = buffer = io.Buffer("o", getattr(led, colour))
            m.d.comb += buffer.o.eq(lit)
        return m
