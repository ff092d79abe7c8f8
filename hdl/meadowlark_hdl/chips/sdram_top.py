"""A core with SDR SDRAM and a UART, down to the pins."""
from amaranth import (ClockDomain, ClockSignal, DomainRenamer, Elaboratable, Module, ResetInserter,
                      ResetSignal, Signal)
from amaranth.lib import cdc, io, wiring
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.fanout import near
from ..core import Core
from ..link.uart import Uart
from ..memory.crossing import MemoryCrossing, narrowed, resets
from ..memory.sdram import SdramController
from ..memory.sdram_part import SdramPart
from ..tech.generic import technology_of

#: Pin groups of the SDRAM, by their names in amaranth-boards.
SDRAM_PINS = ("clk", "clk_en", "cs", "ras", "cas", "we", "ba", "a", "dqm", "dq")


class SdramTop(Elaboratable):
    """The whole chip of a board with SDR SDRAM.

    The SDRAM has the core's clock, or one of its own behind a :class:`.MemoryCrossing`. Every pin
    of it has its register in the pad: one cycle out, one back (``pads=2`` of the controller). Its
    clock pin is late by a part of a cycle: what leaves a pad register at one edge is sampled by the
    chip before the next, and its answer, tAC after an edge of its clock, is in the pad's register
    at the second edge after, if pads and wires take no less and no more than
    :meth:`.SdramPart.round_trip`.

    Parameters
    ----------
    config : Config
    part : SdramPart
    name : str
        The board's, told to the host.
    clock_mhz, input_mhz : float
        The core's clock, and that of the oscillator from which the PLL makes it.
    memory_mhz : float, optional
        The SDRAM's clock, if it is not the core's; ``config.bus_bytes`` is then the core's.
    phase : float
        How much later the SDRAM's clock is at its pin than at the controller, in periods of it.
    clock_pin : str
        Resource of the oscillator.
    baud : int
    ports : dict, optional
        For simulation: ports of ``amaranth.lib.io`` by name (``sdram_cs``.., ``uart_rx``,
        ``uart_tx``); the clock is then made outside. See :class:`SdramBench`.
    sleep : bool
        For simulation, see :mod:`..sleep`.
    """

    def __init__(self, config: Config, part: SdramPart, *, name: str, clock_mhz: float,
                 input_mhz: float, clock_pin: str, baud: int, phase: float,
                 memory_mhz: float | None = None,
                 ports: dict | None = None, sleep: bool = False):
        self.config, self.part, self.name = config, part, name
        self.memory_mhz, self.phase = memory_mhz, phase
        self.clock_mhz, self.input_mhz, self.clock_pin = clock_mhz, input_mhz, clock_pin
        self.baud, self.ports, self.sleep = baud, ports, sleep

    def elaborate(self, platform):
        m = Module()
        ports = self.ports if self.ports is not None else self._request(m, platform)
        hz = round(self.clock_mhz * 1e6)
        m.submodules.core = core = Core(self.config, board=self.name, clock_hz=hz,
                                        memory_bytes=self.part.size_bytes, sleep=self.sleep)
        config = self.config if self.memory_mhz is None else \
            narrowed(self.config, self.part.data_bits // 8)
        sdram = SdramController(config, self.part, clock_mhz=self.memory_mhz or self.clock_mhz,
                                pads=2)
        uart = Uart(clock_hz=hz, baud=self.baud)
        twins = {"sync": "around", "sdram": "beyond"}

        def add(name, block, **clocks):
            """A block by the clocks of its domains. A register of reset for each, as in the core:
            one would reach across the chip."""
            reset_of = {}
            for k, clock in enumerate(clocks.values()):
                reset_of[twins[clock]] = near(m, ResetSignal(clock, allow_reset_less=True),
                                              name=f"reset_{name}{k or ''}", domain=twins[clock])
            m.submodules[name] = ResetInserter(reset_of)(DomainRenamer(
                {domain: twins[clock] for domain, clock in clocks.items()})(block))
        m.domains.around = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal("around").eq(ClockSignal())
        if self.memory_mhz is None:
            pad_clock = "sync"
            add("sdram", sdram, sync="sync")
            wiring.connect(m, core.mem, sdram.port)
        else:
            pad_clock = "sdram"
            m.domains.beyond = ClockDomain(reset_less=True)
            m.d.comb += ClockSignal("beyond").eq(ClockSignal("sdram"))
            crossing = MemoryCrossing(self.config, bus_bytes=config.bus_bytes,
                                      size_bytes=self.part.size_bytes)
            add("sdram", sdram, sync="sdram")
            add("crossing", crossing, sync="sync", sdram="sdram")
            wiring.connect(m, core.mem, crossing.core)
            wiring.connect(m, crossing.memory, sdram.port)
        add("uart", uart, sync="sync")
        wiring.connect(m, uart.rx, core.rx)
        wiring.connect(m, core.tx, uart.tx)

        def registered(name, value):
            m.submodules[name] = buffer = io.FFBuffer("o", ports[f"sdram_{name}"],
                                                      o_domain=pad_clock)
            m.d.comb += buffer.o.eq(value)
        pins = sdram.pins
        # The ports' own inversion makes ras, cas, we and cs low when asserted.
        for name, value in (("clk_en", pins.cke), ("cs", 1), ("ras", ~pins.ras_n),
                            ("cas", ~pins.cas_n), ("we", ~pins.we_n), ("ba", pins.ba),
                            ("a", pins.a), ("dqm", pins.dqm)):
            registered(name, value)
        m.submodules.dq = dq = io.FFBuffer("io", ports["sdram_dq"], i_domain=pad_clock,
                                           o_domain=pad_clock)
        m.d.comb += [dq.o.eq(pins.dq_o), dq.oe.eq(pins.dq_oe), pins.dq_i.eq(dq.i)]
        if "sdram_clk" in ports:
            # Through the same kind of cell as the commands, so that both are as late at the pins.
            m.submodules.clk = clk = io.DDRBuffer("o", ports["sdram_clk"], o_domain="shifted")
            m.d.comb += [clk.o[0].eq(1), clk.o[1].eq(0)]
        m.submodules.rx_pin = rx = io.Buffer("i", ports["uart_rx"])
        m.submodules.tx_pin = tx = io.Buffer("o", ports["uart_tx"])
        m.d.comb += [uart.rx_pin.eq(rx.i), tx.o.eq(uart.tx_pin)]
        return m

    def _request(self, m, platform):
        """The board's pins, and its clock."""
        oscillator = platform.request(self.clock_pin, dir="-")
        m.submodules.oscillator = pin = io.Buffer("i", oscillator)
        m.submodules.pll = pll = technology_of(platform).pll(
            input_mhz=self.input_mhz, output_mhz=self.clock_mhz, memory_mhz=self.memory_mhz,
            phase=self.phase)
        m.domains.sync = ClockDomain()
        m.d.comb += [pll.i.eq(pin.i), ClockSignal().eq(pll.o)]
        platform.add_clock_constraint(pll.o, self.clock_mhz * 1e6)
        if self.memory_mhz is None:
            m.submodules.reset = cdc.ResetSynchronizer(~pll.locked, domain="sync")
        else:
            m.domains.sdram = ClockDomain()
            m.d.comb += ClockSignal("sdram").eq(pll.memory)
            resets(m, ~pll.locked)
            platform.add_clock_constraint(pll.memory, self.memory_mhz * 1e6)
        m.domains.shifted = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal("shifted").eq(pll.shifted)
        platform.add_clock_constraint(pll.shifted, (self.memory_mhz or self.clock_mhz) * 1e6)
        sdram = platform.request("sdram", dir=dict.fromkeys(SDRAM_PINS, "-"))
        uart = platform.request("uart", dir={"rx": "-", "tx": "-"})
        return {f"sdram_{name}": getattr(sdram, name) for name in SDRAM_PINS} | {
            "uart_rx": uart.rx, "uart_tx": uart.tx}


def second_clock(memory_mhz: float | None) -> dict:
    """Members of a bench: the memory's clock, if it has its own."""
    return {} if memory_mhz is None else {"clk_sdram": In(1)}


def clocked_by(m: Module, clock) -> None:
    """The memory's domain in a bench; its clock is a port."""
    m.domains.sdram = ClockDomain(reset_less=True)
    m.d.comb += ClockSignal("sdram").eq(clock)


class SdramBench(wiring.Component):
    """The top with its pins as ports, for simulation: everything but PLL and clock pad.

    Parameters
    ----------
    config, part, name, clock_mhz, baud, memory_mhz
        As for :class:`SdramTop`.

    Members
    -------
    clk_sdram : In(1)       Only with ``memory_mhz``.
    cke, ras, cas, we, ba, a, dqm, dq_o, dq_oe : Out
        What the pads drive; commands are high when asserted.
    dq_i : In
        What the chip drives.
    uart_rx : In(1), uart_tx : Out(1)
    """

    def __init__(self, config: Config, part: SdramPart, *, name: str, clock_mhz: float, baud: int,
                 memory_mhz: float | None = None):
        self.part, self.memory_mhz = part, memory_mhz
        widths = {"cke": 1, "ras": 1, "cas": 1, "we": 1, "ba": part.bank_bits,
                  "a": max(part.row_bits, 11), "dqm": part.data_bits // 8}
        dq = io.SimulationPort("io", part.data_bits)
        self.pads = {
            f"sdram_{'clk_en' if pad == 'cke' else pad}": io.SimulationPort("o", width)
            for pad, width in widths.items()} | {
            "sdram_cs": io.SimulationPort("o", 1), "sdram_dq": dq,
            "uart_rx": io.SimulationPort("i", 1), "uart_tx": io.SimulationPort("o", 1)}
        self.top = SdramTop(config, part, name=name, clock_mhz=clock_mhz, input_mhz=clock_mhz,
                            clock_pin="", baud=baud, phase=0.0, memory_mhz=memory_mhz,
                            ports=self.pads, sleep=True)
        super().__init__({pad: Out(width) for pad, width in widths.items()} | {
            "dq_o": Out(part.data_bits), "dq_oe": Out(1), "dq_i": In(part.data_bits),
            "uart_rx": In(1, init=1), "uart_tx": Out(1)} | second_clock(memory_mhz))

    def elaborate(self, platform):
        m = Module()
        if self.memory_mhz is not None:
            clocked_by(m, self.clk_sdram)
        m.submodules.top = self.top
        pads, dq = self.pads, self.pads["sdram_dq"]
        for name in ("cke", "ras", "cas", "we", "ba", "a", "dqm"):
            pad = pads[f"sdram_{'clk_en' if name == 'cke' else name}"]
            m.d.comb += getattr(self, name).eq(pad.o)
        m.d.comb += [self.dq_o.eq(dq.o), self.dq_oe.eq(dq.oe[0]), dq.i.eq(self.dq_i),
                     pads["uart_rx"].i.eq(self.uart_rx), self.uart_tx.eq(pads["uart_tx"].o)]
        return m


class SdramStream(wiring.Component):
    """The controller alone with its registers in the pads, for long reads in simulation.

    Parameters
    ----------
    config, part, clock_mhz, memory_mhz
        As for :class:`SdramTop`.

    Members
    -------
    clk_sdram : In(1)       Only with ``memory_mhz``: the crossing is part of it.
    cke, ras, cas, we, ba, a, dqm, dq_o, dq_oe : Out
        What the pads drive; commands are high when asserted.
    dq_i : In
        What the chip drives.
    ready, r_cmd_*, r_data_valid, r_data
        The reading half of the core's port; its words are always taken.
    """

    def __init__(self, config: Config, part: SdramPart, clock_mhz: float,
                 memory_mhz: float | None = None) -> None:
        self.crossing, bus_bytes = None, part.data_bits // 8
        if memory_mhz is not None:
            self.crossing = MemoryCrossing(config, bus_bytes=bus_bytes, size_bytes=part.size_bytes)
        self.controller = SdramController(
            config if memory_mhz is None else narrowed(config, bus_bytes), part,
            clock_mhz=memory_mhz or clock_mhz, pads=2)
        self.widths = {"cke": 1, "ras": 1, "cas": 1, "we": 1, "ba": part.bank_bits,
                       "a": max(part.row_bits, 11), "dqm": part.data_bits // 8,
                       "dq_o": part.data_bits, "dq_oe": 1}
        super().__init__({name: Out(width) for name, width in self.widths.items()} | {
            "dq_i": In(part.data_bits), "ready": Out(1),
            "r_cmd_valid": In(1), "r_cmd_ready": Out(1), "r_cmd_addr": In(32),
            "r_cmd_len": In(range(config.burst_words)),
            "r_data_valid": Out(1), "r_data": Out(8 * config.bus_bytes)}
            | second_clock(memory_mhz))

    def elaborate(self, platform):
        m = Module()
        controller, clock = self.controller, "sync"
        port = controller.port
        if self.crossing is None:
            m.submodules.controller = controller
        else:
            clock, port = "sdram", self.crossing.core
            clocked_by(m, self.clk_sdram)
            m.submodules.crossing = self.crossing
            m.submodules.controller = DomainRenamer("sdram")(controller)
            wiring.connect(m, self.crossing.memory, controller.port)
        pins = controller.pins
        for name in self.widths:
            value = ~getattr(pins, f"{name}_n") if name in ("ras", "cas", "we") else \
                getattr(pins, name)
            m.d[clock] += getattr(self, name).eq(value)
        pad = Signal.like(pins.dq_i)
        m.d[clock] += pad.eq(self.dq_i)
        m.d.comb += [
            pins.dq_i.eq(pad), self.ready.eq(port.ready), port.r_cmd.valid.eq(self.r_cmd_valid),
            port.r_cmd.payload.addr.eq(self.r_cmd_addr), port.r_cmd.payload.len.eq(self.r_cmd_len),
            self.r_cmd_ready.eq(port.r_cmd.ready), self.r_data_valid.eq(port.r_data.valid),
            self.r_data.eq(port.r_data.payload), port.r_data.ready.eq(1)]
        return m
