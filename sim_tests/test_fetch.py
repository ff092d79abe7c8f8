"""Fetch: the right instructions and tile jobs for random lists, fences, ends, timing, flush."""
import random
from collections import deque

import cocotb
from bench import cycles, flush, pack, recv, simulate, start, unpack
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from meadowlark_hdl.config import Config
from meadowlark_hdl.control.fetch import Fetch
from meadowlark_hdl.control.fetch_golden import walk
from meadowlark_hdl.control.sequencer_golden import Lots, Pass, Place
from meadowlark_hdl.isa import NO_WINDOW, Header, Instruction, Mode, Op, Src, encode
from meadowlark_hdl.signatures import (FetchedInstruction, ModelLayout, PassLayout, PlaceLayout,
                                       TileJob)
from presented import packed_lots

SIZES = {"P": 4, "bus_bytes": 2, "prog_depth": 256, "context": 64, "tile_beats": 512}
CONFIG = Config(W=8, **SIZES)
VOCAB = 2**19 - 1       # the largest


NO_LOTS = Lots(range(0), range(0), range(0), False, False)


def jobs_of(i: Instruction, p: Pass, tokens: list[int], pointer: int, lots: Lots = NO_LOTS):
    """-> (jobs of one instruction, new stream pointer); written from docs/architecture.md."""
    def job(addr, chunks, rows, beats, header=i["header"]):
        return {"addr": addr % 2**27, "chunks": chunks, "mode": i["mode"], "header": header,
                "rows": rows, "beats": beats,
                "packed": i["packed"] if i["src"] == Src.STREAM else 0}
    jobs = []
    if i["src"] == Src.STREAM:
        for t in range(i["tiles"]):
            last = t == i["tiles"] - 1
            rows, chunks = ((i["last_rows"], i["last_chunks"]) if last
                            else (i["rows"], i["chunks"]))
            if i["op"] == Op.NORM:
                rows = 1
            jobs.append(job(pointer, chunks, rows, rows * i["row_beats"]))
            pointer += chunks
    elif i["src"] in (Src.TABLE, Src.TOKEN):
        for slot in range(p.n):
            row = (tokens[p.pos0 + slot] if i["src"] == Src.TOKEN else
                   p.positions[slot])
            jobs.append(job(i["addr"] + row * i["chunks"], i["chunks"], 1, i["row_beats"]))
    elif i["src"] == Src.KV:
        for key in lots.keys[::i["rows"]]:
            beats = min(i["rows"], lots.keys.stop - key) * i["row_beats"]
            jobs.append(job(i["addr"] + lots.base + key * i["row_beats"], beats, 0, beats,
                            Header.NONE))
    return jobs, pointer


