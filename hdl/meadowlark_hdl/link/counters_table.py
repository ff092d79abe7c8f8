"""The core's counters: pure data, imported by gateware, host and docs."""
from typing import NamedTuple

#: Bits of a counter: at 100 MHz one per cycle overflows after three hours.
COUNTER_BITS = 40
#: Most counters there can be, and the cycles in which each is visited once.
COUNTER_SLOTS = 16


class Counter(NamedTuple):
    """name: input and key. doc: what it counts. kind: "event" (one bit per cycle, counted while
    the core is busy), or "value" (a total kept elsewhere and copied)."""
    name: str
    doc: str
    kind: str = "event"


#: In order of their index; all are 0 at the start of a run and hold after it.
COUNTERS = (
    Counter("cycles", "clock cycles from start of the run to its last event"),
    Counter("cycles_first_token", "clock cycles to the end of the first final pass (prefill)"),
    Counter("bus_read_words", "bus words read from memory"),
    Counter("bus_write_words", "bus words written to memory"),
    Counter("passes", "passes over the model"),
    Counter("instructions", "instructions executed"),
    Counter("array_active", "cycles in which the array was given a beat"),
    Counter("stall_memory", "cycles without a beat: tiles are waiting for memory"),
    Counter("stall_decoder", "cycles without a beat: the decoder has data, but no tile yet"),
    Counter("stall_engine", "cycles without a beat: pipelines fill, drain or keep their distance"),
    Counter("stall_vector", "cycles without a beat: waiting for the vector unit"),
    Counter("stall_link", "cycles between passes: the link has not taken a token"),
    Counter("saturations", "saturated outputs of the vector unit", "value"),
    Counter("score_saturations", "visible attention scores that were saturated", "value"),
    Counter("drafted", "drafts that passes began with"),
    Counter("accepted", "tokens that passes with drafts gave beyond their first"),
)
assert len(COUNTERS) <= COUNTER_SLOTS
