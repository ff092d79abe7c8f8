"""The whole chip, through the driver: every token and every logit equals the golden model's."""
import itertools
import random
import re
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from batches import alone_and_together
from gguf_files import write_gguf
from meadowlark.compile.cycles import predict
from meadowlark.compile.passes import prompt_regs
from meadowlark.link.driver import BoardError
from meadowlark.models.families import families
from meadowlark.models.families.decoder import FUNCTION_NAMES, PROJECTION
from meadowlark.models.families.llama import Llama
from meadowlark.models.registry import load_model
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.plan import GateStep
from meadowlark.quant.sampling import sampling
from meadowlark.run import bench
from meadowlark.run.prepare import Source
from meadowlark.run.targets import Drafting, SimTarget, golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.compute.requant_golden import requant
from meadowlark_hdl.control.errors import FAULTS, SENTENCES, Error
from meadowlark_hdl.draft.drafter_golden import draft
from meadowlark_hdl.draft.run_golden import turns
from meadowlark_hdl.sampler.sampler_golden import Sampling, logits_crc, sample
from meadowlark_hdl.isa import Fn, Header, Instruction, Op, Pair, Sink, Src, encode
from meadowlark_hdl.isa_golden import GoldenCore
from meadowlark_hdl.fixed import saturate
from meadowlark_hdl.link.protocol import EVENT_RING
from meadowlark_hdl.run_table import RUN_REGS
from random_model import norms, random_model
from reference_models import reference_model

#: Odd shapes: GQA with three heads a group, head_dim padded from 24 to 32, own head, biases.
ODD = dict(hidden=96, layers=2, heads=6, kv_heads=2, head_dim=24, ffn=80, vocab=300, context=192,
           tied=False, attention_bias=True, mlp_bias=True)

#: A vocabulary whose last quarter needs 19 bits.
LARGE = (1 << 18) * 4 // 3


class Chip:
    """A simulated board with a model in it, and the golden models beside it: the model in
    integers, and the core with the image."""

    def __init__(self, target: SimTarget, board, model: str, packing: str = "auto", *,
                 all_tokens: bool = False):
        self.target = target
        self.source = Source(model, board, packing=packing, all_tokens=all_tokens)
        target.load(self.source)
        self.golden = GoldenModel(self.source.quantised, context=self.source.image.context)
        self.core = golden_core(self.source.image, board.config)

    def compare(self, tokens, draw=Sampling(), *, max_new, stop_ids=()):
        """Run all; returns the tokens."""
        events = list(self.target.generate(tokens, draw, max_new=max_new, stop_ids=stop_ids))
        self.golden.forget()
        self.golden.saturations.clear()
        want = list(self.golden.generate(tokens, draw, max_new=max_new, stop_ids=stop_ids))
        assert [e.token for e in events] == [token for token, _ in want]
        image = self.source.image
        room = image.context - len(tokens) + 1
        self.core.model = prompt_regs(image, self.target.board, len(tokens), 0)
        by_program = list(self.core.generate(tokens, draw, max_new=min(max_new, room),
                                             stop_ids=stop_ids))
        for event, (_, logits), (token, same) in zip(events, want, by_program, strict=True):
            np.testing.assert_array_equal(event.logits, logits)
            np.testing.assert_array_equal(same, logits)
            assert event.crc == logits_crc(logits) and event.token == token
        counters = self.target.counters()
        # The model in integers takes all tokens through all of the last layer.
        counted, most = counters["score_saturations"], self.golden.saturations["scores"]
        assert counted == most if self.source.all_tokens else counted <= most
        assert self.core.counters.items() <= counters.items()
        return [e.token for e in events]


@pytest.fixture(scope="module")
def target():
    with closing(SimTarget(get_board("virtual"))) as sim:
        yield sim


@pytest.fixture(scope="module")
def ulx3s():
    with closing(SimTarget(get_board("ulx3s_85f"))) as sim:
        yield sim


@pytest.fixture
def stories(target):
    return Chip(target, get_board("virtual"), "stories")


@pytest.fixture
def odd(target, tmp_path, seed):
    return Chip(target, get_board("virtual"), str(random_model(tmp_path / "odd", seed=seed, **ODD)))


@pytest.fixture
def blocks(target, tmp_path, seed):
    """A GGUF file: Q8_0 in the embedding and the head, Q4_1 in the layers, odd numbers of rows."""
    folder = random_model(tmp_path / "folder", seed=seed, hidden=96, layers=2, heads=3, kv_heads=1,
                          head_dim=32, ffn=160, vocab=301)
    path = write_gguf(tmp_path / "m.gguf", folder, kind="Q4_1", others={
        "token_embd.weight": (load_model(folder).weights["embedding"], "Q8_0")})
    return Chip(target, get_board("virtual"), str(path))


@pytest.fixture
def rewritten(target, tmp_path, seed):
    """An FFN that is cut in two, heads that are padded from 8 to 16, a layer without rotation."""
    return Chip(target, get_board("virtual"), str(random_model(
        tmp_path / "m", seed=seed, hidden=32, heads=6, kv_heads=2, head_dim=8, ffn=4160,
        architectures=["SmolLM3ForCausalLM"], model_type="smollm3", no_rope_layers=[1, 0])))


