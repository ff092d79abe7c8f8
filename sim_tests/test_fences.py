"""Fences: where Fetch stops, and programs that have them: the same text, and a memory side that
does not run ahead."""
import random
from contextlib import closing
from dataclasses import replace

import cocotb
import numpy as np
import pytest
from bench import cycles, recv, simulate
from cocotb.triggers import ClockCycles, RisingEdge
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict
from meadowlark.compile.fences import PLACES, fenced
from meadowlark.compile.image import Image
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant.quantise import quantise
from meadowlark.run.prepare import Source
from meadowlark.run.targets import SimTarget, golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.control.fetch import Fetch
from meadowlark_hdl.control.fetch_golden import walk
from meadowlark_hdl.isa import Op
from meadowlark_hdl.sampler.sampler_golden import Sampling
from meadowlark_hdl.signatures import TileJob
from random_model import random_model, random_texts
from test_fetch import (CONFIG, END, NO_LOTS, Bench, expected, fetched, jobs_of, random_list,
                        random_pass)

LAYERS = 3
CORE = get_board("virtual").config


class Engine:
    """Is done with an instruction some time after its last job; what an SV leaves, later still.

    done: the cycle in which each one's end was seen.
    """

    def __init__(self, dut, owners: list[int], waits: int):
        self.dut, self.owners, self.waits = dut, owners, waits
        self.items: list[int] = []
        self.jobs: list[dict] = []
        self.times: list[int] = []
        self.done: list[int] = []

    async def collect(self):
        self.jobs = await recv(self.dut, "jobs", len(self.owners), layout=TileJob(CONFIG),
                               times=self.times)

    async def run(self, count: int):
        """So many instructions."""
        dut, clock = self.dut, RisingEdge(self.dut.clk)
        cocotb.start_soon(self.drain())
        for k in range(count):
            self.items += await recv(dut, "out", 1)
            while len(self.times) < sum(owner <= k for owner in self.owners):
                await clock
            await ClockCycles(dut.clk, 1 + random.randint(0, self.waits))
            is_sv = self.items[-1] & 15 == Op.SV
            self.done.append(cycles(dut) + is_sv * random.randint(0, self.waits))
            dut.retired.value = 1
            await clock
            dut.retired.value = 0

    async def drain(self):
        """Whether all that is retired is done."""
        while True:
            self.dut.drained.value = int(cycles(self.dut) >= max(self.done, default=0))
            await RisingEdge(self.dut.clk)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(waits=[0, 40, 200])
async def nothing_is_read_behind_a_fence(dut, waits):
    """Before all in front of it is done, and the first tile's job FENCE cycles later."""
    program, pass_, bench = [*random_list(40), END], random_pass(1), Bench(dut)
    await bench.setup()
    await bench.load(0, program)
    await bench.go(0, pass_, 5)
    cocotb.start_soon(bench.stores())
    out, jobs, _ = expected(program, 0, pass_, bench.tokens, 5)
    owners = [k for k, (at, lots) in enumerate(walk(CONFIG, program, pass_, 0))
              if program[at]["op"] != Op.END
              for _ in jobs_of(program[at], pass_, bench.tokens, 0, lots or NO_LOTS)[0]]
    engine = Engine(dut, owners, waits)
    collecting = cocotb.start_soon(engine.collect())
    await engine.run(len(out))
    await collecting
    assert engine.jobs == jobs and fetched(engine.items) == out
    ahead = 0
    for k, item in enumerate(out):
        i = item["instr"]
        if k not in owners:
            continue
        first, before = engine.times[owners.index(k)], max(engine.done[:k], default=0)
        if k and i["more"] and i["op"] in (Op.NORM, Op.LINEAR):
            assert Fetch.FENCE - 2 <= first - before <= Fetch.FENCE     # of drained, of retired
        else:
            ahead += first < before
    assert ahead or waits < 200


def test_fetch_stops(seed):
    simulate(Fetch(CONFIG.replace(fences=True)), __name__, seed=seed)


