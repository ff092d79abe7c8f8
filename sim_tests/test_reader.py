"""Reader: the right chunks and tags, memory kept busy, no command without room, clean flush."""
import os
import random

import cocotb
import pytest
from bench import cycles, recv, send, simulate
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from memory_model import SimMemory, begin

from meadowlark_hdl.config import Config
from meadowlark_hdl.lib.queues import RamQueue
from meadowlark_hdl.memory.reader import Reader
from meadowlark_hdl.signatures import TileJob, TileTag

SIZE = 1 << 16


def config() -> Config:
    return Config(W=int(os.environ["W"]), P=4, bus_bytes=int(os.environ["BUS"]), fifo_words=128,
                  burst_words=int(os.environ["BURST"]))


def random_jobs(c: Config, total: int, *, contiguous: bool, most: int = 40) -> list[dict]:
    """Jobs of ``total`` chunks or a few more."""
    jobs, at, size = [], 0, SIZE // c.W
    while total > 0:
        chunks = min(random.choice([1, 2, random.randint(1, most), most]), size)
        if not contiguous or at + chunks > size:
            at = random.choice([0, size - chunks, random.randrange(size - chunks + 1)])
        jobs.append({"addr": at, "chunks": chunks, "mode": random.randrange(8),
                     "header": random.randrange(4), "rows": random.randrange(256),
                     "beats": random.randrange(c.tile_beats + 1),
                     "packed": random.randrange(2)})
        at, total = at + chunks, total - chunks
    return jobs


def expected(c: Config, memory: SimMemory, jobs: list[dict]) -> tuple[list[int], list[dict]]:
    chunks = [int.from_bytes(memory.data[i * c.W:(i + 1) * c.W].tobytes(), "little")
              for job in jobs for i in range(job["addr"], job["addr"] + job["chunks"])]
    return chunks, [{k: job.get(k, 0) for k in ("mode", "header", "rows", "beats", "packed")}
                    for job in jobs]


async def setup(dut, **timing):
    c = config()
    return c, await begin(dut, "mem", SIZE, bus_bytes=c.bus_bytes, **timing)


async def run(dut, c, memory, jobs, stall, times=None):
    chunks, tags = expected(c, memory, jobs)
    cocotb.start_soon(send(dut, "jobs", jobs, stall, layout=TileJob(c)))
    got_tags = cocotb.start_soon(recv(dut, "tags", len(tags), stall, layout=TileTag(c)))
    assert await recv(dut, "chunks", len(chunks), stall, times=times) == chunks
    assert await got_tags == tags


