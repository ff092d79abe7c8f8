"""Wakes a DDR3 chip behind a LiteDRAM core and finds when to sample what it reads."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown


class Wishbone(wiring.Signature):
    """LiteDRAM's control port, seen by its master: 32 bits, addresses in words."""

    def __init__(self) -> None:
        super().__init__({"cyc": Out(1), "stb": Out(1), "we": Out(1), "adr": Out(30),
                          "dat_w": Out(32), "sel": Out(4), "dat_r": In(32), "ack": In(1)})


@dataclass(frozen=True, kw_only=True)
class LiteDramCore:
    """What the generator of a LiteDRAM core says about it.

    Parameters
    ----------
    registers : mapping of str to (int, int)
        Byte address and 32-bit words of each control register, by LiteX's name.
    sequence : tuple of (kind, address, bank, value, cycles)
        The chip's initialisation: a value for ``dfii_control`` (kind "control") or a command (kind
        "command") with its address pins; then so many cycles to wait.
    read_phase, write_phase : int
        Phase of the interface on which a read or a write is issued.
    modules, delays, bitslips : int
        Byte lanes, and settings of each.
    native_bytes, address_bits : int
        Of the native port.
    """
    registers: Mapping[str, tuple[int, int]]
    sequence: tuple[tuple[str, int, int, int, int], ...]
    read_phase: int
    write_phase: int
    modules: int
    delays: int
    bitslips: int
    native_bytes: int
    address_bits: int


#: Bits of dfii_control, and of dfii_pi*_command (LiteDRAM's dfii.py).
SEL = 1
CS, WE, CAS, RAS, WRDATA, RDDATA = (1 << k for k in range(6))
#: Cycles from a command to the next, or to its data, in the tests; LiteX's software waits as long.
SETTLE = 15
#: Reset and CKE stay low for at least so long at power-up (JESD79-3: 200 us), microseconds.
RESET_US = 250

#: Kinds of steps. MASKED: writes the byte lanes at work. READ: compares. BURST: were the edges of
#: the strobe seen?
WRITE, MASKED, READ, BURST = range(4)


@dataclass(frozen=True)
class Step:
    """One access of the control port and the cycles to wait after it."""
    kind: int
    address: int
    value: int = 0
    wait: int = 0


def patterns(count: int) -> list[int]:
    """Pseudo-random words of 32 bits: xorshift32 (Marsaglia 2003), from a fixed start."""
    words, x = [], 0x2545F491
    for _ in range(count):
        x ^= x << 13 & 0xFFFF_FFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFF_FFFF
        words.append(x)
    return words


def routines(core: LiteDramCore, clock_mhz: float, tests: int = 3) -> dict[str, list[Step]]:
    """What the state machine does between its decisions; cycles of the core's clock.

    init: the chip's sequence. reset, delay, slip: of the byte lanes in the mask, to the first
    setting, the next delay, the next bitslip. test: write and read back ``tests`` patterns.
    done, failed: hand the chip to the controller, or not.
    """
    def to(name, value, wait=0, word=0):
        return Step(WRITE, core.registers[name][0] + 4 * word, value, wait)

    def command(phase, value, address=0, bank=0, wait=SETTLE):
        pi = f"sdram_dfii_pi{phase}_"
        return [to(pi + "address", address), to(pi + "baddress", bank), to(pi + "command", value),
                to(pi + "command_issue", 1, wait)]
    reset_cycles = round(RESET_US * clock_mhz)
    init = [to("sdram_dfii_control", 0, reset_cycles),
            to("ddrctrl_init_done", 0), to("ddrctrl_init_error", 0)]
    for kind, address, bank, value, wait in core.sequence:
        init += [to("sdram_dfii_control", value, wait)] if kind == "control" else \
            command(0, value, address, bank, max(wait, SETTLE))
    select = core.registers["ddrphy_dly_sel"][0]
    everything = (1 << core.modules) - 1

    def setting(*names):
        # The strobe's circuits of all lanes are paused and let go together, to be in step again.
        return [Step(MASKED, select), *(to(f"ddrphy_{name}", 1) for name in names),
                Step(WRITE, select, 0), Step(WRITE, select, everything),
                Step(WRITE, select, 0, SETTLE)]
    wr, rd = f"sdram_dfii_pi{core.write_phase}_", f"sdram_dfii_pi{core.read_phase}_"
    words = [(f"sdram_dfii_pi{phase}_", word) for phase in (0, 1)
             for word in range(core.registers["sdram_dfii_pi0_wrdata"][1])]
    test: list[Step] = []
    values = iter(patterns(tests * len(words)))
    for _ in range(tests):
        pattern = [next(values) for _ in words]
        test += command(0, RAS | CS)
        test += [to(pi + "wrdata", value, word=word) for (pi, word), value in zip(words, pattern)]
        test += command(core.write_phase, CAS | WE | CS | WRDATA)
        test += [to("ddrphy_burstdet_clr", 1)]
        test += command(core.read_phase, CAS | CS | RDDATA)
        test += command(0, RAS | WE | CS)
        test += [Step(READ, core.registers[pi + "rddata"][0] + 4 * word, value)
                 for (pi, word), value in zip(words, pattern)]
        test += [Step(BURST, core.registers["ddrphy_burstdet_seen"][0])]
    assert wr + "wrdata" in core.registers and rd + "rddata" in core.registers
    return {"init": init, "reset": setting("rdly_dq_rst", "rdly_dq_bitslip_rst"),
            "delay": setting("rdly_dq_inc"), "slip": setting("rdly_dq_bitslip"), "test": test,
            "done": [to("sdram_dfii_control", SEL), to("ddrctrl_init_done", 1)],
            "failed": [to("ddrctrl_init_error", 1), to("ddrctrl_init_done", 1)]}


