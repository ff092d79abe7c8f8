# amaranth: UnusedElaboratable=no
"""The UART against an independent one."""
import os
import random

import cocotb
import pytest
from bench import PERIOD_NS, cycles, simulate, start
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.uart import UartSink, UartSource
from meadowlark_hdl.link.uart import Uart

LIMIT = dict(timeout_time=20, timeout_unit="ms")
CLOCK = 1e9 / PERIOD_NS


@cocotb.test(**LIMIT)
@cocotb.parametrize(off=[0, 1, -1])
async def receives(dut, off):
    """Bytes without a pause from a sender that is off by nearly what is promised; none lost."""
    dut.rx_pin.value = 1
    await start(dut)
    baud = float(os.environ["BAUD"])
    rounding = abs(CLOCK / round(CLOCK / baud) / baud - 1)
    off *= 0.035 - rounding
    source = UartSource(dut.rx_pin, baud=round(baud * (1 + off)), bits=8)
    data = random.randbytes(300 if baud > 1e6 else 30)
    got = []

    async def listen():
        while True:
            await RisingEdge(dut.clk)
            if dut.rx__valid.value:
                got.append(int(dut.rx__payload.value))
    cocotb.start_soon(listen())
    await source.write(data)
    await source.wait()
    await ClockCycles(dut.clk, 2 * int(CLOCK / baud))
    assert bytes(got) == data


@cocotb.test(**LIMIT)
async def sends(dut):
    """Back to back, and now and then with a pause."""
    dut.rx_pin.value = 1
    await start(dut)
    baud = float(os.environ["BAUD"])
    sink = UartSink(dut.tx_pin, baud=round(baud), bits=8)
    data = random.randbytes(200 if baud > 1e6 else 30)
    for byte in data:
        dut.tx__payload.value = byte
        dut.tx__valid.value = 1
        await RisingEdge(dut.clk)
        while not dut.tx__ready.value:
            await RisingEdge(dut.clk)
        dut.tx__valid.value = 0
        if random.random() < 0.05:
            await ClockCycles(dut.clk, random.randrange(1, 50))
    await ClockCycles(dut.clk, 12 * int(CLOCK / baud))
    assert bytes(sink.read_nowait()) == data


@cocotb.test(**LIMIT)
async def a_byte_is_ten_bits(dut):
    dut.rx_pin.value = 1
    await start(dut)
    divisor = round(CLOCK / float(os.environ["BAUD"]))
    dut.tx__valid.value = 1
    taken = []
    while len(taken) < 20:
        await RisingEdge(dut.clk)
        if dut.tx__ready.value:
            taken.append(cycles(dut))
    assert {b - a for a, b in zip(taken, taken[1:])} == {10 * divisor}


@cocotb.test(**LIMIT)
async def breaks_and_glitches(dut):
    """Neither becomes a byte, and what comes after is received."""
    dut.rx_pin.value = 1
    await start(dut)
    bit = 1e9 / float(os.environ["BAUD"])
    for low in (0.2, 30):
        for level, bits in ((0, low), (1, 12)):
            dut.rx_pin.value = level
            for _ in range(round(bits * bit / PERIOD_NS)):
                await RisingEdge(dut.clk)
                assert not dut.rx__valid.value
    source = UartSource(dut.rx_pin, baud=round(1e9 / bit), bits=8)
    await source.write(b"\x5a")
    while not dut.rx__valid.value:
        await RisingEdge(dut.clk)
    assert int(dut.rx__payload.value) == 0x5A


@pytest.mark.parametrize("baud", [115_200, 2_000_000, 3_050_000, 12_500_000])
def test_uart(seed, baud):
    # 3.05 Mbaud: 33 cycles a bit instead of 32.8
    simulate(Uart(clock_hz=CLOCK, baud=baud), __name__, seed=seed, baud=baud,
             **({"testcase": "(sends|a_byte_is_ten_bits)"} if baud > 4e6 else {}))


def test_parameters():
    with pytest.raises(ValueError, match=r"^baud must be at most 12500000, an eighth"):
        Uart(clock_hz=1e8, baud=20_000_000)
    with pytest.raises(ValueError, match=r"^baud 3000000 is missed by 1.0 % with a clock of 1000"):
        Uart(clock_hz=1e8, baud=3_000_000)
    with pytest.raises(ValueError, match=r"^baud 11000000 is missed by 1\.0|^baud 10600000 is"):
        Uart(clock_hz=1e8, baud=10_600_000)