def words(rng, chip, count):
    """A prompt of ``count`` tokens, bos first."""
    return [0, *rng.integers(2, chip.source.quantised.vocab, count - 1).tolist()]


def test_story(stories):
    prompt = stories.source.tokenizer.encode("Once upon a time")
    tokens = stories.compare(prompt, max_new=12)
    assert stories.source.tokenizer.decode(tokens).startswith(", there was a little")
    assert stories.target.messages == 0


@pytest.mark.parametrize("options", [
    dict(temperature=0.8, seed=7), dict(temperature=1.3, top_k=5, seed=1),
    dict(temperature=0.9, top_k=32, top_p=0.7, seed=2**32 - 1)])
def test_sampling(stories, options):
    prompt = stories.source.tokenizer.encode("One day, a small rabbit")
    stories.compare(prompt, sampling(**options), max_new=6)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 31, 64, 65, 150])
def test_prompt_lengths(odd, seed, length):
    """A block and less, its edge, all resident blocks, several passes, several key tiles."""
    rng = np.random.default_rng(seed)
    odd.compare(words(rng, odd, length), max_new=3)


def test_context_full(odd, seed):
    rng = np.random.default_rng(seed)
    context = odd.source.image.context
    assert len(odd.compare(words(rng, odd, context - 3), max_new=99)) == 4


def test_stop_ids(stories):
    prompt = stories.source.tokenizer.encode("Once upon a time")
    plain = stories.compare(prompt, max_new=6)
    stopped = stories.compare(prompt, max_new=6, stop_ids=(2000, plain[2], plain[4]))
    assert stopped == plain[:plain.index(plain[2]) + 1]


def test_blocks(blocks, seed):
    """Blocks of 32 with their short row headers, in passes of several blocks of tokens."""
    image = blocks.source.image
    assert {i["header"] for i in image.instructions if i["op"] in (Op.LINEAR, Op.EMBED)} == {
        Header.SHORT}
    blocks.compare(words(np.random.default_rng(seed), blocks, 37), max_new=4)


def test_rewritten_for_the_board(rewritten, seed):
    """Slices that add to the residual one behind the other, queries and keys as they come."""
    qm = rewritten.source.quantised
    assert [qm.plan.graph.edges[step.name].width for step in qm.plan.of(GateStep)] == [2080] * 4
    assert qm.head_pad == 16 and [step.table for step in qm.plan.attends] == ["rope", None]
    found = {(i["sink"], i["pair"]) for i in rewritten.source.image.instructions
             if i["op"] == Op.LINEAR}
    assert {(sink, pair) for sink in (Sink.ACT, Sink.SCRATCH)
            for pair in (Pair.NONE, Pair.ROPE)} < found
    rewritten.compare(words(np.random.default_rng(seed), rewritten, 21), max_new=4)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "tanh"])
def test_functions(target, tmp_path, name, seed):
    """Of gates."""
    chip = Chip(target, get_board("virtual"), str(random_model(
        tmp_path / "m", seed=seed, hidden_act=name)))
    assert {i["fn"] for i in chip.source.image.instructions} == {Fn.NONE, FUNCTION_NAMES[name]}
    chip.compare(words(np.random.default_rng(seed), chip, 21), max_new=4)


def test_functions_alone(target, tmp_path, seed):
    """Of values and of queries that do not rotate, with a head on each lane as well: no model has
    that, so only the golden core says what comes out."""
    board, rng, path = get_board("virtual"), np.random.default_rng(seed), tmp_path / "m.mlk"
    image = Source(str(random_model(
        tmp_path / "m", seed=seed, architectures=["SmolLM3ForCausalLM"], model_type="smollm3",
        no_rope_layers=[1, 0])), board).image
    program, done = image.instructions, set()
    for i in program:
        if i["op"] == Op.LINEAR and i["sink"] in (Sink.ACT, Sink.SCRATCH) and not i["pair"]:
            i.update(fn=int(rng.choice(list(FUNCTION_NAMES.values()))), shift=int(rng.integers(9)))
            done.add((i["sink"], i["heads"]))
    assert len(done) == 3
    replace(image, program=b"".join(map(encode, program))).save(path)
    source = Source(str(path), board)
    target.load(source)
    tokens = rng.integers(2, 128, 21).tolist()
    core = golden_core(source.image, board.config)
    for event, (token, logits) in zip(
            target.generate(tokens, Sampling(), max_new=4, stop_ids=()),
            core.generate(tokens, max_new=4), strict=True):
        np.testing.assert_array_equal(event.logits, logits)
        assert event.token == token
    assert core.counters.items() <= target.counters().items()


