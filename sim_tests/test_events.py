"""EventRing: a new run at every phase of an event of the run before."""
import struct

import cocotb
from bench import pack, simulate, start
from cocotb.triggers import FallingEdge

from meadowlark_hdl.link.events import EventRing
from meadowlark_hdl.link.protocol import EVENT_BYTES, EVENT_FORMAT
from meadowlark_hdl.signatures import TokenEvent

#: Cycles in which an event, sent again and again, is sent at least twice.
PHASES = 2 * (2 * EVENT_BYTES + 16)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def an_event_is_of_its_run(dut):
    """Each frame has the number, index and token of one run; the new run's event arrives."""
    await start(dut, resend=0, o__header__ready=1, o__payload__ready=1)
    frames, payload = [], bytearray()

    async def cycle(**inputs):
        nonlocal payload
        for name, value in ({"i__valid": 0, "clear": 0} | inputs).items():
            getattr(dut, name).value = value
        await FallingEdge(dut.clk)
        if dut.o__payload__valid.value:
            payload.append(int(dut.o__payload__payload.value))
            if len(payload) == EVENT_BYTES:
                frames.append(struct.unpack(EVENT_FORMAT, payload))
                payload = bytearray()

    for run in range(1, PHASES):
        await cycle(run=run, clear=1)
        for _ in range(6):
            await cycle()
        await cycle(i__valid=1, i__payload=pack(TokenEvent(), token=1000 + run, crc=run))
        for _ in range(run):            # the phase at which the next run begins
            await cycle()
    for _ in range(PHASES):
        await cycle()
    for number, index, token, crc, _ in frames:
        assert (number, index) == (token - 1000, 0) and crc == token - 1000
    assert frames[-1][0] == PHASES - 1 and len({f[0] for f in frames}) > PHASES // 2


def test_events(seed):
    simulate(EventRing(), __name__, seed=seed)
