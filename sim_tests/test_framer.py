# amaranth: UnusedElaboratable=no
"""The framers against the host's own frame code."""
import random

import cocotb
import pytest
from bench import cycles, recv, send, simulate, start, unpack
from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark.link.frames import Frame
from meadowlark_hdl.link.framer import FrameHeader, FrameMux, RxFramer, TxFramer
from meadowlark_hdl.link.protocol import MAX_FRAME, MAX_PAYLOAD, SYNC

SIZES = [0, 1, 2, 3, 4, 5, 13, 255, 256]


def frames(count, rng=random):
    return [Frame(rng.choice([0, SYNC, 255, rng.randrange(256)]), rng.randrange(256),
                  rng.randbytes(n))
            for n in (*SIZES, *(rng.randrange(MAX_PAYLOAD + 1) for _ in range(count)))]


async def take(dut, got, stall, times=None):
    """Consume frames for ever, as the executor does: header, payload, pop."""
    dut.o__pop.value = 0
    while True:
        await ReadOnly()
        if not dut.o__valid.value or random.random() < stall:
            await RisingEdge(dut.clk)
            continue
        header = unpack(FrameHeader, int(dut.o__header.value))
        if times is not None:
            times.append(cycles(dut))
        await RisingEdge(dut.clk)
        payload = await recv(dut, "o__payload", header["length"], stall)
        await ReadOnly()
        if header["length"]:            # the last byte was the last
            assert not dut.o__payload__valid.value
        await RisingEdge(dut.clk)
        got.append(Frame(header["type"], header["seq"], bytes(payload)))
        dut.o__pop.value = 1
        await RisingEdge(dut.clk)
        dut.o__pop.value = 0