@pytest.mark.parametrize("length, shape", [
    (70, dict(hidden=54, heads=9, kv_heads=1, head_dim=24, ffn=70, context=96)),
    (70, dict(hidden=38, heads=12, kv_heads=1, head_dim=8, ffn=94, family="mistral",
              sliding_window=16, context=96, layer_types=["sliding_attention", "full_attention"])),
    (70, dict(hidden=64, layers=5, heads=8, kv_heads=4, ffn=172, vocab=512, context=512)),
    (70, dict(hidden=54, heads=2, kv_heads=1, head_dim=240, ffn=70, context=96)),
    (40, dict(family="opt", hidden=54, heads=3, ffn=71, context=96)),
    (40, dict(family="gpt_neox", hidden=96, heads=3, ffn=70, context=96, hidden_act="gelu_new")),
    (40, dict(family="gemma3_text", hidden=38, layers=4, heads=4, kv_heads=1, head_dim=24, ffn=70,
              context=96, _sliding_window_pattern=2, sliding_window=16)),
    (40, dict(family="gemma2", hidden=38, layers=2, heads=4, kv_heads=1, head_dim=24, ffn=70,
              context=96, sliding_window=16, attn_logit_softcapping=9.0,
              final_logit_softcapping=7.5)),
    (70, dict(family="deepseek_v2", hidden=54, heads=6, ffn=70, context=96, kv_lora_rank=56)),
    (40, dict(family="deepseek_v3", hidden=38, heads=3, ffn=70, context=96)),
    (70, dict(family="olmo2", hidden=54, heads=3, kv_heads=1, head_dim=24, ffn=70, context=96)),
], ids=["9 heads, two passes", "12 heads, window", "stories260K", "heads of 256", "OPT", "NeoX",
        "Gemma 3", "Gemma 2", "latents", "latents, low rank", "OLMo 2"])
def test_shapes(target, tmp_path, seed, length, shape):
    """Some of shapes_check.py, and the shape of the smallest model that people have."""
    chip = Chip(target, get_board("virtual"), str(random_model(
        tmp_path / "m", seed=seed, **dict(vocab=258) | shape)))
    chip.compare(words(np.random.default_rng(seed), chip, length), max_new=3)


def test_a_large_vocabulary(target, tmp_path, seed):
    """Ids of 19 bits in the prompt, and drawn: by all that the sampler can do."""
    chip = Chip(target, get_board("virtual"), str(random_model(
        tmp_path / "m", seed=seed, hidden=32, layers=1, vocab=LARGE)), packing="raw")
    rng = np.random.default_rng(seed)
    last = [LARGE - 1, 1 << 18, (1 << 18) - 1, 1 << 17]
    prompt = [*words(rng, chip, 5), *last, *rng.integers(1 << 18, LARGE, 3).tolist()]
    logits = chip.golden.forward(prompt)
    draw = next(draw for n in itertools.count() if sample(
        logits, draw := sampling(temperature=9, seed=n), len(prompt)) >= 1 << 18)
    assert chip.compare(prompt, draw, max_new=1)[0] >= 1 << 18
    chip.compare(prompt, sampling(temperature=9, top_k=20, top_p=0.99, seed=seed), max_new=1)


class Behind(Llama):
    """A Llama that norms all queries, all keys (as OLMo 2), and what its blocks give (as Gemma)."""
    name, classes = "behind", ("BehindForCausalLM",)
    names = {**Llama.names, **{
        f"layers.{{}}.{norm}": f"model.layers.{{}}.{norm}"
        for norm in ("q_norm", "k_norm", "norm1_behind", "norm2_behind")}}

    def from_config(self, config):
        return replace(super().from_config(config), qk_norm=PROJECTION, behind=True)


#: Norms of heads that are padded; of queries, keys and blocks.
NORMED = {"heads": dict(family="qwen3", hidden=54, heads=6, kv_heads=2, head_dim=24, ffn=70),
          "blocks": dict(hidden=70, heads=3, kv_heads=1, head_dim=24, ffn=54, attention_bias=True,
                         model_type=Behind.name, architectures=list(Behind.classes))}


@pytest.mark.parametrize("board", ["virtual", "ulx3s_25f"])
@pytest.mark.parametrize("case", NORMED)
def test_norms(monkeypatch, tmp_path, seed, case, board):
    """In several passes and in decode; of a vector unit of each kind."""
    monkeypatch.setitem(families(), Behind.name, Behind())
    folder = random_model(tmp_path / "m", seed=seed, vocab=258, context=160, **NORMED[case])
    tensors = load_file(folder / "model.safetensors")
    if case == "blocks":
        for matrix, name in (("self_attn.q_proj", "q_norm"), ("self_attn.k_proj", "k_norm"),
                             ("self_attn.o_proj", "norm1_behind"),
                             ("mlp.down_proj", "norm2_behind")):
            tensors |= norms(tensors, matrix, name)
        save_file(tensors, folder / "model.safetensors")
    with closing(SimTarget(get_board(board))) as sim:
        chip = Chip(sim, get_board(board), str(folder))
        image, rng = chip.source.image, np.random.default_rng(seed)
        assert sum(i["beside"] for i in image.instructions) == {"heads": 32, "blocks": 16}[case]
        for length in (1, 5, 140):
            chip.compare(words(rng, chip, length), max_new=3)
        predicted = predict(image, get_board(board), prompt=length, generate=3)
        assert abs(predicted.cycles / sim.counters()["cycles"] - 1) < 0.01


