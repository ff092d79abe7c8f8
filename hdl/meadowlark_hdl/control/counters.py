"""Performance counters of a run."""
from amaranth import Array, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..lib.countdown import Countdown
from ..lib.pipe import delay
from ..link.counters_table import COUNTER_BITS, COUNTER_SLOTS, COUNTERS

#: Counters whose cause is the run itself.
_OWN = ("cycles", "cycles_first_token")


class Counters(wiring.Component):
    """Counts cycles and stalls while ``busy``, see :mod:`..link.counters_table`.

    Every cause has a counter of 5 bits; a scan visits one of them a cycle and adds it to a 40-bit
    word in a RAM, so there is one wide adder instead of one each. No event is lost: a round takes
    16 cycles and the small counters hold 16.

    All values are copied to a second RAM, which alone is read, except while ``hold``: so a reader
    can take its time. During a run the values it finds are at most 20 cycles apart and old; 20
    cycles after a run they are exact.

    Timing: nothing stalls. ``data`` follows ``index`` by 1 cycle.

    Members
    -------
    clear : In(1)       Pulse, at the start of a run: all values 0.
    busy : In(1)        Count.
    first_token : In(1) Pulse: the first final pass has ended, ``cycles_first_token`` stops.
    causes : In         A member for each counter of the table but ``cycles`` and
                        ``cycles_first_token``: 1 bit (kind "event"), 32 bits (kind "value").
    hold : In(1)        The values that can be read do not change.
    index : In(4)       Which value; those beyond the table read as 0.
    data : Out(40)      Value.
    """

    def __init__(self):
        super().__init__({
            "clear": In(1), "busy": In(1), "first_token": In(1),
            "causes": In(wiring.Signature({
                c.name: Out(32 if c.kind == "value" else 1)
                for c in COUNTERS if c.name not in _OWN})),
            "hold": In(1), "index": In(range(COUNTER_SLOTS)), "data": Out(COUNTER_BITS)})

    def elaborate(self, platform):
        m = Module()
        # Combinational reads, each into a register: small enough for LUT RAM.
        m.submodules.live = live = memory.Memory(
            shape=COUNTER_BITS, depth=COUNTER_SLOTS, init=[])
        m.submodules.shown = shown = memory.Memory(
            shape=COUNTER_BITS, depth=COUNTER_SLOTS, init=[])
        live_w, live_r = live.write_port(), live.read_port(domain="comb")
        shown_w, shown_r = shown.write_port(), shown.read_port(domain="comb")

        waiting = Signal(init=1)
        with m.If(self.clear):
            m.d.sync += waiting.eq(1)
        with m.Elif(self.first_token):
            m.d.sync += waiting.eq(0)

        # The small counters; the one being visited starts again with this cycle's event.
        slot = Signal(range(COUNTER_SLOTS))
        m.d.sync += slot.eq(slot + 1)
        small = Array(Signal(range(COUNTER_SLOTS + 1), name=f"small_{i}")
                      for i in range(COUNTER_SLOTS))
        value = Signal(32)
        is_value = Signal()
        own = {"cycles": 1, "cycles_first_token": waiting | self.clear}
        for i, counter in enumerate(COUNTERS):
            cause = own[counter.name] if counter.name in own \
                else getattr(self.causes, counter.name)
            if counter.kind == "value":
                with m.If(slot == i):
                    m.d.comb += [value.eq(cause), is_value.eq(1)]
            else:
                m.d.sync += small[i].eq(
                    Mux((slot == i) | self.clear, 0, small[i]) + (self.busy & cause))

        # Each round a word is read, added to and written back: registers at every step. A clear
        # lasts the 16 slots after its pulse.
        clearing = Countdown(m, range(COUNTER_SLOTS + 1), name="clearing", last=False)
        late_clear = delay(m, self.clear, 1, name="clear", reset=True)
        with m.If(late_clear):
            m.d.sync += clearing.load(COUNTER_SLOTS)
        with m.Elif(clearing.some):
            m.d.sync += clearing.step()

        old = Signal(COUNTER_BITS)
        inc = Signal(32)
        late_slot = delay(m, slot, 3, name="slot")
        value_1, is_value_1 = Signal(32, reset_less=True), Signal()
        small_1, live_1 = Signal.like(small[0]), Signal(COUNTER_BITS, reset_less=True)
        total = Signal(COUNTER_BITS)
        m.d.comb += live_r.addr.eq(slot)
        m.d.sync += [
            value_1.eq(value), is_value_1.eq(is_value), small_1.eq(small[slot]),
            live_1.eq(live_r.data),
            old.eq(Mux(clearing.some | is_value_1, 0, live_1)),
            inc.eq(Mux(is_value_1, value_1, small_1)),
            total.eq(old + inc)]        # 40 bits: three hours at 100 MHz, then it wraps
        m.d.comb += [
            live_w.addr.eq(late_slot), live_w.data.eq(total), live_w.en.eq(1),
            shown_w.addr.eq(late_slot), shown_w.data.eq(total), shown_w.en.eq(~self.hold)]

        m.d.comb += shown_r.addr.eq(self.index)
        m.d.sync += self.data.eq(shown_r.data)
        return m