@pytest.fixture(scope="module", params=["llama", "deepseek_v2"])
def image(request, tmp_path_factory):
    """Also of a model with latents, which are made between keys and their STORE."""
    model = load_model(random_model(tmp_path_factory.mktemp("m"), seed=4, layers=LAYERS,
                                    family=request.param))
    return compile_model(quantise(model, random_texts(model, seed=2, sequences=2), head_pad=16),
                         get_board("virtual"))


@pytest.mark.parametrize("where", PLACES)
def test_the_text_is_the_same(image, where, seed):
    """Logits and the whole memory, KV cache and all, of a prompt and of what follows it."""
    board, rng = get_board("virtual"), np.random.default_rng(seed)
    tokens = rng.integers(0, image.shape["vocab"], 9).tolist()
    plain, other = (golden_core(of, board.config, seed)
                    for of in (image, fenced(image, where, CORE)))
    for core in (plain, other):
        core.forward(tokens[:5])
    for at, token in enumerate(tokens[5:], 5):
        np.testing.assert_array_equal(other.forward([token], at), plain.forward([token], at))
    np.testing.assert_array_equal(other.memory, plain.memory)
    assert other.counters == plain.counters


def test_fences_are_where_they_are_asked_for(image):
    """Before each layer but the first, or before each operator, in both lists; else the program is
    what it was."""
    for where in PLACES:
        made, at = fenced(image, where, CORE), image.model_regs["decode_pc"]
        changed = [k for k, pair in enumerate(zip(image.instructions, made.instructions))
                   if pair[0] != pair[1]]
        assert all(made.instructions[k] == image.instructions[k] | {"more": 1} for k in changed)
        ops = [i["op"] for i in image.instructions]
        if where == "layers":
            assert {ops[k] for k in changed} == {Op.NORM}
            assert [k < at for k in changed] == [True] * (LAYERS - 1) + [False] * (LAYERS - 1)
        else:
            assert changed == [k for k, op in enumerate(ops) if op in (Op.NORM, Op.LINEAR)]


@pytest.mark.parametrize("where", PLACES)
def test_a_fenced_image_is_an_image(image, where, tmp_path):
    """It is written, read and checked, and what is useful in a pass is what it was."""
    made = fenced(image, where, CORE)
    made.save(tmp_path / "f.mlk")
    again = Image.load(tmp_path / "f.mlk")
    assert again.program == made.program and again.caches == image.caches
    assert again.backs == image.backs
    assert again.useful_bytes(pos0=7, n=1, final=True) == image.useful_bytes(
        pos0=7, n=1, final=True)


def test_fences_take_time(image):
    """More at operators than at layers, in prefill and decode, and no words."""
    for name in "virtual", "kv260":
        board = replace(get_board(name), config=CORE)
        found = [predict(of, board, prompt=8, generate=5) for of in (
            image, fenced(image, "layers", CORE), fenced(image, "operators", CORE))]
        for times in ([p.decode_cycles for p in found], [p.prefill_cycles for p in found]):
            assert times == sorted(set(times))
        assert len({p.bus_words for p in found}) == 1


@pytest.mark.parametrize("where", PLACES)
def test_the_chip_stops(where, image, tmp_path, seed):
    """The whole core: the same tokens and logits, and as many cycles as the cycle model says."""
    board, rng = get_board("virtual"), np.random.default_rng(seed)
    prompt, found = rng.integers(0, image.shape["vocab"], 21).tolist(), []
    for of in image, fenced(image, where, CORE):
        of.save(tmp_path / "f.mlk")
        with closing(SimTarget(board)) as target:
            target.load(Source(str(tmp_path / "f.mlk"), board))
            events = [(e.token, e.crc) for e in target.generate(prompt, Sampling(), max_new=4,
                                                                stop_ids=())]
            found.append((events, target.counters()["cycles"]))
        predicted = predict(of, board, prompt=len(prompt), generate=4)
        assert abs(predicted.cycles / found[-1][1] - 1) < 0.01
    assert found[0][0] == found[1][0] and found[0][1] < found[1][1]


def test_no_fences(image):
    with pytest.raises(UserError, match="no fences at 'rows'; give one of operators, layers"):
        fenced(image, "rows", CORE)
    with pytest.raises(UserError, match="virtual always runs ahead; take the board virtual"):
        fenced(image, "layers", CORE.replace(fences=False))