async def until_idle(dut):
    while True:
        await ReadOnly()
        if dut.idle.value:
            return
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.6], gap=[0, 3])
async def chunks_and_tags_in_order(dut, stall, gap):
    c, memory = await setup(dut, stall=stall, gap=gap)
    jobs = random_jobs(c, 400, contiguous=False)
    await run(dut, c, memory, jobs, stall)
    # Commands cover the jobs exactly, in bursts that are as long as allowed.
    commands = [(a, n) for _, a, n in memory.reads]
    want = []
    for job in jobs:
        at, left = job["addr"] * c.bus_per_chunk, job["chunks"] * c.bus_per_chunk
        while left:
            n = min(left, c.burst_words)
            want.append((at, n))
            at, left = at + n, left - n
    assert commands == want
    await ClockCycles(dut.clk, 3)
    assert dut.idle.value


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def memory_never_waits(dut):
    c, memory = await setup(dut, latency=12)
    # At least 4 bus words a job: a command takes 3 cycles, a job one more.
    least = max(1, 4 // c.bus_per_chunk)
    jobs = [job for job in random_jobs(c, 600, contiguous=True) if job["chunks"] >= least]
    words = sum(job["chunks"] for job in jobs) * c.bus_per_chunk
    beats = starved = 0

    async def count():
        nonlocal beats, starved
        while True:
            await ReadOnly()
            beats += int(dut.beats.value)
            starved += int(dut.starved.value)
            await RisingEdge(dut.clk)
    cocotb.start_soon(count())
    times = []
    await run(dut, c, memory, jobs, 0.0, times)
    taken = memory.read_times[-1] - memory.read_times[0] + 1
    assert taken <= words / 0.99, f"{words} bus words in {taken} cycles"
    assert beats == words
    if c.bus_per_chunk > 1:
        assert starved > taken // 4         # a decoder that waits is told so
    # From the last bus word of a chunk to the chunk.
    assert times[-1] - memory.read_times[-1] == (5 if c.bus_per_chunk == 1 else 6)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def first_command_and_first_job(dut):
    c, memory = await setup(dut, latency=5)
    times = []
    cocotb.start_soon(send(dut, "jobs", [{"addr": 3, "chunks": 2}] * 2, layout=TileJob(c),
                           times=times))
    await ClockCycles(dut.clk, 20)
    assert memory.reads[0][0] - times[0] == 3
    assert memory.reads[1][0] - memory.reads[0][0] == 5


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def asks_only_for_what_has_room(dut):
    c, memory = await setup(dut)
    jobs = [{"addr": 40 * i, "chunks": 40} for i in range(12)]
    chunks, _ = expected(c, memory, jobs)
    cocotb.start_soon(send(dut, "jobs", jobs, layout=TileJob(c)))
    await ClockCycles(dut.clk, 400)             # nobody takes a chunk
    asked = sum(n for _, _, n in memory.reads)
    # Up to CREDITS chunks have left the RAM for its output queue.
    assert c.fifo_words - c.burst_words < asked <= c.fifo_words + RamQueue.CREDITS * c.bus_per_chunk
    assert len(memory.read_times) == asked and dut.full.value and not dut.idle.value
    # What has run ahead comes out a chunk a cycle, whatever the bus.
    cocotb.start_soon(recv(dut, "tags", len(jobs), layout=TileTag(c)))
    times = []
    assert await recv(dut, "chunks", len(chunks), times=times) == chunks
    ahead = asked // c.bus_per_chunk - 1
    assert times[ahead] - times[0] == ahead


@cocotb.test(timeout_time=4, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def flush_in_mid_transfer(dut, stall):
    c, memory = await setup(dut, stall=stall, latency=15)
    for at in [*range(12), *(random.randrange(12, 400) for _ in range(25))]:
        jobs = random_jobs(c, 300, contiguous=False)
        tasks = [cocotb.start_soon(send(dut, "jobs", jobs, stall, layout=TileJob(c))),
                 cocotb.start_soon(recv(dut, "chunks", 10**6, stall)),
                 cocotb.start_soon(recv(dut, "tags", 10**6, stall, layout=TileTag(c)))]
        await ClockCycles(dut.clk, 1 + at)
        for task in tasks:
            task.cancel()
        dut.jobs__valid.value = random.randrange(2)         # dropped
        dut.flush.value = 1
        if random.random() < 0.5:                           # a pulse is enough
            await RisingEdge(dut.clk)
            dut.flush.value = 0
            dut.jobs__valid.value = 0
        dut.chunks__ready.value = dut.tags__ready.value = random.randrange(2)
        await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        begun = cycles(dut)
        await until_idle(dut)
        assert sum(n for _, _, n in memory.reads) == len(memory.read_times)
        assert cycles(dut) - begun < 1500
        await RisingEdge(dut.clk)
        dut.flush.value = dut.jobs__valid.value = 0
        dut.chunks__ready.value = dut.tags__ready.value = 0
        before = len(memory.reads)
        await ClockCycles(dut.clk, random.randrange(3))
        assert len(memory.reads) == before
        await run(dut, c, memory, random_jobs(c, 60, contiguous=False), stall)
        await RisingEdge(dut.clk)


@pytest.mark.parametrize("w, bus, burst", [(8, 2, 16), (16, 16, 16), (8, 4, 32), (4, 4, 1)])
def test_reader(w, bus, burst, seed):
    c = Config(W=w, P=4, bus_bytes=bus, fifo_words=128, burst_words=burst)
    # Bursts of one word cannot fill the bus: 3 cycles a command.
    only = "chunks_and_tags_in_order" if burst == 1 else None
    simulate(Reader(c), __name__, seed=seed, w=w, bus=bus, burst=burst, testcase=only)
