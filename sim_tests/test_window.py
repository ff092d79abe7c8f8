"""The memory window alone: bursts both ways and CRCs over stretches of any length."""
import random
from collections import deque
from zlib import crc32

import pytest
from meadowlark_hdl.config import Config
from meadowlark_hdl.link.window import MemoryWindow
from quick import run

CONFIG = Config(W=8, P=4, bus_bytes=2, burst_words=8)
BUS, BURST = CONFIG.bus_bytes, CONFIG.burst_words
WORDS = 256


class Memory:
    """What is behind the window: a cycle at a time, called before its edge."""

    def __init__(self, ctx, window, stall):
        self.ctx, self.window, self.stall = ctx, window, stall
        self.words = [random.getrandbits(16) for _ in range(WORDS)]
        self.reads, self.writes, self.bursts = deque(), deque(), []
        self.done = 0                   # cycles until a write is in memory
        self.stored = False

    def cycle(self):
        ctx, mem = self.ctx, self.window.mem

        def go():
            return random.random() >= self.stall
        ctx.set(mem.r_cmd.ready, go())
        ctx.set(mem.w_cmd.ready, go())
        ctx.set(mem.w_data.ready, bool(self.writes) and go())
        ctx.set(mem.r_data.valid, bool(self.reads) and go())
        ctx.set(mem.r_data.payload, self.reads[0] if self.reads else 0)
        ctx.set(mem.w_done, self.done == 1)
        self.stored |= self.done == 1
        self.done = max(self.done - 1, 0)
        if ctx.get(mem.r_data.valid):
            assert ctx.get(mem.r_data.ready), "memory waits for the window"
            self.reads.popleft()
        for command in (mem.r_cmd, mem.w_cmd):
            if ctx.get(command.valid & command.ready):
                addr, words = (ctx.get(getattr(command.payload, n)) for n in ("addr", "len"))
                words += 1
                assert 1 <= words <= BURST
                self.bursts.append((addr, words))
                places = [addr + k for k in range(words)]
                if command is mem.r_cmd:
                    self.reads.extend(self.words[at] for at in places)
                else:
                    self.writes.extend(places)
        assert self.writes or not ctx.get(mem.w_data.valid), "data comes before its command"
        if ctx.get(mem.w_data.valid & mem.w_data.ready):
            assert ctx.get(mem.w_data.payload.strb) == (1 << BUS) - 1
            self.words[self.writes.popleft()] = ctx.get(mem.w_data.payload.data)
            if not self.writes:
                self.done = random.randrange(2, 9)


@pytest.mark.parametrize("stall", [0, 0.5])
def test_window(seed, stall):
    """Jobs in any order; a job is done when its last word is, and not before."""
    random.seed(seed)
    window = MemoryWindow(CONFIG)
    jobs = [("check", 0, n) for n in (1, BURST - 1, BURST, BURST + 1, 2 * BURST, 5 * BURST + 3)]
    jobs += [("read", 3, BURST), ("write", 9, BURST), ("read", 5, BURST), ("check", 0, WORDS),
             ("write", 0, 1), ("read", 0, 1)]
    for _ in range(25):
        kind = random.choice(("read", "write", "check"))
        words = random.randrange(1, 1 + (100 if kind == "check" else BURST))
        jobs.append((kind, random.randrange(WORDS - words + 1), words))

    async def bench(ctx):
        memory = Memory(ctx, window, stall)

        async def tick():
            memory.cycle()
            await ctx.tick()
        for kind, addr, words in jobs:
            job = getattr(window, kind)
            data = [random.getrandbits(16) for _ in range(words)]
            before, memory.bursts, memory.stored = list(memory.words), [], False
            for word in data if kind == "write" else []:
                ctx.set(window.w.payload, word)
                ctx.set(window.w.valid, 1)
                await tick()
                ctx.set(window.w.valid, 0)
            for name, value in (("addr", addr), ("words", words), ("go", 1)):
                ctx.set(getattr(job, name), value)
            await tick()
            ctx.set(job.go, 0)
            ctx.set(job.addr, random.getrandbits(32))       # taken
            ctx.set(job.words, random.getrandbits(32))
            took, got = 1, []
            if kind == "read":
                while len(got) < words:
                    memory.cycle()
                    ctx.set(window.r.ready, random.random() >= stall)
                    if ctx.get(window.r.valid & window.r.ready):
                        got.append(ctx.get(window.r.payload))
                    await ctx.tick()
                ctx.set(window.r.ready, 0)
                assert got == before[addr:addr + words]
            else:
                while not ctx.get(job.done):
                    await tick()
                    took += 1
                if kind == "write":
                    assert memory.stored, "done before it is in memory"
                    assert memory.words == before[:addr] + data + before[addr + words:]
                else:
                    raw = b"".join(w.to_bytes(BUS, "little") for w in before[addr:addr + words])
                    assert ctx.get(window.crc) == crc32(raw)
                    # Bursts are asked for back to back: a word a cycle, but for the beginning.
                    assert stall or took <= words + 16
            for _ in range(random.randrange(8)):
                await tick()
                assert not ctx.get(job.done)
            sizes = [BURST] * (words // BURST) + [words % BURST] * (words % BURST > 0)
            assert [n for _, n in memory.bursts] == sizes
            assert [at for at, _ in memory.bursts] == [addr + k * BURST for k in range(len(sizes))]
            assert not memory.reads and not memory.writes
    run(window, bench)