class Learned(Llama):
    """A Llama whose embedding has rows of positions added, the first behind two others (as OPT's),
    and which rotates only in its first layer."""
    name, classes = "learned", ("LearnedForCausalLM",)
    names = {**Llama.names, "positions": "model.embed_positions"}

    def from_config(self, config):
        made = super().from_config(config)
        return replace(made, positions=2, unrotated=range(1, made.layers))


def rows_to_activations(chip, sim, tokens):
    """The head of a program reads rows of positions, saturated, in place of the last norm's output:
    an EMBED behind that norm puts them there."""
    image, driver = chip.source.image, sim.driver
    regs, program = dict(image.model_regs), []
    rows = next(i for i in image.instructions if i["add"])
    for pc, i in enumerate(image.instructions):
        if pc == image.model_regs["decode_pc"]:
            regs["decode_pc"] = len(program)
        if i["sink"] == Sink.LOGIT:
            norm = program[-1]
            assert norm["op"] == Op.NORM
            program.append(Instruction(**dict(rows) | dict(
                add=0, stats=0, sink=Sink.ACT, wide=1, y=norm["y"])))
        program.append(i)
    core = GoldenCore(chip.source.board.config, program=program, model=regs, memory=image.memory,
                      memory_bytes=image.needs["memory_bytes"])
    want = list(core.generate(tokens, max_new=3))
    driver.load([], program=program, model=regs)
    events = list(driver.run(tokens, Sampling(), max_new=3, stop_ids=()))
    assert [(e.token, e.crc) for e in events] == [
        (token, logits_crc(logits)) for token, logits in want]
    assert core.counters.items() <= sim.counters().items() and core.counters["saturations"] > 0
    qm, steps = chip.source.quantised, chip.source.quantised.plan
    table, head = (qm.numbers[m.name] for m in (steps.embedding.positions, steps.head.matrix))
    at = steps.embedding.op.offset + len(tokens) - 1
    x = saturate(requant(table.codes[at].astype(np.int64), table.mant[at], table.shift[at], 0), 16)
    np.testing.assert_array_equal(want[0][1], requant(
        head.codes.astype(np.int64) @ x, head.mant, head.shift, 0))
    driver.load([], program=image.program, model=image.model_regs)


@pytest.mark.parametrize("name", ["virtual", "ulx3s_25f"])
def test_learned_positions(request, monkeypatch, tmp_path, seed, name):
    """An EMBED that adds, in several passes and in decode; without its rows it is another model."""
    monkeypatch.setitem(families(), Learned.name, Learned())
    rng = np.random.default_rng(seed)
    folder = random_model(tmp_path / "m", seed=seed, hidden=54, heads=3, kv_heads=1, head_dim=24,
                          ffn=70, vocab=258, context=160, model_type=Learned.name,
                          architectures=list(Learned.classes))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_positions.weight"] = rng.normal(size=(162, 54)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    with closing(SimTarget(get_board(name))) as sim:
        chip = Chip(sim, get_board(name), str(folder))
        embeds = [i for i in chip.source.image.instructions if i["op"] == Op.EMBED]
        assert [(i["src"], i["add"]) for i in embeds] == [(Src.TOKEN, 0), (Src.TABLE, 1)] * 2
        for length in (1, 5, 140):
            chip.compare(words(rng, chip, length), max_new=3)
        predicted = predict(chip.source.image, get_board(name), prompt=length, generate=3)
        assert abs(predicted.cycles / sim.counters()["cycles"] - 1) < 0.01
        rows_to_activations(chip, sim, words(rng, chip, 140))
        same = [7] * 9                      # tokens that only their positions tell apart
        logits = chip.golden.forward(same, want="all")
        assert len(np.unique(logits[1:], axis=0)) == 8


def test_cache_is_kept_between_runs(odd, seed):
    """max_new = 0 fills the cache; a second run goes on from there as if it were one."""
    rng = np.random.default_rng(seed)
    prompt, driver = words(rng, odd, 20), odd.target.driver
    list(driver.run(prompt[:13], Sampling(), max_new=0, stop_ids=()))
    got = [e.token for e in driver.run(prompt[13:], Sampling(), max_new=4, stop_ids=(),
                                       start_pos=13)]
    odd.golden.forget()
    want = [token for token, _ in odd.golden.generate(prompt, max_new=4, stop_ids=())]
    assert got == want


@pytest.mark.parametrize("shape", [
    dict(ODD, sliding_window=20, family="mistral", attention_bias=False, mlp_bias=False),
    dict(hidden=64, layers=2, heads=10, kv_heads=2, head_dim=16, ffn=96, vocab=258, context=192),
    dict(hidden=54, layers=2, heads=2, kv_heads=1, head_dim=240, ffn=70, vocab=258, context=192),
    dict(hidden=54, layers=2, heads=6, kv_heads=2, head_dim=24, ffn=70, vocab=258, context=192,
         family="qwen3")],
    ids=["odd, window", "more heads than lanes", "heads of 256", "norms of heads"])