def random_instruction(ops=("stream", "norm", "table", "token", "kv", "store", "none", "skip"),
                       **fields) -> Instruction:
    """Junk in the fields that do not matter. kv: a QK, see :func:`pair`."""
    f = {name: random.getrandbits(bits) for name, bits in
         (("sink", 3), ("pair", 2), ("fn", 3), ("wide", 1), ("stats", 1),
          ("heads", 1), ("lanes", 6), ("x", 12), ("y", 15), ("shift", 6),
          ("mant", 16), ("addr", 27), ("rows", 8), ("last_rows", 8), ("chunks", 12),
          ("last_chunks", 12), ("tiles", 15), ("row_beats", 11), ("last", 1), ("back", 13),
          ("ahead", 1), ("packed", 1), ("more", 1))}
    f |= {"mode": random.choice(list(Mode)), "header": random.choice(list(Header))}
    kind = random.choice(ops)
    if kind == "stream":
        beats = random.choice([1, 2, random.randint(1, 128)])
        f |= {"op": Op.LINEAR, "src": Src.STREAM, "tiles": random.choice([1, 1, 2, 9]),
              "row_beats": beats, "rows": random.randint(1, min(255, 512 // beats)),
              "last_rows": random.randint(1, min(255, 512 // beats)),
              "chunks": random.randint(1, 4095), "last_chunks": random.randint(1, 4095)}
    elif kind == "norm":
        f |= {"op": Op.NORM, "src": Src.STREAM, "tiles": 1, "row_beats": random.randint(1, 512),
              "last_chunks": random.randint(1, 4095)}
    elif kind in ("table", "token"):
        f |= {"op": Op.ROPE if kind == "table" else Op.EMBED, "row_beats": random.randint(1, 512),
              "src": Src.TABLE if kind == "table" else Src.TOKEN,
              "chunks": random.randint(1, 4095)}
    elif kind == "kv":
        beats = random.choice([1, 2, 8, 16])
        rows = fields.get("rows", random.choice([1, 3, 8, 32]))
        f |= {"op": Op.QK, "src": Src.KV, "row_beats": beats, "rows": rows, "chunks": rows * beats,
              "back": random.choice([NO_WINDOW, 0, random.randrange(60)]),
              "group": 1 if (f | fields)["heads"] else random.choice([1, 2, random.randint(1, 9)])}
    elif kind == "store":
        f |= {"op": Op.STORE, "src": Src.NONE}
    elif kind == "skip":
        f |= {"op": Op.END, "src": random.randrange(8), "last": 1}
    else:
        f |= {"op": Op.LINEAR, "src": random.choice([0, 5, 7])}
    return Instruction(**(f | fields))


def pair(svs: int = 0, **fields) -> list[Instruction]:
    """A QK and the SVs behind it: so many, or one, or some."""
    svs = svs or random.choice([1, 1, random.randint(2, 4)])
    qk, *some = (random_instruction(("kv",), **fields) for _ in range(1 + svs))
    same = {name: qk[name] for name in ("group", "heads", "lanes", "last", "back", "ahead")}
    return [qk, *(Instruction(**dict(sv) | same | {"op": Op.SV, "more": k < svs - 1})
                  for k, sv in enumerate(some))]


def random_list(count: int, *kinds: str, **fields: int) -> list[Instruction]:
    """So many instructions, a pair as one; fields: of QK and SV."""
    some = [random_instruction(kinds) if kinds else random_instruction() for _ in range(count)]
    return [i for each in some for i in (pair(**fields) if each["op"] == Op.QK else [each])]


def random_pass(final: int) -> Pass:
    pos0 = random.choice([0, 0, random.randrange(40)])
    n = random.randint(1, 20)
    return Pass(pos0, n, -(-n // 4), pos0 + n, random.randint(1, 4), random.randint(1, 6),
                bool(final), False, base=random.choice([0, random.getrandbits(27)]))


def random_batch() -> Pass:
    """Tokens anywhere. Lots are one by one, whatever the plan says."""
    places = tuple(Place(random.getrandbits(27), random.randrange(60))
                   for _ in range(random.randint(1, CONFIG.P)))
    before = random.choice([0, random.randrange(40)])
    return Pass(before, len(places), 1, before + len(places), random.randint(1, 4), 1, True, True,
                places)


class Bench:
    """Program and token memory, a store unit that takes its time, and the expected output."""

    def __init__(self, dut):
        self.dut = dut
        self.tokens = [random.choice([0, VOCAB - 1, 2**17, 2**18, random.randrange(VOCAB)])
                       for _ in range(CONFIG.context)]
        # STORE instructions completed; how often each is.
        self.stored, self.each, self.started = 0, 1, 0

    async def setup(self):
        await start(self.dut)
        cocotb.start_soon(self.token_memory())

    async def token_memory(self):
        """2 cycles: what is addressed now shows after the second edge from now."""
        dut = self.dut
        late = deque([0])
        while True:
            await ReadOnly()
            late.append(self.tokens[int(dut.token_addr.value)])
            await RisingEdge(dut.clk)
            dut.token_data.value = late.popleft()

    async def load(self, at: int, program: list[Instruction]):
        dut = self.dut
        for n, instruction in enumerate(program):
            dut.prog_en.value, dut.prog_addr.value = 1, at + n
            dut.prog_data.value = int.from_bytes(encode(instruction), "little")
            await RisingEdge(dut.clk)
        dut.prog_en.value = 0

    async def go(self, pc: int, p: Pass, stream_addr: int, vocab: int = VOCAB):
        dut = self.dut
        # Of a pass of one sequence the base alone counts.
        for slot, place in enumerate(p.batch or [Place(p.base, random.getrandbits(13))]):
            dut.places__en.value, dut.places__addr.value = 1, slot
            dut.places__data.value = pack(PlaceLayout(), **place._asdict())
            await RisingEdge(dut.clk)
        dut.places__en.value = 0
        dut.pass_.value = pack(PassLayout(), **{
            name: int(getattr(p, name)) for name in PassLayout().members if name != "batch"},
            batch=int(bool(p.batch)))
        dut.model.value = pack(ModelLayout, stream_addr=stream_addr, vocab=vocab)
        dut.start_pc.value, dut.start.value, self.started = pc, 1, cycles(dut)
        await RisingEdge(dut.clk)
        dut.start.value, dut.start_pc.value = 0, random.getrandbits(16)
        dut.model.value = 0                     # counts only with start
        await ReadOnly()
        assert dut.busy.value
        await RisingEdge(dut.clk)

    async def stores(self):
        """Completes the STOREs that the engine has taken, some time later."""
        dut, due = self.dut, deque()
        while True:
            await ReadOnly()
            if dut.out__valid.value and dut.out__ready.value:
                if int(dut.out__payload.value) & 15 == Op.STORE:
                    due += [cycles(dut) + random.randrange(60) for _ in range(self.each)]
            done = due and due[0] <= cycles(dut)
            await RisingEdge(dut.clk)
            dut.store_done.value = int(bool(done))
            if done:
                due.popleft()
                self.stored += 1


def expected(program, pc, p, tokens, stream_addr):
    """-> (queued instructions, jobs, for each job: STOREs that must be complete before it, in a
    batch those of each token)."""
    out, jobs, fences, stores, pointer = [], [], [], 0, stream_addr
    for at, lots in walk(CONFIG, program, p, 0):
        i = program[at]
        out.append({"instr": dict(i), "pc": pc + at} | (
            {"lots": packed_lots(lots)} if lots else {}))
        new, pointer = jobs_of(i, p, tokens, pointer, lots or NO_LOTS)
        jobs += new if i["op"] != Op.END else []
        fences += [stores if i["src"] == Src.KV else 0] * len(new) if i["op"] != Op.END else []
        stores += (len(p.batch) or 1) * (i["op"] == Op.STORE)
    return out, jobs, fences


def fetched(words) -> list[dict]:
    """What was queued, lots only where they count."""
    out = [unpack(FetchedInstruction(), word) for word in words]
    return [item if item["instr"]["op"] in (Op.QK, Op.SV) else
            {name: item[name] for name in ("instr", "pc")} for item in out]


async def run(bench, program, pc, pass_, stall, times=None, vocab=VOCAB):
    """Loads and runs a list, compares everything."""
    dut = bench.dut
    stream_addr = random.getrandbits(26)
    await bench.load(pc, program)
    want_out, want_jobs, fences = expected(program, pc, pass_, bench.tokens, stream_addr)
    await bench.go(pc, pass_, stream_addr, vocab)
    bench.stored, bench.each = 0, len(pass_.batch) or 1
    helper = cocotb.start_soon(bench.stores())
    out = cocotb.start_soon(recv(dut, "out", len(want_out), stall))

    async def receive():
        for n, (want, fence) in enumerate(zip(want_jobs, fences)):
            got = (await recv(dut, "jobs", 1, stall, layout=TileJob(CONFIG), times=times))[0]
            assert got == want, f"job {n} is {got}, not {want}"
            assert bench.stored >= fence, f"job {n} came before its store had completed"
    await receive()
    assert fetched(await out) == want_out
    await ReadOnly()
    assert not dut.jobs__valid.value and not dut.out__valid.value and not dut.busy.value
    assert dut.pc.value == pc + len(program) - 1
    assert not dut.bad_token.value and not dut.program_end.value
    await RisingEdge(dut.clk)
    helper.cancel()
    dut.store_done.value = 0
    await ClockCycles(dut.clk, 10)
    assert not dut.jobs__valid.value and not dut.out__valid.value


END = Instruction(Op.END)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.6], batch=[False, True])
async def random_lists(dut, stall, batch):
    bench = Bench(dut)
    await bench.setup()
    for vocab in [VOCAB, 1 if batch else VOCAB] * 6:    # positions may be beyond a vocabulary
        program, pass_ = (random_list(20, heads=1, group=1), random_batch()) if batch else (
            random_list(20), random_pass(1))
        if vocab == 1:
            bench.tokens[pass_.pos0:pass_.ctx] = [0] * pass_.n
        await run(bench, [*program, END], random.randrange(200), pass_, stall, vocab=vocab)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def conditional_end(dut):
    bench = Bench(dut)
    await bench.setup()
    head = [random_instruction(("stream", "table")) for _ in range(3)]
    tail = [random_instruction(("stream", "table")) for _ in range(3)]
    conditional = random_instruction(("skip",))
    await run(bench, [*head, conditional, *tail, END], 3, random_pass(1), 0.0)
    await run(bench, [*head, conditional], 3, random_pass(0), 0.0)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def keys_wait_for_stores(dut):
    """The engine takes the STOREs late; the jobs before the fence are not held up."""
    bench = Bench(dut)
    await bench.setup()
    stream, table = random_instruction(("stream",)), random_instruction(("table",))
    program = [random_instruction(("store",)), stream, *pair(), random_instruction(("store",)),
               table, *pair(), END]
    pass_ = random_pass(1)
    await bench.load(0, program)
    out, jobs, fences = expected(program, 0, pass_, bench.tokens, 0)
    await bench.go(0, pass_, 0)
    cocotb.start_soon(recv(dut, "out", len(out)))
    got = []

    async def collect():
        while True:
            got.extend(await recv(dut, "jobs", 1, layout=TileJob(CONFIG)))
    cocotb.start_soon(collect())
    for stores in range(3):
        await ClockCycles(dut.clk, 200 + 20 * len(jobs))
        # In order: all up to the first that needs one more STORE.
        free = next((n for n, f in enumerate(fences) if f > stores), len(jobs))
        assert got == jobs[:free]
        dut.store_done.value = 1
        await RisingEdge(dut.clk)
        dut.store_done.value = 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(kind=["stream", "norm", "table", "token", "kv"])
async def jobs_come_at_set_distances(dut, kind):
    bench = Bench(dut)
    await bench.setup()
    # The distance of jobs within an instruction, and from one instruction to the next.
    within, between = {"stream": (2, 10), "norm": (2, 10), "table": (2, 10), "token": (6, 11),
                       "kv": (2, 10)}[kind]
    pass_ = Pass(3, 9, 3, 12, 1, 3, True, False)
    fields = {"stream": {"tiles": 3}, "norm": {}, "table": {}, "token": {},
              "kv": {"rows": 3, "group": 2, "back": NO_WINDOW, "ahead": 0}}
    program = [random_instruction((kind,), **fields[kind]) for _ in range(6)]
    if kind == "kv":                    # three times, twice each
        program = [i for _ in range(3) for i in pair(1, heads=0, **fields[kind])]
    times = []
    await run(bench, [*program, END], 0, pass_, 0.0, times)
    if kind == "stream":
        assert times[0] - bench.started == Fetch.START
    each = len(times) // (12 if kind == "kv" else 6)
    for n, (a, b) in enumerate(zip(times, times[1:])):
        assert b - a == (between if (n + 1) % each == 0 else within)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_queue_runs_ahead(dut):
    """8 instructions wait for the engine, no more, and the jobs go no further."""
    bench = Bench(dut)
    await bench.setup()
    program = [random_instruction(("norm",)) for _ in range(15)] + [END]
    pass_ = random_pass(1)
    await bench.load(0, program)
    await bench.go(0, pass_, 0)
    times = []
    cocotb.start_soon(recv(dut, "jobs", 99, layout=TileJob(CONFIG), times=times))
    await ClockCycles(dut.clk, 300)
    assert len(times) == Fetch.QUEUE and dut.pc.value == Fetch.QUEUE and dut.busy.value
    await recv(dut, "out", 1)
    await ClockCycles(dut.clk, 30)
    assert len(times) == Fetch.QUEUE + 1


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def flush_in_mid_list(dut):
    bench = Bench(dut)
    await bench.setup()
    for at in [*range(30), *(random.randrange(30, 300) for _ in range(15))]:
        program = random_list(8) + [END]
        await bench.load(7, program)
        await bench.go(7, random_pass(1), 5)
        tasks = [cocotb.start_soon(bench.stores()),
                 cocotb.start_soon(recv(dut, "out", 99, 0.5)),
                 cocotb.start_soon(recv(dut, "jobs", 10**6, 0.5))]
        await ClockCycles(dut.clk, 1 + at)
        await flush(dut, tasks, store_done=0, out__ready=0, jobs__ready=0)
        await ReadOnly()
        assert not dut.busy.value and not dut.out__valid.value and not dut.jobs__valid.value
        await RisingEdge(dut.clk)
        await run(bench, [*random_list(4), END], 20, random_pass(1), 0.0)


async def stopped(bench, fault, jobs):
    """So many jobs come, then the fault and nothing more, until a flush."""
    dut = bench.dut
    got = []

    async def collect():
        while True:
            got.extend(await recv(dut, "jobs", 1, layout=TileJob(CONFIG)))
    tasks = [cocotb.start_soon(collect()), cocotb.start_soon(recv(dut, "out", 999))]
    await ClockCycles(dut.clk, 20 * len(jobs) + 200)
    assert got == jobs
    flags = {name: int(getattr(dut, name).value) for name in ("bad_token", "program_end")}
    assert flags == {"bad_token": 0, "program_end": 0, fault: 1} and dut.busy.value
    await flush(dut, tasks, out__ready=0, jobs__ready=0)
    await ReadOnly()
    assert not dut.busy.value and not dut.bad_token.value and not dut.program_end.value
    await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def no_token_beyond_the_vocabulary(dut):
    bench = Bench(dut)
    await bench.setup()
    pass_ = Pass(2, 9, 3, 11, 1, 1, True, False)
    for vocab in (1, 2, 49152, 2**17, 2**18, VOCAB):
        # The largest of the vocabulary is taken, the next one is not.
        program = [random_instruction(("table", "stream")), random_instruction(("token",)), END]
        bad, kept = random.randrange(9), list(bench.tokens)
        bench.tokens[2:11] = [random.choice([0, vocab - 1]) for _ in range(9)]
        bench.tokens[2 + bad] = random.choice([vocab, 2**19 - 1])
        await bench.load(9, program)
        _, jobs, _ = expected(program, 9, pass_, bench.tokens, 77)
        await bench.go(9, pass_, 77, vocab)
        await stopped(bench, "bad_token", jobs[:len(jobs) - 9 + bad])
        bench.tokens = kept
        await run(bench, [random_instruction(("token",)), END], 20, random_pass(1), 0.0)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def no_instruction_beyond_the_program(dut):
    bench = Bench(dut)
    await bench.setup()
    for pc in (CONFIG.prog_depth - 3, CONFIG.prog_depth - 1):
        program = [random_instruction(("table", "stream", "skip"))
                   for _ in range(CONFIG.prog_depth - pc)]
        await bench.load(pc, program)
        pass_ = random_pass(1)
        _, jobs, _ = expected(program, pc, pass_, bench.tokens, 5)
        await bench.go(pc, pass_, 5)
        await stopped(bench, "program_end", jobs)
    await bench.load(0, [END])
    for pc in (CONFIG.prog_depth, 2**16 - 1):       # a list that begins there
        await bench.go(pc, random_pass(1), 5)
        await stopped(bench, "program_end", [])
    # The last place is one like the others.
    await run(bench, [random_instruction(("table",)), END], CONFIG.prog_depth - 2,
              random_pass(1), 0.0)


def test_fetch(seed):
    simulate(Fetch(CONFIG), __name__, seed=seed)
