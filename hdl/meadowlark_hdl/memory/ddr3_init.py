"""Wakes a DDR3 chip behind a LiteDRAM core and finds when to sample what it reads."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth import Cat, Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out


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


class Ddr3Init(wiring.Component):
    """What LiteX's firmware does, without a processor: start the chip, level the reads, let go.

    Every bitslip with every delay is tried on all byte lanes at once, by writing and reading
    patterns through the control registers; then each lane gets the middle of its longest run of
    delays that work, and the result is tested once more.

    Source: LiteX's ``liblitedram/sdram.c`` (sequence, patterns, burst detection, re-synchronising
    of the lanes after each change); the choice is simpler: it goes by the run's length alone.
    Golden: :func:`.ddr3_init_golden.choose`.
    Timing: 5 cycles a step and what LiteDRAM takes to answer and the step to wait; some 0.2
    million cycles in all, most of them the chip's own waiting times.

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
        longest = max(step.wait for steps in self.routines.values() for step in steps)
        self.layout = data.StructLayout({
            "kind": 2, "end": 1, "address": 14, "value": 32, "wait": range(longest + 1)})
        for name, (address, _) in core.registers.items():
            if address >> 16:
                raise ValueError(f"register {name} is at {address:#x}; 64 KiB can be reached")
        super().__init__({
            "bus": Out(Wishbone()), "done": Out(1), "failed": Out(1),
            "bitslips": Out(data.ArrayLayout(range(core.bitslips), core.modules)),
            "delays": Out(data.ArrayLayout(range(core.delays), core.modules))})

    def elaborate(self, platform):
        m = Module()
        core, bus, layout = self.core, self.bus, self.layout
        modules, delays, slips = core.modules, core.delays, core.bitslips
        entries, begins = [], {}
        for name, steps in self.routines.items():
            begins[name] = len(entries)
            entries += [layout.const({
                "kind": step.kind, "end": int(k == len(steps) - 1), "address": step.address >> 2,
                "value": step.value, "wait": step.wait}) for k, step in enumerate(steps)]
        m.submodules.rom = rom = memory.Memory(shape=layout, depth=len(entries), init=entries)
        port = rom.read_port()
        pc, step = Signal(range(len(entries) + 1)), Signal(layout, reset_less=True)
        m.d.comb += port.addr.eq(pc)

        mask = Signal(modules, init=(1 << modules) - 1)     # byte lanes at work
        wrong = Signal(modules)                             # lanes that failed the test under way
        waiting = Signal.like(step.wait)
        slip, delay = Signal(range(slips)), Signal(range(delays))
        last_delay, last = Signal(), Signal()
        m.d.comb += [last_delay.eq(delay == delays - 1), last.eq(last_delay & (slip == slips - 1))]
        run = [Signal(range(delays + 1), name=f"run{k}") for k in range(modules)]
        best = [Signal(range(delays + 1), name=f"best{k}") for k in range(modules)]
        lane = Signal(range(modules))
        slips_left, delays_left = Signal(range(slips)), Signal(range(delays))

        def call(name, then):
            """Run a routine, then go on in the state ``then``."""
            m.d.sync += [pc.eq(begins[name]), after.eq(then)]
            m.next = "FETCH"
        states = ["RESET", "TEST", "JUDGE", "NEXT", "WRAP", "LANE", "SLIP", "DELAY", "VERDICT",
                  "GOOD", "BAD"]
        after = Signal(range(len(states)))
        at = {name: k for k, name in enumerate(states)}

        m.d.comb += [
            bus.sel.eq(15), bus.adr.eq(step.address), bus.we.eq((step.kind == WRITE)
                                                                | (step.kind == MASKED)),
            bus.dat_w.eq(step.value)]
        with m.If(step.kind == MASKED):
            m.d.comb += bus.dat_w.eq(mask)
        with m.FSM(init="START"):
            with m.State("START"):
                call("init", at["RESET"])
            with m.State("FETCH"):
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += [step.eq(port.data), pc.eq(pc + 1)]
                m.next = "BUS"
            with m.State("BUS"):
                m.d.comb += [bus.cyc.eq(1), bus.stb.eq(1)]
                with m.If(bus.ack):
                    m.d.sync += waiting.eq(step.wait)
                    m.next = "WAIT"
                    for k in range(modules):
                        bytes_ = [b for b in range(4) if b % modules == k]
                        differs = Cat(bus.dat_r.word_select(b, 8) != step.value.word_select(b, 8)
                                      for b in bytes_).any()
                        with m.If((step.kind == READ) & differs):
                            m.d.sync += wrong[k].eq(1)
                        with m.If((step.kind == BURST) & ~bus.dat_r[k]):
                            m.d.sync += wrong[k].eq(1)
            with m.State("WAIT"):
                m.d.sync += waiting.eq(waiting - 1)
                with m.If(waiting == 0):
                    m.next = "FETCH"
                    with m.If(step.end):
                        m.next = "RETURN"
            with m.State("RETURN"):
                with m.Switch(after):
                    for name in states:
                        with m.Case(at[name]):
                            m.next = name

            # --- every setting, all lanes at once
            with m.State("RESET"):
                call("reset", at["TEST"])
            with m.State("TEST"):
                m.d.sync += wrong.eq(0)
                call("test", at["JUDGE"])
            with m.State("JUDGE"):
                for k in range(modules):
                    with m.If(wrong[k]):
                        m.d.sync += run[k].eq(0)
                    with m.Elif(delay == 0):
                        m.d.sync += run[k].eq(1)
                    with m.Else():
                        m.d.sync += run[k].eq(run[k] + 1)
                m.next = "NEXT"
            with m.State("NEXT"):
                for k in range(modules):
                    with m.If(run[k] > best[k]):
                        m.d.sync += [best[k].eq(run[k]), self.bitslips[k].eq(slip),
                                     self.delays[k].eq(delay - (run[k] >> 1))]
                with m.If(last):
                    m.next = "LANE"
                    m.d.sync += [mask.eq(1), lane.eq(0)]
                with m.Else():
                    m.d.sync += delay.eq(delay + 1)
                    call("delay", at["TEST"])
                    with m.If(last_delay):          # the delay is at its first setting again
                        m.d.sync += [delay.eq(0), slip.eq(slip + 1), after.eq(at["WRAP"])]
            with m.State("WRAP"):
                call("slip", at["TEST"])

            # --- each lane to its own
            with m.State("LANE"):
                m.d.sync += [slips_left.eq(self.bitslips[lane]), delays_left.eq(self.delays[lane])]
                call("reset", at["SLIP"])
            with m.State("SLIP"):
                m.d.sync += slips_left.eq(slips_left - 1)
                call("slip", at["SLIP"])
                with m.If(slips_left == 0):
                    m.next = "DELAY"
            with m.State("DELAY"):
                m.d.sync += delays_left.eq(delays_left - 1)
                call("delay", at["DELAY"])
                with m.If(delays_left == 0):
                    m.d.sync += [lane.eq(lane + 1), mask.eq(mask << 1), wrong.eq(0)]
                    m.next = "LANE"
                    with m.If(lane == modules - 1):
                        call("test", at["VERDICT"])
            with m.State("VERDICT"):
                with m.If(wrong.any()):
                    call("failed", at["BAD"])
                with m.Else():
                    call("done", at["GOOD"])
            with m.State("GOOD"):
                m.d.comb += self.done.eq(1)
            with m.State("BAD"):
                m.d.comb += self.failed.eq(1)
        return m