def test_batches(target, tmp_path, seed, shape):
    """Tokens, logits, caches and words of memory of sequences in one pass after the other: in the
    first as of one sequence after the other, then as of the golden model. Runs of one sequence in
    between know nothing of it."""
    rng = np.random.default_rng(seed)
    chip = Chip(target, get_board("virtual"), str(random_model(tmp_path / "m", seed=seed, **shape)))
    image, config = chip.source.image, get_board("virtual").config
    driver, sim = target.driver, target.sim
    assert image.facts["batch"] == config.P
    for count, passes in ((config.P, 3), (1, 1), (int(rng.integers(1, config.P + 1)), 2)):
        alone, logits, core, tokens, places = alone_and_together(image, config, seed, count, 180)
        sim.memory[:len(core.memory)] = core.memory
        how = random.Random(seed + count).choice([dict(), dict(temperature=1.5)])
        draws = [sampling(**how, seed=int(rng.choice([seed, 5, 6]))) for _ in tokens]
        want = list(core.batches(tokens, places, draws, max_new=passes))
        sim.drop_logits()
        events = list(driver.run_batch(tokens, places, draws, max_new=passes))
        assert driver.host_messages == 0
        found = sim.take_logits(image.shape["vocab"])
        np.testing.assert_array_equal(found[:count], logits)
        np.testing.assert_array_equal(found, [row for drawn in want for _, row in drawn])
        assert [(e.token, e.crc, e.reason) for e in events] == [
            (token, logits_crc(row), 2 * (k == passes * count - 1))
            for k, (token, row) in enumerate(itertools.chain(*want))]
        np.testing.assert_array_equal(sim.memory[:len(core.memory)], core.memory)
        if passes == 1:
            np.testing.assert_array_equal(core.memory, alone.memory)
        assert core.counters.items() <= target.counters().items()
        # It ends with the pass that draws a stop id, or when it is asked to.
        some = list(driver.run_batch(tokens, places, draws, max_new=passes,
                                     stop_ids=[want[0][-1][0]]))
        assert [e.token for e in some] == [token for token, _ in want[0]]
        run = driver.run_batch(tokens, places, draws, max_new=100)
        some = [next(run)]
        sim.run(int(rng.integers(30_000)))
        driver.end()
        some += run
        assert [e.token for e in some][:passes * count] == [
            token for token, _ in itertools.chain(*want)][:len(some)]
        chip.compare(words(rng, chip, 9), max_new=2)


