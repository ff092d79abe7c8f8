"""The register file, made from the table in :mod:`meadowlark_hdl.link.protocol`."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, Signature

from ..lib.collisions import NO_RW_CHECK
from ..config import Config
from .counters_table import COUNTER_BITS, COUNTER_SLOTS
from ..isa import MODEL_REGS
from ..run_table import RUN_REGS, STOP_IDS
from ..signatures import ModelLayout, PlaceWrite, RunLayout, SeedWrite, WordWrite
from .protocol import (BY_NAME, CONTROL_BASE, COUNTERS_CRC, COUNTER_BASE, ISA_CRC, LIVE_BASE, MAGIC,
                       NAME_BYTES, REGISTERS, REGISTER_WORDS, RESET_MAGIC, VERSION, config_facts)


def constants(config: Config, *, board: str = "", clock_hz: int = 0,
              memory_bytes: int = 0) -> dict[str, int]:
    """Values of the "const" registers, by name. Raises ValueError if one does not fit."""
    raw = board.encode("ascii", "replace")
    if len(raw) > NAME_BYTES:
        raise ValueError(f"board must have at most {NAME_BYTES} characters, not {board!r}")
    values = {"magic": MAGIC, "version": VERSION, "isa": ISA_CRC, **config_facts(config),
              "clock_khz": round(clock_hz / 1000), "memory_kib": memory_bytes >> 10,
              "only": config.only_crc,
              "counters": COUNTERS_CRC}
    raw = raw.ljust(NAME_BYTES, b"\0")
    for i in range(NAME_BYTES // 4):
        values[f"name_{i}"] = int.from_bytes(raw[4 * i:4 * i + 4], "little")
    for name, value in values.items():
        if not 0 <= value < 1 << BY_NAME[name].width:
            raise ValueError(f"register {name} holds {BY_NAME[name].width} bits, not {value!r}")
    return values


#: Of a word of registers or counters.
ADDRESS_BITS = 9


class RegisterRead(Signature):
    """go: pulse. addr holds from there to valid; data stays until the next go."""

    def __init__(self) -> None:
        super().__init__({"go": Out(1), "addr": Out(ADDRESS_BITS), "valid": In(1), "data": In(32)})


class RegisterFile(wiring.Component):
    """Registers: constants and read-back from one block RAM, written ones in flip-flops as well.

    What is written goes to the flip-flops and to the RAM, so reading needs no wide multiplexer;
    only the few live words are multiplexed. The flip-flops have no reset: like the RAM they keep
    their contents until the next configuration.

    Timing: a write takes effect 2 cycles later, one a cycle. A read gives ``r.valid`` and
    ``r.data`` READ_LATENCY cycles after ``r.go``; one at a time. Counters: ``counter_data`` must
    hold counter ``counter_index`` COUNTER_LATENCY cycles after the index changed.

    Parameters
    ----------
    config : Config
    board : str                 Name, up to 16 ASCII characters.
    clock_hz, memory_bytes : int
        Facts for the host.
    resend_cycles : int         Value of that register until the host writes another.

    Members
    -------
    w : In(WordWrite)               The caller keeps to CONTROL_BASE and above.
    r : In(RegisterRead)
    live_status .. live_frames_dropped : In     The live registers.
    model : Out(ModelLayout)
    run : Out(RunLayout)
    places, seeds : Out(PlaceWrite), Out(SeedWrite)
    resend : Out(32)
    reset : Out(1)                  Pulse.
    counter_index : Out(4); counter_data : In(40)
    """

    COUNTER_LATENCY = 4
    READ_LATENCY = COUNTER_LATENCY + 3

    def __init__(self, config: Config, *, board: str = "", clock_hz: int = 0,
                 memory_bytes: int = 0, resend_cycles: int = 1 << 20):
        if not 1 <= resend_cycles < 1 << 32:
            raise ValueError(f"resend_cycles must be in 1..2**32-1, not {resend_cycles!r}")
        self.config = config
        self.values = constants(config, board=board, clock_hz=clock_hz,
                                memory_bytes=memory_bytes)
        self.values["resend_cycles"] = resend_cycles
        self.resend_cycles = resend_cycles
        self.live = [r for r in REGISTERS if r.access == "live"]
        assert all(r.words == 1 for r in self.live)
        super().__init__({
            "w": In(WordWrite(REGISTER_WORDS, 32)), "r": In(RegisterRead()),
            **{f"live_{r.name}": In(r.width) for r in self.live},
            "model": Out(ModelLayout), "run": Out(RunLayout()), "places": Out(PlaceWrite(config)),
            "seeds": Out(SeedWrite(config)), "resend": Out(32), "reset": Out(1),
            "counter_index": Out(range(COUNTER_SLOTS)), "counter_data": In(COUNTER_BITS)})

    def elaborate(self, platform):
        m = Module()
        init = [0] * REGISTER_WORDS
        for name, value in self.values.items():
            init[BY_NAME[name].address] = value
        m.submodules.ram = ram = Memory(shape=32, depth=REGISTER_WORDS, init=init,
                                       attrs=NO_RW_CHECK)       # one command reads or writes

        # Writes, one register stage before the address is compared and another one before the data
        # fans out.
        en = Signal()
        addr = Signal(range(REGISTER_WORDS), reset_less=True)
        word = Signal(32, reset_less=True)
        m.d.sync += [en.eq(self.w.en), addr.eq(self.w.addr), word.eq(self.w.data)]
        w_ram = ram.write_port()
        m.d.comb += [w_ram.en.eq(en), w_ram.addr.eq(addr), w_ram.data.eq(word)]
        m.d.sync += self.reset.eq(
            en & (addr == BY_NAME["reset"].address) & (word == RESET_MAGIC))

        late = Signal(32, reset_less=True)
        m.d.sync += late.eq(word)

        def storage(name, target, initial=0):
            register = BY_NAME[name]
            keep = Signal(register.width, name=f"reg_{name}", init=initial, reset_less=True)
            m.d.comb += target.eq(keep)
            for i in range(register.words):
                hit = Signal(name=f"hit_{name}_{i}")
                m.d.sync += hit.eq(en & (addr == register.address + i))
                with m.If(hit):
                    m.d.sync += keep[32 * i:32 * i + 32].eq(late)
        storage("resend_cycles", self.resend, self.resend_cycles)
        known = dict(self.config.only.registers) if self.config.only else {}
        for field in MODEL_REGS:
            if field.name in known:         # what is written there reads back, and no more
                m.d.comb += self.model[field.name].eq(known[field.name])
            else:
                storage(field.name, self.model[field.name])
        for field in RUN_REGS[:-STOP_IDS]:
            storage(field.name, self.run[field.name])
        for field, place in zip(RUN_REGS[-STOP_IDS:], self.run.stop_ids):
            storage(field.name, place)
        # Of a slot: the low word waits for the high one.
        waits, low = Signal(32, reset_less=True), Signal()
        slots = BY_NAME["place"], BY_NAME["lane_seed"]
        m.d.sync += low.eq(en & Cat(addr == r.address for r in slots).any())
        with m.If(low):
            m.d.sync += waits.eq(late)
        for port, register in zip((self.places, self.seeds), slots, strict=True):
            acts = Signal(name=f"{register.name}_acts")
            m.d.sync += [acts.eq(en & (addr == register.address + 1)),
                         port.en.eq(acts & (late[16:21] < self.config.P))]
        m.d.sync += [self.places.addr.eq(late[16:]), self.places.data.position.eq(late)]
        m.d.comb += [self.places.data.base.eq(waits), self.seeds.data.eq(waits),
                     self.seeds.addr.eq(self.places.addr)]

        # Reads: each source into a register of its own, then one multiplexer into r.data.
        r_ram = ram.read_port()
        from_ram = Signal(32, reset_less=True)
        m.d.comb += [r_ram.addr.eq(self.r.addr), r_ram.en.eq(1)]
        m.d.sync += from_ram.eq(r_ram.data)
        live = Signal(32, reset_less=True)
        with m.Switch(self.r.addr[:3]):
            for register in self.live:
                with m.Case(register.address - LIVE_BASE):
                    m.d.sync += live.eq(getattr(self, f"live_{register.name}"))
            with m.Default():
                m.d.sync += live.eq(0)
        is_live = Signal(reset_less=True)
        is_counter = Signal(reset_less=True)
        counter = Signal(COUNTER_BITS, reset_less=True)
        high = Signal(COUNTER_BITS - 32, reset_less=True)
        m.d.sync += [
            is_live.eq((self.r.addr >= LIVE_BASE) & (self.r.addr < CONTROL_BASE)),
            is_counter.eq(self.r.addr >= COUNTER_BASE),
            self.counter_index.eq((self.r.addr >> 1)[:len(self.counter_index)]),
            counter.eq(self.counter_data)]
        # r.go, then: index register, COUNTER_LATENCY, counter register, r.data.
        delay = Signal(self.READ_LATENCY)
        m.d.sync += [delay.eq(delay << 1 | self.r.go), self.r.valid.eq(delay[-2])]
        with m.If(delay[-2]):
            with m.If(is_counter):
                m.d.sync += self.r.data.eq(Mux(self.r.addr[0], high, counter[:32]))
                with m.If(~self.r.addr[0]):
                    m.d.sync += high.eq(counter[32:])
            with m.Elif(is_live):
                m.d.sync += self.r.data.eq(live)
            with m.Else():
                m.d.sync += self.r.data.eq(from_ram)
        return m
