"""What a core shows of itself to a simulation that draws a timeline: wires, no logic of its own.

``Core(trace=True)`` has them as a port, ``probe``, which host/meadowlark/sim/tracer.hpp reads. A
chip is synthesised without.
"""
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import ValueLike
from amaranth.lib.wiring import Out, Signature

from .config import Config

#: Name -> bits, and where it comes from, given the core's blocks by name. Registers among them tell
#: of the cycle before, as their blocks say.
WIRES: dict[str, tuple[int, Callable[[Any], ValueLike]]] = {
    # A run; what is in flight is dropped.
    "busy": (1, lambda b: b.sequencer.link.busy),
    "flush": (1, lambda b: b.sequencer.flush),
    # Passes: a pulse, and with it the pass and where its list begins; a pulse at its end.
    "pass_start": (1, lambda b: b.sequencer.fetch_start),
    "pass_pc": (16, lambda b: b.sequencer.fetch_pc),
    "pass_pos0": (13, lambda b: b.sequencer.pass_.pos0),
    "pass_n": (13, lambda b: b.sequencer.pass_.n),
    "pass_ctx": (13, lambda b: b.sequencer.pass_.ctx),
    "pass_final": (1, lambda b: b.sequencer.pass_.final),
    "pass_done": (1, lambda b: b.sequencer.pass_done),
    "sample_finish": (1, lambda b: b.sequencer.sample_finish),
    "sample_done": (1, lambda b: b.sampler.done),
    # A TokenEvent waits for the link, which takes it.
    "event": (1, lambda b: b.sequencer.link.events.valid),
    "event_taken": (1, lambda b: (b.sequencer.link.events.valid
                                  & b.sequencer.link.events.ready)),
    "event_token": (Config.TOKEN_BITS, lambda b: b.sequencer.link.events.payload.token),
    "event_reason": (3, lambda b: b.sequencer.link.events.payload.reason),
    # A tile goes from Fetch to the Reader; a bus word has come; the decoder takes a chunk.
    "job": (1, lambda b: b.fetch.jobs.valid & b.fetch.jobs.ready),
    "job_addr": (27, lambda b: b.fetch.jobs.payload.addr),
    "job_chunks": (12, lambda b: b.fetch.jobs.payload.chunks),
    "bus_read": (1, lambda b: b.reader.beats),
    "chunk": (1, lambda b: b.reader.chunks.valid),
    "chunk_taken": (1, lambda b: b.reader.chunks.valid & b.reader.chunks.ready),
    # The decoder gives an item, the last one of its tile; a bit for each half of the tile buffer.
    "item": (1, lambda b: b.decoder.items.valid),
    "item_last": (1, lambda b: b.decoder.items.payload.last),
    "available": (2, lambda b: b.tiles.read.available),
    "release": (2, lambda b: b.tiles.read.release),
    # Issue takes an instruction; has executed it; what it gave the array or waited for.
    "instruction": (1, lambda b: b.issue.instr.valid & b.issue.instr.ready),
    "retired": (1, lambda b: b.issue.retired),
    "pc": (16, lambda b: b.issue.pc),
    "array_active": (1, lambda b: b.issue.array_active),
    "wait_memory": (1, lambda b: b.issue.wait_tile & b.reader.starved),
    "wait_decoder": (1, lambda b: b.issue.wait_tile & ~b.reader.starved),
    "wait_store": (1, lambda b: b.issue.wait_store),
    "wait_vector": (1, lambda b: b.issue.wait_vector),
    "vector_busy": (1, lambda b: b.vector.busy),
    "norm_start": (1, lambda b: b.vector.norm_start),
    "norm_done": (1, lambda b: b.vector.norm_done),
    "store_idle": (1, lambda b: b.store.idle),
    "bus_write": (1, lambda b: b.store.mem.w_data.valid & b.store.mem.w_data.ready),
    "logit": (1, lambda b: b.sampler.logit.valid),
}


class Probe(Signature):
    """A member for each of :data:`WIRES`."""

    def __init__(self) -> None:
        super().__init__({name: Out(bits) for name, (bits, _) in WIRES.items()})


def shown(probe, sequencer, fetch, reader, decoder, tiles, issue, vector, store, sampler) -> list:
    """What drives a probe, from the core's blocks."""
    blocks = SimpleNamespace(sequencer=sequencer, fetch=fetch, reader=reader, decoder=decoder,
                             tiles=tiles, issue=issue, vector=vector, store=store, sampler=sampler)
    return [getattr(probe, name).eq(wire(blocks)) for name, (_, wire) in WIRES.items()]
