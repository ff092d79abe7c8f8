"""RegisterFile: every register is read in exactly its time, counters at their latest."""
import random
from collections import deque

import cocotb
from bench import simulate, start, unpack
from cocotb.triggers import FallingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.link.counters_table import COUNTER_BITS, COUNTER_SLOTS, COUNTERS
from meadowlark_hdl.link.protocol import BY_NAME, COUNTER_BASE, REGISTERS, RESET_MAGIC
from meadowlark_hdl.link.registers import RegisterFile, constants
from meadowlark_hdl.signatures import PlaceLayout

CONFIG = Config(W=8, P=4, bus_bytes=2)
FACTS = dict(board="a board", clock_hz=66_600_000, memory_bytes=1 << 25)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reads(dut):
    counters = [random.getrandbits(COUNTER_BITS) for _ in range(COUNTER_SLOTS)]
    live = {r.name: random.getrandbits(r.width) for r in REGISTERS if r.access == "live"}
    await start(dut, **{f"live_{name}": value for name, value in live.items()})
    await FallingEdge(dut.clk)
    # Index of so many cycles ago: the latest that the file has to put up with.
    seen = deque([0] * RegisterFile.COUNTER_LATENCY)

    async def cycle(**inputs):
        for name, value in ({"r__go": 0, "w__en": 0} | inputs).items():
            getattr(dut, name).value = value
        await FallingEdge(dut.clk)
        seen.append(int(dut.counter_index.value))
        dut.counter_data.value = counters[seen.popleft()]

    async def read(address: int) -> int:
        await cycle(r__go=1, r__addr=address)
        for _ in range(RegisterFile.READ_LATENCY - 1):
            assert not dut.r__valid.value
            await cycle()
        assert dut.r__valid.value
        value = int(dut.r__data.value)
        await cycle()
        assert not dut.r__valid.value
        return value

    async def whole(name: str) -> int:
        register = BY_NAME[name]
        return sum([await read(register.address + i) << 32 * i for i in range(register.words)]) \
            & (1 << register.width) - 1

    for name, value in constants(CONFIG, **FACTS).items():
        assert await whole(name) == value, name
    for name, value in live.items():
        assert await whole(name) == value, name
    # Writes back to back are read as they were, none disturbs another.
    written = {r: random.getrandbits(r.width) for r in REGISTERS
               if r.access == "rw" and r.name != "reset"}
    for register, value in written.items():
        for i in range(register.words):
            await cycle(w__en=1, w__addr=register.address + i, w__data=value >> 32 * i & 0xFFFFFFFF)
    await cycle()
    assert int(dut.resend.value) == written[BY_NAME["resend_cycles"]]
    for register, value in written.items():
        assert await whole(register.name) == value, register.name
    # The second word of a place takes it into a table, unless there is no such lane.
    for slot in random.sample(range(32), 32):
        base, position, taken = random.getrandbits(27), random.getrandbits(13), []
        words = (base | random.getrandbits(5) << 27, position | slot << 16)
        for k in range(6):
            inputs = {"w__addr": BY_NAME["place"].address + k, "w__data": words[k]} if k < 2 else {}
            await cycle(w__en=k < 2, **inputs)
            if dut.places__en.value:
                taken.append((int(dut.places__addr.value),
                              unpack(PlaceLayout(), int(dut.places__data.value))))
        assert taken == [(slot, {"base": base, "position": position})] * (slot < CONFIG.P)

    # So does that of a lane's seed, into another.
    for slot in random.sample(range(32), 12):
        seed, taken = random.getrandbits(32), []
        for k in range(6):
            inputs = {"w__addr": BY_NAME["lane_seed"].address + k, "w__data": (
                seed, random.getrandbits(16) | slot << 16)[k]} if k < 2 else {}
            await cycle(w__en=int(k < 2), **inputs)
            assert not dut.places__en.value
            if dut.seeds__en.value:
                taken.append((int(dut.seeds__addr.value), int(dut.seeds__data.value)))
        assert taken == [(slot, seed)] * (slot < CONFIG.P)
    # Counters in any order: the low word keeps the high one for the read behind it.
    for at in random.choices(range(len(COUNTERS)), k=40):
        low = await read(COUNTER_BASE + 2 * at)
        counters[at] ^= 1 << COUNTER_BITS - 1
        assert low | await read(COUNTER_BASE + 2 * at + 1) << 32 \
            == counters[at] ^ 1 << COUNTER_BITS - 1
    # Only the magic word resets.
    for word in (RESET_MAGIC, RESET_MAGIC ^ 1, 0):
        pulses = 0
        for wait in range(5):
            await cycle(w__en=not wait, w__addr=BY_NAME["reset"].address, w__data=word)
            pulses += int(dut.reset.value)
        assert pulses == (word == RESET_MAGIC)


def test_register_file(seed):
    simulate(RegisterFile(CONFIG, **FACTS), __name__, seed=seed, noise=False)