class Routines(wiring.Component):
    """Runs routines: accesses of the control port, one after the other, with waiting times.

    Timing: 4 cycles a step, and what LiteDRAM takes to answer and the step to wait; 2 a routine.

    Parameters
    ----------
    routines : mapping of str to sequence of Step
    modules : int
        Byte lanes.

    Members
    -------
    bus : Out(Wishbone)
    go, begin : In(1), In(range)
        High until ``done``; ``begin`` is an element of :attr:`begins`.
    mask : In(modules)
        Byte lanes at work: what MASKED steps write.
    done : Out(1)
        Pulse.
    wrong : Out(modules)
        Lanes that have read something else than they should, since the routine began.
    """

    def __init__(self, routines: Mapping[str, Sequence[Step]], modules: int):
        self.modules = modules
        self.steps = [(step, k == len(steps) - 1) for steps in routines.values()
                      for k, step in enumerate(steps)]
        #: Name of a routine -> where it begins.
        self.begins = dict(zip(routines, accumulate(map(len, routines.values()), initial=0)))
        longest = max(step.wait for step, _ in self.steps)
        self.layout = data.StructLayout({
            "kind": 2, "end": 1, "address": 14, "value": 32, "wait": range(longest + 1)})
        super().__init__({
            "bus": Out(Wishbone()), "go": In(1), "begin": In(range(len(self.steps))),
            "mask": In(modules), "done": Out(1), "wrong": Out(modules)})

    def elaborate(self, platform):
        m = Module()
        bus, layout = self.bus, self.layout
        m.submodules.rom = rom = memory.Memory(
            shape=layout, depth=len(self.steps), init=[layout.const({
                "kind": step.kind, "end": int(last), "address": step.address >> 2,
                "value": step.value, "wait": step.wait}) for step, last in self.steps])
        port, step = rom.read_port(), Signal(layout, reset_less=True)
        pc = Signal(range(len(self.steps) + 1))
        wait = Countdown(m, step.wait.shape(), name="wait", behind=True)
        m.d.comb += [
            port.addr.eq(pc), bus.sel.eq(15), bus.adr.eq(step.address),
            bus.we.eq((step.kind == WRITE) | (step.kind == MASKED)),
            bus.dat_w.eq(Mux(step.kind == MASKED, self.mask, step.value))]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += pc.eq(self.begin)
                with m.If(self.go):
                    m.d.sync += self.wrong.eq(0)
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += [step.eq(port.data), pc.eq(pc + 1)]
                m.next = "BUS"
            with m.State("BUS"):
                m.d.comb += [bus.cyc.eq(1), bus.stb.eq(1)]
                m.d.sync += wait.load(step.wait)
                with m.If(bus.ack):
                    m.next = "WAIT"
                    for k in range(self.modules):
                        differs = Cat(bus.dat_r.word_select(b, 8) != step.value.word_select(b, 8)
                                      for b in range(k, 4, self.modules)).any()
                        with m.If((step.kind == READ) & differs
                                  | (step.kind == BURST) & ~bus.dat_r[k]):
                            m.d.sync += self.wrong[k].eq(1)
            with m.State("WAIT"):
                m.d.sync += wait.step()
                with m.If(wait.last):
                    m.next = "FETCH"
                    with m.If(step.end):
                        m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"
        return m


