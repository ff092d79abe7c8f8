"""CRC-32 over wide words against zlib's, a word a cycle and with pauses."""
import os
import random
from zlib import crc32

import cocotb
import pytest
from bench import simulate, start
from cocotb.triggers import ClockCycles, FallingEdge

from meadowlark_hdl.weights.checksum import Checksum


@cocotb.test()
@cocotb.parametrize(pause=[0.0, 0.6])
async def equals_zlib(dut, pause):
    """``crc`` after each message, 3 cycles late; ``sound`` one later, if its CRC came last."""
    await start(dut)
    size = int(os.environ["WIDTH"]) // 8
    for messages in range(20):
        text = random.randbytes(size * random.choice([1, 2, 3, 40]))
        good = bool(messages % 2)
        if good:            # ends with its CRC
            text = text[:-4] + crc32(text[:-4]).to_bytes(4, "little")
        dut.start.value, dut.valid.value = 1, 0
        await FallingEdge(dut.clk)
        dut.start.value = 0
        await FallingEdge(dut.clk)
        for at in range(0, len(text), size):
            while random.random() < pause:
                dut.valid.value, dut.data.value = 0, random.getrandbits(8 * size)
                await FallingEdge(dut.clk)
            dut.valid.value = 1
            dut.data.value = int.from_bytes(text[at:at + size], "little")
            await FallingEdge(dut.clk)
        if random.random() < 0.3:       # broken off: the next one begins right behind it
            continue
        dut.valid.value = 0
        await ClockCycles(dut.clk, 2)
        await FallingEdge(dut.clk)
        assert int(dut.crc.value) == crc32(text)
        await FallingEdge(dut.clk)
        assert bool(dut.sound.value) == good


@pytest.mark.parametrize("width", [32, 64, 128])
def test_checksum(width, seed):
    simulate(Checksum(width), __name__, seed=seed, width=width)


@pytest.mark.parametrize("width", [0, 12])
def test_refuses(width):
    with pytest.raises(ValueError, match="multiple of 8"):
        Checksum(width)