async def bytes_in(dut, raw, stall=0.0):
    """Bytes that do not wait: the receiver has to take them."""
    for byte in raw:
        while stall and random.random() < stall:
            dut.i__valid.value = 0
            await RisingEdge(dut.clk)
        dut.i__valid.value, dut.i__payload.value = 1, byte
        await ReadOnly()
        assert dut.i__ready.value
        await RisingEdge(dut.clk)
    dut.i__valid.value = 0


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.3], gaps=[0.0, 0.3])
async def rx_good_frames(dut, stall, gaps):
    await start(dut)
    want, got = frames(20), []
    cocotb.start_soon(take(dut, got, stall))
    for i, frame in enumerate(want):
        await bytes_in(dut, frame.encode(), gaps)
        while i - len(got) >= 5:                    # the sender's credits
            await RisingEdge(dut.clk)
    for _ in range(5000):
        await RisingEdge(dut.clk)
    assert got == want
    assert dut.bad.value == 0 and dut.dropped.value == 0


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rx_keeps_up_at_a_byte_a_cycle(dut):
    """Back to back, nothing between: nothing is lost; a frame is offered 5 cycles after its end."""
    await start(dut)
    want, got, times = [Frame(1, i, random.randbytes(n)) for i, n in enumerate([250, 200] * 5)], \
        [], []
    cocotb.start_soon(take(dut, got, 0.0, times))
    begin = cycles(dut)
    await bytes_in(dut, b"".join(f.encode() for f in want))
    assert cycles(dut) - begin == sum(len(f.encode()) for f in want)
    for _ in range(400):
        await RisingEdge(dut.clk)
    assert got == want
    # The first met an idle receiver: 5 cycles from its last byte; payload at a byte a cycle then.
    assert times[0] - begin == len(want[0].encode()) - 1 + 5


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rx_damaged_frames(dut):
    """Wrong bits, missing bytes, false syncs: only good frames come out, and the one after a flush
    always does."""
    await start(dut)
    want, got, harmed = [], [], 0
    cocotb.start_soon(take(dut, got, 0.1))
    for i in range(60):
        raw = bytearray(1)
        while not raw[-1]:                  # zeros follow, which must not stand for what is missing
            raw = bytearray(Frame(i, 255 - i, random.randbytes(random.randrange(MAX_PAYLOAD)))
                            .encode())
        kind = random.randrange(4)
        at = random.randrange(len(raw))
        if kind == 0:
            raw[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del raw[at]
        elif kind == 2:
            raw = raw[:at]
        else:
            raw = bytearray((SYNC, 1, 1, random.randrange(256), random.randrange(3)))
        harmed += bytes(raw[:1]) == bytes((SYNC,))
        await bytes_in(dut, raw + bytes(MAX_FRAME))
        want.append(Frame(i, i, random.randbytes(20)))
        await bytes_in(dut, want[-1].encode())
    for _ in range(500):
        await RisingEdge(dut.clk)
    assert got == want
    assert int(dut.bad.value) >= harmed > 0 and dut.dropped.value == 0


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rx_frames_too_long(dut):
    """Such a length ends the frame: one right behind it is not lost."""
    await start(dut)
    want, got, lengths = [], [], [257, 258, 300, 511, 512, 1025, 0xFFFF]
    cocotb.start_soon(take(dut, got, 0.0))
    for i, length in enumerate(lengths):
        want.append(Frame(i, i, random.randbytes(20)))
        await bytes_in(dut, bytes((SYNC, 1, 1, length & 255, length >> 8)) + want[-1].encode())
    for _ in range(100):
        await RisingEdge(dut.clk)
    assert got == want and int(dut.bad.value) == len(lengths)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rx_full(dut):
    """Without a consumer 7 frames are kept, further ones dropped and counted, none damaged."""
    await start(dut)
    want, got = [Frame(7, i, random.randbytes(256)) for i in range(12)], []
    await bytes_in(dut, b"".join(f.encode() for f in want))
    for _ in range(5):
        await RisingEdge(dut.clk)
    assert dut.dropped.value == 5
    cocotb.start_soon(take(dut, got, 0.0))
    for _ in range(2500):
        await RisingEdge(dut.clk)
    assert got == want[:7]
    await bytes_in(dut, want[11].encode())
    for _ in range(400):
        await RisingEdge(dut.clk)
    assert got == want[:7] + want[11:]


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4], slow=[0.0, 0.4])
async def tx_equals_the_host(dut, stall, slow):
    await start(dut)
    want = frames(15)
    raw = b"".join(f.encode() for f in want)
    headers = [{"type": f.type, "seq": f.seq, "length": len(f.payload)} for f in want]
    cocotb.start_soon(send(dut, "i__header", headers, slow, layout=FrameHeader))
    cocotb.start_soon(send(dut, "i__payload", b"".join(f.payload for f in want), slow))
    times = []
    got = await recv(dut, "o", len(raw), stall, times=times)
    assert bytes(got) == raw
    if not stall and not slow:          # 3 cycles a frame besides its bytes
        assert times[-1] - times[0] == len(raw) - 1 + 3 * len(want)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def mux_alternates(dut, stall):
    await start(dut)
    sent = {"a": frames(8), "b": frames(8)}
    for port, list_ in sent.items():
        for i, f in enumerate(list_):
            list_[i] = Frame(ord(port), i, f.payload)
        headers = [{"type": f.type, "seq": f.seq, "length": len(f.payload)} for f in list_]
        cocotb.start_soon(send(dut, f"{port}__header", headers, layout=FrameHeader))
        cocotb.start_soon(send(dut, f"{port}__payload", b"".join(f.payload for f in list_)))
    got = {"a": [], "b": []}
    order = ""
    for _ in range(2 * len(sent["a"])):
        header, = await recv(dut, "o__header", 1, stall, layout=FrameHeader)
        payload = await recv(dut, "o__payload", header["length"], stall)
        order += chr(header["type"])
        got[order[-1]].append(Frame(header["type"], header["seq"], bytes(payload)))
    assert got == sent
    assert "aa" not in order and "bb" not in order


def test_rx_framer(seed, sim):
    simulate(RxFramer(), __name__, seed=seed, sim=sim, testcase="rx_.*")


def test_tx_framer(seed, sim):
    simulate(TxFramer(), __name__, seed=seed, sim=sim, testcase="tx_equals_the_host")


def test_frame_mux(seed):
    # Not on Icarus: its outputs are X until the state first changes.
    simulate(FrameMux(), __name__, seed=seed, testcase="mux_alternates")


def test_slots():
    with pytest.raises(ValueError, match=r"^slots must be 2, 4, 8 or 16, not 3$"):
        RxFramer(slots=3)