class Ddr3Init(wiring.Component):
    """What LiteX's firmware does, without a processor: start the chip, level the reads, let go.

    Every bitslip with every delay is tried on all byte lanes at once, by writing and reading
    patterns through the control registers; then each lane gets the middle of its longest run of
    delays that work, and the result is tested once more.

    Source: LiteX's ``liblitedram/sdram.c`` (sequence, patterns, burst detection, re-synchronising
    of the lanes after each change); the choice is simpler: it goes by the run's length alone.
    Golden: :func:`.ddr3_init_golden.choose`.
    Timing: some 0.2 million cycles, most of them the chip's own waiting times.

    Parameters
    ----------
    core : LiteDramCore
    clock_mhz : float
        Of the domain ``sync``.
    tests : int
        Patterns for each setting.

    Members
    -------
    bus : Out(Wishbone)
    done, failed : Out(1)
        One of them, when it is over. ``failed``: a lane reads no pattern, or not both at once.
    bitslips, delays : Out(array)
        What was chosen, a lane each; meaningful when ``done``.
    """

    def __init__(self, core: LiteDramCore, *, clock_mhz: float, tests: int = 3):
        self.core = core
        self.routines = routines(core, clock_mhz, tests)
        for name, (address, _) in core.registers.items():
            if address >> 16:
                raise ValueError(f"register {name} is at {address:#x}; 64 KiB can be reached")
        super().__init__({
            "bus": Out(Wishbone()), "done": Out(1), "failed": Out(1),
            "bitslips": Out(data.ArrayLayout(range(core.bitslips), core.modules)),
            "delays": Out(data.ArrayLayout(range(core.delays), core.modules))})

    def elaborate(self, platform):
        m = Module()
        core = self.core
        modules, delays, slips = core.modules, core.delays, core.bitslips
        m.submodules.routines = routines = Routines(self.routines, modules)
        wiring.connect(m, routines.bus, wiring.flipped(self.bus))

        mask = Signal(modules, init=(1 << modules) - 1)     # byte lanes at work
        slip, delay = Signal(range(slips)), Signal(range(delays))
        run = [Signal(range(delays + 1), name=f"run{k}") for k in range(modules)]
        best = [Signal(range(delays + 1), name=f"best{k}") for k in range(modules)]
        lane = Signal(range(modules))
        slips_left = Countdown(m, range(slips), name="slips", last=False)
        delays_left = Countdown(m, range(delays), name="delays", last=False)
        m.d.comb += routines.mask.eq(mask)

        def runs(state, routine, then):
            """A state that runs a routine, then goes on in the state ``then``."""
            with m.State(state):
                m.d.comb += [routines.go.eq(1), routines.begin.eq(routines.begins[routine])]
                with m.If(routines.done):
                    m.next = then

        with m.FSM(init="START"):
            runs("START", "init", "RESET")

            # --- every setting, all lanes at once
            runs("RESET", "reset", "TEST")
            runs("TEST", "test", "JUDGE")
            with m.State("JUDGE"):
                for k in range(modules):
                    m.d.sync += run[k].eq(Mux(routines.wrong[k], 0,
                                              Mux(delay == 0, 1, run[k] + 1)))
                m.next = "NEXT"
            with m.State("NEXT"):
                for k in range(modules):
                    with m.If(run[k] > best[k]):
                        m.d.sync += [best[k].eq(run[k]), self.bitslips[k].eq(slip),
                                     self.delays[k].eq(delay - (run[k] >> 1))]
                m.d.sync += delay.eq(delay + 1)
                m.next = "DELAY"
                with m.If(delay == delays - 1):     # the delay will be at its first setting again
                    m.d.sync += [delay.eq(0), slip.eq(slip + 1)]
                    m.next = "DELAY_AND_SLIP"
                    with m.If(slip == slips - 1):
                        m.d.sync += [mask.eq(1), lane.eq(0)]
                        m.next = "LANE"
            runs("DELAY", "delay", "TEST")
            runs("DELAY_AND_SLIP", "delay", "SLIP")
            runs("SLIP", "slip", "TEST")

            # --- each lane to its own
            with m.State("LANE"):
                m.d.sync += [slips_left.load(self.bitslips[lane]),
                             delays_left.load(self.delays[lane])]
                m.next = "LANE_RESET"
            runs("LANE_RESET", "reset", "LANE_SLIPS")
            with m.State("LANE_SLIPS"):
                m.d.sync += slips_left.step()
                m.next = "LANE_SLIP"
                with m.If(~slips_left.some):
                    m.next = "LANE_DELAYS"
            runs("LANE_SLIP", "slip", "LANE_SLIPS")
            with m.State("LANE_DELAYS"):
                m.d.sync += delays_left.step()
                m.next = "LANE_DELAY"
                with m.If(~delays_left.some):
                    m.d.sync += [lane.eq(lane + 1), mask.eq(mask << 1)]
                    m.next = "LANE"
                    with m.If(lane == modules - 1):
                        m.next = "LAST_TEST"
            runs("LANE_DELAY", "delay", "LANE_DELAYS")
            runs("LAST_TEST", "test", "VERDICT")
            with m.State("VERDICT"):
                m.next = "HAND_OVER"
                with m.If(routines.wrong.any()):
                    m.next = "GIVE_UP"
            runs("HAND_OVER", "done", "GOOD")
            runs("GIVE_UP", "failed", "BAD")
            with m.State("GOOD"):
                m.d.comb += self.done.eq(1)
            with m.State("BAD"):
                m.d.comb += self.failed.eq(1)
        return m