def test_sequences_in_turn(odd, seed):
    """Prompts, a chunk of each in turn, and what follows, each with a cache of its own."""
    rng, image, driver = np.random.default_rng(seed), odd.source.image, odd.target.driver
    room = image.needs["memory_bytes"] - len(image.memory)
    prompts = [words(rng, odd, 11) for _ in range(3)]
    cuts = [(0, 5), (5, 6), (6, 11)]
    for start, end in cuts:
        for k, prompt in enumerate(prompts):
            list(driver.run(prompt[start:end], max_new=0, start_pos=start,
                            base=k * room // driver.info.config.W))
    for k, prompt in enumerate(prompts):
        events = list(driver.run(prompt[-1:], max_new=4, start_pos=10,
                                 base=k * room // driver.info.config.W))
        want = list(odd.golden.generate(prompt, max_new=4, stop_ids=()))
        odd.golden.forget()
        assert [e.crc for e in events] == [logits_crc(row) for _, row in want]


def test_drafts(stories):
    """Greedy and drawn, always and as long as they pay: tokens, logits and CRCs are those of a run
    without drafts, drafts and passes those of the golden model, cycles those of the cycle model."""
    target, core, image = stories.target, stories.core, stories.source.image
    prompt = stories.source.tokenizer.encode("Once upon a time")
    for draw, price in ((Sampling(), 0), (sampling(temperature=0.8, seed=3), 50)):
        plain = list(target.generate(prompt, draw, max_new=20, stop_ids=()))
        most = target.board.config.turns - 1
        events = list(target.generate(prompt, draw, max_new=20, stop_ids=(),
                                      drafts=Drafting(most=most, price=price)))
        assert [(e.token, e.crc) for e in events] == [(e.token, e.crc) for e in plain]
        for event, want in zip(events, plain, strict=True):
            np.testing.assert_array_equal(event.logits, want.logits)
        assert [token for token, _ in core.generate(
            prompt, draw, max_new=20, draft_most=most, draft_price=price)] == [
                e.token for e in plain]
        found = target.counters()
        assert core.counters.items() <= found.items() and found["accepted"] > 5
        text = [*prompt, *(e.token for e in plain)]
        passes = list(turns(
            prompt, lambda position, drafts, text=text: text[position + 1:],
            partial(draft, table=image.draft_entries, least=image.draft_least),
            most=most, price=price, max_new=20, limit=image.context))
        predicted = predict(image, target.board, prompt=len(prompt), generate=20, turns=passes)
        print(predicted.cycles, found["cycles"])
        assert abs(found["cycles"] / predicted.cycles - 1) < 0.01
    stories.compare(prompt, max_new=3)


def test_drafts_that_are_aborted(stories, seed):
    """Anywhere in a token, the drafter's work included; the board is ready for another run."""
    rng = np.random.default_rng(seed)
    prompt = stories.source.tokenizer.encode("Once upon a time")
    for _ in range(4):
        run = stories.target.generate(prompt, Sampling(), max_new=50, stop_ids=(),
                                      drafts=Drafting(most=3))
        for _ in range(int(rng.integers(1, 4))):
            next(run)
        stories.target.sim.run(int(rng.choice([rng.integers(1, 300), rng.integers(1, 60_000)])))
        run.close()
    stories.compare(prompt, max_new=3)


def test_no_top_k_of_several_tokens(odd):
    registers = {f.name: 0 for f in RUN_REGS} | {
        "prompt": 4, "max_new": 1, "draft_most": 1, "top_k": 2}
    with pytest.raises(BoardError, match=re.escape(SENTENCES[Error.BAD_SAMPLING])):
        list(odd.target.driver._run_events([2] * 4, registers))


@pytest.mark.parametrize("change", [
    {"prompt": 5}, {"start_pos": 1, "prompt": 1}, {"draft_most": 1}])
def test_batches_that_cannot_be(odd, change):
    """More tokens than lanes, anywhere but at 0, with drafts."""
    registers = {f.name: 0 for f in RUN_REGS} | {"prompt": 4, "max_new": 1, "batch": 1} | change
    with pytest.raises(BoardError, match=re.escape(SENTENCES[Error.BAD_RUN])):
        list(odd.target.driver._run_events([2] * registers["prompt"], registers))


def test_conversation(odd, seed):
    """Turn by turn only what is new is sent; tokens and logits are those of a run from scratch."""
    rng = np.random.default_rng(seed)
    said = []
    for new, count, stop in ((9, 4, True), (1, 5, False), (30, 3, False), (66, 2, True)):
        before, said = len(said), said + words(rng, odd, new)
        odd.golden.forget()
        want = list(odd.golden.generate(said, max_new=count, stop_ids=()))
        events = list(odd.target.generate(
            said, Sampling(), max_new=count + stop, reuse=True,
            stop_ids=(want[-1][0],) if stop else ()))
        for event, (token, logits) in zip(events, want):
            assert event.token == token
            np.testing.assert_array_equal(event.logits, logits)
        assert odd.target.cached == max(before - 1, 0)
        said += [e.token for e in events]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_filled_cache(odd, tmp_path, seed, compiled):
    """Through the back door come the bytes that a real prefill stores, of a model and of an image;
    a run behind them gives the tokens and logits of one from scratch."""
    rng = np.random.default_rng(seed)
    target, image, source = odd.target, odd.source.image, odd.source
    if compiled:
        image.save(tmp_path / "odd.mlk")
        source = Source(str(tmp_path / "odd.mlk"), source.board)
        target.load(source)
    text, memory = words(rng, odd, 180), target.sim.memory
    whole = slice(len(image.memory), image.needs["memory_bytes"])
    for position in (1, int(rng.integers(2, 150)), 170, int(rng.integers(2, 150))):
        tokens = text[:position + int(rng.integers(1, 9))]
        events = list(target.generate(tokens, Sampling(), max_new=3, stop_ids=()))
        stored = [memory[at:at + position * width].copy() for at, width in image.caches]
        memory[whole] = rng.integers(0, 256, whole.stop - whole.start, np.uint8)
        target.fill(text[:position])
        for (at, _), want in zip(image.caches, stored, strict=True):
            np.testing.assert_array_equal(memory[at:at + len(want)], want)
        again = list(target.generate(tokens, Sampling(), max_new=3, stop_ids=(), reuse=True))
        assert target.cached == position
        assert [(e.token, e.crc) for e in again] == [(e.token, e.crc) for e in events]
    other = [*text[:5], *words(rng, odd, 30)]       # what it knew from there on is of no use
    target.fill(other)
    again = list(target.generate([*other, 7], Sampling(), max_new=2, stop_ids=(), reuse=True))
    assert target.cached == len(other)
    odd.golden.forget()
    want = list(odd.golden.generate([*other, 7], max_new=2, stop_ids=()))
    for event, (token, logits) in zip(again, want, strict=True):
        np.testing.assert_array_equal(event.logits, logits)
        assert event.token == token


@pytest.mark.parametrize("position", [1, 130, 500])
def test_decode_at_a_position_is_predicted(stories, position):
    """In one tile of keys and in several: a bench's cycles, to a hundredth."""
    board, image = get_board("virtual"), stories.source.image
    [test] = bench.plan(image, prompts=[], generates=[3], positions=[position])
    [found] = bench.run(stories.target, image, board, [test]).values()
    assert found.position == position
    assert abs(found.cycles / found.predicted_cycles - 1) < 0.01


def test_windows_are_predicted(target, tmp_path, seed):
    """Of 20 positions in one layer of two, of 128 in a trained model: logits, cycles to a
    hundredth, and what is read; prompts and decode, longer than the window."""
    board = get_board("virtual")
    mixed = random_model(
        tmp_path / "mixed", seed=seed, **ODD | dict(attention_bias=False, mlp_bias=False),
        family="mistral", sliding_window=20, layer_types=["sliding_attention", "full_attention"])
    for folder, length in ((mixed, 150), (reference_model("stories-mistral", tmp_path / "s"), 200)):
        chip = Chip(target, board, str(folder))
        chip.compare(words(np.random.default_rng(seed), chip, length), max_new=3)
        tests = [test for position in (0, 170) for test in bench.plan(
            chip.source.image, prompts=[] if position else [length], generates=[3],
            positions=[position])]
        for found in bench.run(target, chip.source.image, board, tests).values():
            assert abs(found.cycles / found.predicted_cycles - 1) < 0.01


def test_abort_leaves_the_board_ready(stories, seed):
    rng = np.random.default_rng(seed)
    prompt = stories.source.tokenizer.encode("Once upon a time")
    for _ in range(3):
        run = stories.target.generate(prompt, Sampling(), max_new=50, stop_ids=())
        for _ in range(int(rng.integers(1, 3))):
            next(run)
        stories.target.sim.run(int(rng.integers(1, 60_000)))        # somewhere in a token
        run.close()
    # What was cached up to then still serves.
    again = list(stories.target.generate(prompt, Sampling(), max_new=3, stop_ids=(), reuse=True))
    assert stories.target.cached == len(prompt) - 1
    assert [e.token for e in again] == stories.compare(prompt, max_new=3)


def test_errors_reach_the_host(odd):
    driver = odd.target.driver
    context = odd.target.driver.info.config.context
    with pytest.raises((BoardError, ValueError)):
        list(driver.run([0] * (context + 1), Sampling(), max_new=1, stop_ids=()))
    with pytest.raises(BoardError, match=r"^the prompt holds the token 300, and the vocabulary of "
                                         r"the loaded model is 0\.\.299; use the tokenizer"):
        list(driver.run([0, 299, 300], Sampling(), max_new=1, stop_ids=()))
    odd.compare([0, 299], max_new=1)


@pytest.mark.parametrize("error", FAULTS)
def test_faults_leave_the_board_ready(odd, error):
    """Each fault that is promised, from where it arises to the sentence, and a good run after."""
    driver, image = odd.target.driver, odd.source.image
    regs, program = dict(image.model_regs), [Instruction(**i) for i in image.instructions]
    listed = range(regs["decode_pc"], len(program))
    if error == Error.BAD_INSTRUCTION:
        program[listed[0]]["op"] = 15
    elif error == Error.PROGRAM_END:
        regs["decode_pc"] = 2**16 - 1
    elif error == Error.BAD_DATA:           # no such mode
        program[next(i for i in listed if program[i]["src"] == Src.STREAM)]["mode"] = 7
    driver.load([], program=program, model=regs)
    if error == Error.BAD_TOKEN:
        driver.write_registers({"vocab": 7})        # unknown to the driver, which would refuse
    with pytest.raises(BoardError, match="^" + re.escape(SENTENCES[error])):
        list(driver.run([7], Sampling(), max_new=1, stop_ids=()))
    assert driver.status().error == error
    if error == Error.BAD_TOKEN:                    # in the prefill list as well
        with pytest.raises(BoardError, match="^" + re.escape(SENTENCES[error])):
            list(driver.run([0, 1, 2, 6, 5, 4, 9, 3], Sampling(), max_new=1, stop_ids=()))
    driver.load([], program=image.program, model=image.model_regs)
    odd.compare([0, 5], max_new=2)


@pytest.mark.parametrize("all_tokens", [False, True])
def test_saturations(target, tmp_path, seed, all_tokens):
    """Queries that are far too large, and a token whose values in the first layer are.

    Calibration never meets that token: no text has it.
    """
    folder = random_model(tmp_path / "loud", seed=seed, **ODD)
    path, rare = folder / "model.safetensors", ODD["vocab"] - 1
    tensors = {name: tensor * np.float32(30 if "q_proj" in name else 1)
               for name, tensor in load_file(path).items()}
    tensors["model.embed_tokens.weight"][:, 0] = 0          # channel 0 is the token's own
    tensors["model.embed_tokens.weight"][rare] = np.eye(1, ODD["hidden"])
    tensors["model.layers.0.input_layernorm.weight"][0] = 1
    tensors["model.layers.0.self_attn.v_proj.weight"][:, 0] = 5
    save_file(tensors, path)
    chip = Chip(target, get_board("virtual"), str(folder), all_tokens=all_tokens)
    rng = np.random.default_rng(seed)
    for length in (1, 7, 70):               # blocks that are not full, several passes
        tokens = [*words(rng, chip, length), rare]
        chip.compare(tokens, max_new=3)
    chip.compare(tokens, max_new=1)
    least = target.counters()
    assert least["saturations"] >= ODD["kv_heads"] * ODD["head_dim"]    # the token's values
    assert least["score_saturations"] > 0
    chip.compare(tokens, max_new=1)         # each run counts anew
    for name in ("saturations", "score_saturations"):
        assert target.counters()[name] == least[name]
    # An answer that was broken off has counts as well, those of what was done.
    run = target.generate(tokens, Sampling(), max_new=50, stop_ids=())
    next(run)
    run.close()
    for name in ("saturations", "score_saturations"):
        assert target.counters()[name] >= least[name]


def test_image_through_frames(odd):
    """Loading frame by frame puts the same bytes there as the back door, says the chip's CRC."""
    image, target = odd.source.image, odd.target
    target.sim.memory[:len(image.memory)] = 0x5A
    target.driver.load([(0, image.memory)], program=image.program, model=image.model_regs)
    assert target.sim.memory[:len(image.memory)].tobytes() == image.memory
    assert target.driver.verify_memory(0, image.memory) == []
    target.sim.memory[1000] ^= 1
    assert target.driver.verify_memory(0, image.memory) == [0]
    target.sim.memory[1000] ^= 1
    odd.compare([0, 9, 8], max_new=2)


def test_ulx3s(ulx3s, tmp_path, seed):
    """The flagship's own Config and memory timing: beats of 16 weights, words of 4 bytes."""
    rng = np.random.default_rng(seed)
    chip = Chip(ulx3s, get_board("ulx3s_85f"), "stories")
    prompt = chip.source.tokenizer.encode("Tom was sad because")
    chip.compare(prompt, max_new=2)
    chip = Chip(ulx3s, get_board("ulx3s_85f"),
                str(random_model(tmp_path / "odd", seed=seed, **ODD)))
    for length in (17, 140):
        chip.compare(words(rng, chip, length), sampling(temperature=0.7, seed=3), max_new=2)


def test_sleep_changes_nothing(tmp_path, seed):
    """With and without gated clocks: the same tokens, logits and counters, to the cycle. Values of
    a head are more than the accumulators hold."""
    board = get_board("ulx3s_45f")
    model = str(random_model(tmp_path / "odd", seed=seed, **ODD | dict(
        heads=3, kv_heads=1, head_dim=80)))
    seen = []
    for sleep in (True, False):
        rng = np.random.default_rng(seed)
        with closing(SimTarget(board, through_link=True, sleep=sleep)) as sim:
            chip = Chip(sim, board, model)
            for length, draw in ((1, Sampling()), (9, sampling(temperature=0.9, seed=4)),
                                 (40, sampling(temperature=0.9, top_k=7, top_p=0.8, seed=5))):
                tokens = chip.compare(words(rng, chip, length), draw, max_new=3)
                seen.append((sleep, length, tokens, sim.counters()))
            run = sim.generate(words(rng, chip, 7), Sampling(), max_new=50, stop_ids=())
            next(run)
            sim.sim.run(int(rng.integers(1, 20_000)))       # abort somewhere in a token
            run.close()
            seen.append((sleep, "after", chip.compare([0, 5], max_new=2), sim.counters()))
    half = len(seen) // 2
    assert [x[1:] for x in seen[:half]] == [x[1:] for x in seen[half:]]


#: Whose cycles add up to those of a run.
CAUSES = ("array_active", "stall_memory", "stall_decoder", "stall_engine", "stall_vector",
          "stall_link")


def test_counters(stories):
    """Cycles by cause add up to the cycles of the run, and words to those of the weight stream."""
    prompt = stories.source.tokenizer.encode("Once upon a time")
    stories.compare(prompt, max_new=2)
    c = stories.target.counters()
    assert abs(sum(c[x] for x in CAUSES) - c["cycles"]) <= 0.001 * c["cycles"]
    assert c["passes"] == 2
    image = stories.source.image
    useful = sum(image.useful_bytes(pos0=pos0, n=n, final=True) for pos0, n in ((0, 5), (5, 1)))
    read = c["bus_read_words"] * 16
    assert useful * 0.97 <= read <= useful * 1.03


def test_a_host_that_does_not_listen_is_counted(odd):
    """The ring of events is full and the sequencer waits: the link's cycles, and nobody else's."""
    target, want = odd.target, odd.compare([0, 5], max_new=EVENT_RING + 6)
    cycles = target.counters()["cycles"]
    run = target.generate([0, 5], Sampling(), max_new=len(want), stop_ids=())
    tokens = [next(run).token]
    target.sim.run(cycles + cycles // 2)
    assert tokens + [event.token for event in run] == want
    c = target.counters()
    assert c["stall_link"] > 0.3 * cycles
    assert abs(sum(c[x] for x in CAUSES) - c["cycles"]) <= 0.001 * c["cycles"]
