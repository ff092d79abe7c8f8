"""Scratch: rows of all tokens, in order, as parts of words; exact cycles, back-pressure, flush."""
import os
import random

import cocotb
import numpy as np
import pytest
from bench import cycles, flush, pack, recv, send, simulate, start, unpack
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.memory.scratch import Scratch
from meadowlark_hdl.signatures import (ModelLayout, PassLayout, PlaceLayout, ScratchCommand,
                                       StoreCommand)

CONFIGS = {f"w{W}b{bus}": Config(W=W, P=P, bus_bytes=bus, scratch_bytes=size, fifo_words=64,
                                 burst_words=32)
           for W, P, bus, size in ((4, 3, 1, 1024), (8, 4, 8, 2048), (16, 4, 4, 4096),
                                   (16, 4, 16, 1024), (32, 6, 8, 2048))}
CONFIGS |= {f"{case}tight": CONFIGS[case].replace(tight_keys=True) for case in ("w4b1", "w16b4")}


class Bench:
    """Knows what the memory holds: int8[bytes]."""

    def __init__(self, dut):
        self.dut, self.config = dut, CONFIGS[os.environ["CASE"]]
        self.memory = np.zeros(self.config.scratch_bytes, np.uint8)
        self.batch, self.places = 0, []

    async def begin(self):
        await start(self.dut)
        await self.place()
        await self.fill()

    async def place(self):
        """Places of all lanes, in any order. Of one sequence the first one's base counts."""
        P = self.config.P
        self.places = [{"base": random.getrandbits(27), "position": random.getrandbits(13)}
                       for _ in range(P)]
        self.dut.places__en.value = 1
        for slot in random.sample(range(P), P):
            self.dut.places__addr.value = slot
            self.dut.places__data.value = pack(PlaceLayout(), **self.places[slot])
            await RisingEdge(self.dut.clk)
        self.dut.places__en.value = 0

    async def write(self, at, values, mask):
        """Some of four bytes."""
        dut = self.dut
        dut.write__valid.value, dut.write__addr.value, dut.write__mask.value = 1, at, mask
        dut.write__data.value = int.from_bytes(bytes(values), "little")
        for k in range(4):
            if mask >> k & 1:
                self.memory[4 * at + k] = values[k]
        await RisingEdge(dut.clk)
        dut.write__valid.value = 0

    async def fill(self):
        """All of it, a byte, a pair or four at a time; with what is written over."""
        masks = [1, 2, 4, 8, 3, 12, 15]
        for at in range(self.config.scratch_bytes // 4):
            await self.write(at, random.randbytes(4), 15)
            # What is offered without valid, or without its bit, counts for nothing.
            self.dut.write__data.value = random.getrandbits(32)
            if random.random() < 0.3:
                await self.write(random.randrange(at + 1), random.randbytes(4),
                                 random.choice(masks))
        await ClockCycles(self.dut.clk, 3)

    def set_pass(self, n, token_words, pos0=None, batch=0):
        self.n, self.token_words, self.batch = n, token_words, batch
        self.pos0 = random.randrange(1 << 13) if pos0 is None else pos0
        self.dut.pass_.value = pack(PassLayout(), n=n, pos0=self.pos0, batch=batch)
        self.dut.model.value = pack(ModelLayout, token_words=token_words)

    def random_pass(self):
        most = self.config.scratch_bytes // self.config.W
        token_words = random.choice([1, random.randint(1, min(70, most))])
        self.set_pass(random.choice([1, random.randint(1, most // token_words)]), token_words)

    async def random_batch(self):
        """Some of the lanes have tokens."""
        P, most = self.config.P, self.config.scratch_bytes // self.config.W
        token_words = random.choice([1, random.randint(1, min(70, most // P))])
        await self.place()
        self.set_pass(random.randint(1, P), token_words, batch=1,
                      pos0=random.choice([0, random.getrandbits(13)]))

    def stored(self, command):
        """What the store unit gets for a command."""
        words = self.words(command)
        if self.batch:
            return [{"addr": (command["addr"] + place["base"]
                              + (place["position"] + self.pos0) % 2**13 * words) % 2**27,
                     "chunks": words} for place in self.places[:self.n]]
        return [{"addr": (command["addr"] + self.places[0]["base"] + self.pos0 * words) % 2**27,
                 "chunks": self.n * words}]

    def words(self, command):
        """Of a row."""
        return command["words"] if self.config.tight_keys else 1 << command["log2_words"]

    def command(self, addr, words, word=0):
        """words: of a row, a power of two where the core wants that."""
        size = ("words", words) if self.config.tight_keys else (
            "log2_words", words.bit_length() - 1)
        return {"addr": addr, "word": word, **dict([size])}

    def random_command(self):
        """Its row has up to 256 values."""
        most = min(self.token_words, 256 // self.config.W)
        words = random.choice([1, most, random.randint(1, most)])
        if not self.config.tight_keys:
            words = 1 << words.bit_length() - 1
        return self.command(random.getrandbits(27), words,
                            random.randrange(self.token_words - words + 1))

    def wanted(self, command):
        """Parts of words of a command."""
        c, out, head = self.config, [], self.config.W * self.words(command)
        for token in range(self.n):
            at = (token * self.token_words + command["word"]) * c.W
            row = self.memory[at:at + head].tobytes()
            out += [int.from_bytes(row[k:k + c.store_bytes], "little")
                    for k in range(0, head, c.store_bytes)]
        return out

    async def run(self, commands, stall):
        dut, words = self.dut, [w for command in commands for w in self.wanted(command)]
        cocotb.start_soon(send(dut, "cmd", commands, stall, layout=ScratchCommand(self.config)))
        stored = [store for command in commands for store in self.stored(command)]
        store = cocotb.start_soon(recv(dut, "store", len(stored), stall))
        got = await recv(dut, "words", len(words), stall)
        assert got == words
        assert [unpack(StoreCommand(), bits) for bits in await store] == stored
        await ClockCycles(dut.clk, 8)
        await ReadOnly()
        assert dut.idle.value and not dut.words__valid.value and not dut.store__valid.value
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.6])
async def rows_of_all_tokens(dut, stall):
    bench = Bench(dut)
    await bench.begin()
    for k in range(12):
        if k % 3 == 2:
            await bench.random_batch()
        else:
            bench.random_pass()
        await ClockCycles(dut.clk, 3)
        await bench.run([bench.random_command() for _ in range(random.randint(1, 4))], stall)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def cycles_of_commands(dut):
    """FIRST to the first part, a part a cycle, NEXT between commands."""
    bench = Bench(dut)
    await bench.begin()
    c = bench.config
    head = c.W << int(c.W == 4)
    bench.set_pass(5, head // c.W)
    await ClockCycles(dut.clk, 3)
    asked, came = [], []
    command = bench.command(7, head // c.W)
    dut.store__ready.value = 1
    cocotb.start_soon(send(dut, "cmd", [command] * 3, layout=ScratchCommand(c), times=asked))
    parts = 5 * head // c.store_bytes
    dut.words__ready.value = 1
    while len(came) < 3 * parts:
        await ReadOnly()
        if dut.words__valid.value:
            assert not dut.idle.value
            came.append(cycles(dut))
        await RisingEdge(dut.clk)
    assert came[0] - asked[0] == Scratch.FIRST
    for k in range(3):
        assert came[(k + 1) * parts - 1] - came[k * parts] == parts - 1
    assert {came[k * parts] - came[k * parts - 1] for k in (1, 2)} == {Scratch.NEXT}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def cycles_of_a_batch(dut):
    """NEXT between the tokens of a command, or PLACE; and between two commands."""
    bench = Bench(dut)
    await bench.begin()
    c = bench.config
    await bench.random_batch()
    parts, n = c.W // c.store_bytes, c.P
    bench.set_pass(n, 2, pos0=0, batch=1)
    await ClockCycles(dut.clk, 3)
    dut.store__ready.value = dut.words__ready.value = 1
    cocotb.start_soon(send(dut, "cmd", [bench.command(7, 1)] * 2, layout=ScratchCommand(c)))
    came = []
    while len(came) < 2 * n * parts:
        await ReadOnly()
        if dut.words__valid.value:
            came.append(cycles(dut))
        await RisingEdge(dut.clk)
    firsts = came[::parts]
    assert {b - a for a, b in zip(firsts, firsts[1:])} == {
        max(parts - 1 + Scratch.NEXT, Scratch.PLACE)}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def commands_wait(dut):
    """COMMANDS of them, while the store unit takes none; nothing is read, and none is lost."""
    bench = Bench(dut)
    await bench.begin()
    bench.random_pass()
    await ClockCycles(dut.clk, 3)
    commands, taken = [bench.random_command() for _ in range(20)], []
    layout = ScratchCommand(bench.config)
    sender = cocotb.start_soon(send(dut, "cmd", commands, layout=layout, times=taken))
    await ClockCycles(dut.clk, 60)
    assert len(taken) == Scratch.COMMANDS and dut.cmd__ready.value == 0
    assert not dut.words__valid.value and not dut.idle.value
    words = [w for command in commands for w in bench.wanted(command)]
    store = cocotb.start_soon(recv(dut, "store", len(commands)))
    assert await recv(dut, "words", len(words)) == words
    assert [unpack(StoreCommand(), bits)["addr"] for bits in await store] == [
        (c["addr"] + bench.places[0]["base"] + bench.pos0 * bench.words(c)) % 2**27
        for c in commands]
    await sender


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def flush_in_mid_command(dut):
    """Nothing of before comes after it; what was written is still there."""
    bench = Bench(dut)
    await bench.begin()
    for at in [*range(12), *(random.randrange(12, 120) for _ in range(8))]:
        bench.random_pass()
        await ClockCycles(dut.clk, 3)
        commands = [bench.random_command() for _ in range(6)]
        layout = ScratchCommand(bench.config)
        tasks = [cocotb.start_soon(send(dut, "cmd", commands, layout=layout)),
                 cocotb.start_soon(recv(dut, "store", 6, 0.3)),
                 cocotb.start_soon(recv(dut, "words", 6 * len(bench.wanted(commands[0])), 0.3))]
        await ClockCycles(dut.clk, 1 + at)
        await flush(dut, tasks, cmd__valid=0, store__ready=0, words__ready=0)
        if at % 2:                              # a pulse is enough; here it lasts
            dut.flush.value = 1
        await ClockCycles(dut.clk, 3)
        await ReadOnly()
        assert dut.idle.value and not dut.words__valid.value and not dut.store__valid.value
        await RisingEdge(dut.clk)
        dut.flush.value = 0
        await bench.run([bench.random_command()], 0.0)


@pytest.mark.parametrize("case", CONFIGS)
def test_scratch(case, seed):
    simulate(Scratch(CONFIGS[case]), __name__, seed=seed, case=case)
