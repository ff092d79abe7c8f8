"""Layout and program, executed by the golden core, against the golden model; limits."""
from dataclasses import replace

import numpy as np
import pytest
from gguf_files import write_gguf
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.layout import act_map, tile_linear
from meadowlark.draft.table import DraftTable
from meadowlark.errors import UserError
from meadowlark.models.graph import Graph, Rope
from meadowlark.models.registry import load_model
from meadowlark.models.rewrite import cut_ffn
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.maximum import unified
from meadowlark.quant.quantise import quantise
from meadowlark.quant.shapes import Shapes
from meadowlark.run.targets import golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.fetch_golden import ProgramError
from meadowlark_hdl.draft.table_lookup_golden import EMPTY
from meadowlark_hdl.isa import NO_WINDOW, Header, Mode, Op, Sink, Src, cap_of
from random_model import outlined, random_model, random_texts

NARROW = Config(W=8, P=4, bus_bytes=2, act_words=128, residual_values=4096, score_depth=128,
                rope_pairs=512, tile_beats=64, tile_rows=16, fifo_words=256, burst_words=64,
                context=128)
WIDE = Config(W=4, P=6, bus_bytes=4, score_depth=256, tile_beats=64, tile_rows=32, context=128)
#: One resident block, decode's queries in turn.
TIGHT = NARROW.replace(act_words=12)
#: Shapes whose keys have fewer words than a power of two.
LOOSE = "heads of 20", "latent"
SHAPES = {
    "plain": {},
    # nothing is a multiple of anything, biases everywhere, an odd vocabulary
    "odd": dict(hidden=42, heads=3, kv_heads=1, head_dim=12, ffn=51, vocab=77, tied=False,
                attention_bias=True, mlp_bias=True),
    "group": dict(heads=8, kv_heads=1, head_dim=16, ffn=64),    # more heads a KV head than lanes
    "one": dict(heads=1, kv_heads=1, head_dim=32, layers=1),
    "slices": dict(ffn=72, mlp_bias=True),                      # of the FFN: 32, 32, 8
    "unrotated": dict(heads=6, head_dim=8, attention_bias=True),            # the second layer
    "nothing rotated": dict(heads=6, head_dim=12),
    "window": dict(family="mistral", sliding_window=3,
                   layer_types=["sliding_attention", "full_attention"]),
    "heads of 20": dict(head_dim=20),
    "latent": dict(family="deepseek_v2", heads=2, kv_lora_rank=24),
}


def board(config, memory_bytes=256 << 20):
    b = get_board("virtual")
    return replace(b, config=config, memory=replace(b.memory, size_bytes=memory_bytes))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Quantised models by name, made when asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder = random_model(tmp_path_factory.mktemp(name), seed=1, **SHAPES[name])
            model = load_model(folder)
            if name == "slices":
                model = cut_ffn(model, 32)
            for layer in {"unrotated": (1,), "nothing rotated": (0, 1)}.get(name, ()):
                model = unrotated(model, layer)
            made[name] = quantise(model, random_texts(model, seed=2))
        return made[name]
    return get


def unrotated(model, layer):
    """The model without RoPE in a layer."""
    gone = {op.out: op.x for op in model.graph.of(Rope) if op.out.startswith(f"layers.{layer}.")}
    return replace(model, graph=Graph(
        tuple(replace(op, **{name: gone.get(getattr(op, name), getattr(op, name))
                             for name in op.edges})
              for op in model.graph.operators if op.out not in gone),
        model.graph.shapes, model.graph.tables))


@pytest.mark.parametrize("config, shape", [      # TIGHT is made for one shape
    *((c, shape) for c in (NARROW, WIDE) for shape in SHAPES), (TIGHT, "plain"),
    *((c.replace(tight_keys=True), shape) for c in (NARROW, WIDE) for shape in LOOSE)])
@pytest.mark.parametrize("all_tokens", [False, True])
def test_program_gives_golden_logits(models, shape, config, all_tokens, seed):
    qm = models(shape)
    image = compile_model(qm, board(config), all_tokens=all_tokens)
    chip, golden = golden_core(image, config, seed), GoldenModel(qm)
    tokens = np.random.default_rng(seed).integers(0, qm.vocab, 41).tolist()
    for n in (41, 1, 2):                # several passes and blocks; the decode list; one block
        want = golden.forward(tokens[:n])
        np.testing.assert_array_equal(chip.forward(tokens[:n]), want)
        for position in (n, n + 1):
            token = int(want.argmax())
            want = golden.forward([token], position)
            np.testing.assert_array_equal(chip.forward([token], position), want)
    # a prompt that goes on from a cache
    np.testing.assert_array_equal(chip.forward(tokens[:9], 4), golden.forward(tokens[:9], 4))
    if config is TIGHT:
        assert image.model_regs["blocks"] == 1


@pytest.mark.parametrize("config", [NARROW, WIDE])
@pytest.mark.parametrize("shape", LOOSE)
def test_keys_have_no_more_words_than_values(models, config, shape, seed):
    """With tight_keys: bytes of the cache, and those that a token reads of each key before it."""
    qm, W = models(shape), config.W
    (op, *_), plan = (step.op for step in qm.plan.attends), qm.plan
    key = -(-op.head_dim // W) * W if shape != "latent" else 16 + 32
    assert key < plan.key_pad

    def measured(config):
        image = compile_model(qm, board(config))
        chip, read = golden_core(image, config, seed), []
        for position in (20, 21):
            chip.clear()
            chip.forward([3], position)
            read.append(chip.counters["bus_read_words"] * config.bus_bytes)
        return image, [width for _, width in image.caches], read[1] - read[0]
    heads = len(plan.attends) * op.kv_heads
    for has, width in ((config, plan.key_pad), (config.replace(tight_keys=True), key)):
        image, widths, a_key = measured(has)
        assert a_key == heads * (width + plan.value_pad)
        assert sorted(widths) == sorted(heads * [width] + heads * [plan.value_pad])
        assert ("tight_keys" in image.extras) == has.tight_keys
    with pytest.raises(UserError, match="any number of words, which the board virtual cannot"):
        image.check_board(board(config))
    with pytest.raises(ProgramError, match="a STORE of"):
        golden_core(image, config, seed).forward([3])


def test_soft_caps(tmp_path, seed):
    """The program gives what the model in integers does, with a small cap of each kind and with
    one alone; a core without them is told by name, and images without them know of none."""
    has, has_not = (board(NARROW.replace(softcap=on)) for on in (True, False))
    tokens = np.random.default_rng(seed).integers(0, 128, 20).tolist()
    for scores, logits in ((5.0, 4.0), (3.0, None), (None, 2.5), (None, None)):
        model = load_model(random_model(
            tmp_path, seed=seed, family="gemma2", attn_logit_softcapping=scores,
            final_logit_softcapping=logits, query_pre_attn_scalar=8, context=64))
        qm = quantise(model, random_texts(model, seed=2))
        image, golden = compile_model(qm, has), GoldenModel(qm)
        chip = golden_core(image, has.config, seed)
        want = golden.forward(tokens)
        np.testing.assert_array_equal(chip.forward(tokens), want)
        np.testing.assert_array_equal(chip.forward([7], 20), golden.forward([7], 20))
        assert ("softcap" in image.extras) == bool(scores or logits)
        for op, cap in ((Op.QK, scores), (Op.LINEAR, logits)):
            found = [i for i in image.instructions if i["op"] == op and cap_of(i)]
            assert bool(found) == bool(cap)
        if not image.extras:
            assert image == compile_model(qm, has_not)
            continue
        if logits:
            assert np.abs(want).max() <= logits * 4096
        if scores:
            with pytest.raises(UserError, match="have a soft cap, and a unified maximum is"):
                unified(qm, [tokens], window=16)
        kinds = bool(scores) + bool(logits)
        with pytest.raises(UserError, match=f"soft caps {kinds} kinds, at most 0 .softcap."):
            compile_model(qm, has_not)
        with pytest.raises(UserError, match="has soft caps of .* the board virtual cannot; comp"):
            image.check_board(has_not)
        with pytest.raises(ProgramError, match="a soft cap on a core without softcap"):
            golden_core(image, has_not.config, seed).forward(tokens)
    # beyond the formats of what is capped
    for values, what in ((dict(attn_logit_softcapping=89.0), "attention: a soft cap of 89"),
                         (dict(final_logit_softcapping=32.0), "logits: a soft cap of 32")):
        model = load_model(random_model(tmp_path, seed=seed, family="gemma2", **values))
        with pytest.raises(UserError, match=f"{what} does not fit the format"):
            quantise(model, random_texts(model, seed=2))


def test_lists_use_the_stream_alike(models):
    for shape in SHAPES:
        image = compile_model(models(shape), board(NARROW))
        program, split = image.instructions, image.model_regs["decode_pc"]

        def tiles(code):
            return [(k < i["tiles"] - 1 and i["chunks"] or i["last_chunks"], i["rows"])
                    for i in code if i["src"] == Src.STREAM for k in range(i["tiles"])]
        prefill, decode = tiles(program[:split]), tiles(program[split:])
        assert prefill == decode
        tables = min(i["addr"] for i in program if i["src"] in (Src.TABLE, Src.TOKEN))
        assert 0 <= tables - sum(chunks for chunks, _ in prefill) < 8


def test_stores_wait_for_nothing_they_need(models):
    """Keys and values are stored before those of the next layer may overwrite them in scratch
    memory: attention waits for them, and stands between."""
    image = compile_model(models("plain"), board(NARROW))
    ops = [Op(i["op"]) for i in image.instructions]
    keys = [at for at, i in enumerate(image.instructions) if i["op"] == Op.LINEAR
            and i["sink"] == Sink.SCRATCH and i["y"] == 0]
    assert len(keys) == 2 * image.shape["layers"]
    for at in keys:
        before = ops[:at][::-1]
        assert Op.STORE not in before or before.index(Op.QK) < before.index(Op.STORE)
        before = ops[at:]
        assert before.index(Op.STORE) < before.index(Op.QK)


def test_keys_and_values_in_scratch_memory(models):
    """Those of all KV heads side by side, keys first. In a smaller memory values take the place of
    keys once these are stored; then a pass is as short as the memory asks for."""
    qm = models("plain")

    def compiled(config):
        image = compile_model(qm, board(config))
        program, lists = image.instructions, 2 * image.shape["layers"]
        kv_heads = image.shape["kv_heads"]
        stores = [i["x"] for i in program if i["op"] == Op.STORE]
        assert stores[2 * kv_heads:] == stores[:-2 * kv_heads]
        assert len(stores) == 2 * kv_heads * lists
        waits = [i["sink"] for i in program if i["wait"]]
        assert waits in ([], [Sink.SCRATCH] * lists)
        assert image.needs["scratch_bytes"] == (
            image.model_regs["blocks"] * config.P * image.model_regs["token_words"] * config.W)
        assert image.needs["scratch_bytes"] <= config.scratch_bytes
        np.testing.assert_array_equal(golden_core(image, config).forward(tokens), logits)
        return image.model_regs, stores[:2 * kv_heads], bool(waits)
    tokens = list(range(3, 80))
    logits = GoldenModel(qm).forward(tokens)
    row = qm.head_pad // 8
    many = NARROW.replace(act_words=512, residual_values=16384, rope_pairs=2048)
    regs, at, waits = compiled(many.replace(scratch_bytes=1 << 16))
    kv_heads = len(at) // 2
    assert at == [k * row for k in range(2 * kv_heads)] and not waits
    assert regs["token_words"] == 2 * kv_heads * row
    need = 1 << (regs["blocks"] * 4 * regs["token_words"] * 8 - 1).bit_length()
    close, at, waits = compiled(many.replace(scratch_bytes=need // 2))
    assert at == [k * row for k in range(kv_heads)] * 2 and waits
    assert close["token_words"] == kv_heads * row and close["blocks"] <= regs["blocks"]
    short, _, waits = compiled(many.replace(scratch_bytes=need // 4))
    assert waits and short["blocks"] < regs["blocks"]


@pytest.mark.parametrize("change", [{}, dict(hidden=64), dict(heads=2), dict(ffn=64)])
def test_map_of_a_llama(change):
    """Queries behind the input; behind them what attention gives; the FFN over all of it."""
    steps = Shapes.of_model(outlined(**change)).plan
    hidden, head, ffn = steps.graph.hidden // 8, 4, change.get("ffn", 384) // 8
    op = steps.attends[0].op
    at, k = act_map(steps, 8).at, hidden + head
    for i in range(6):
        assert [at[f"layers.{i}.{name}"] for name in ("norm1.x", "q", "attention", "norm2.x",
                                                      "h")] == [0, hidden, k, 0, hidden]
    assert act_map(steps, 8).block_words == max(hidden + ffn, k + op.heads * head)
    if not change:
        assert act_map(steps, 8).block_words == 64      # what the ULX3S holds


def test_an_input_lives_as_long_as_it_is_read(models):
    """The slices of an FFN share their input, whatever adds to the residual between them."""
    at = act_map(models("slices").plan, 4).at
    assert {at[f"layers.0.slice{k}.h"] for k in range(3)} == {8} and at["layers.0.norm2.x"] == 0


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_slices_in_blocks(kind, seed, tmp_path):
    folder = random_model(tmp_path / "m", seed=seed, hidden=64, ffn=96, layers=1)
    model = cut_ffn(load_model(write_gguf(tmp_path / "m.gguf", folder, kind=kind)), 64)
    qm = quantise(model, random_texts(model, seed=seed, sequences=2))
    modes = {name: q.mode for name, q in qm.linears.items() if "slice" in name}
    assert modes == {f"layers.0.slice{k}.{name}": Mode[kind] for k in (0, 1)
                     for name in ("gate_up", "down")}
    tokens = np.random.default_rng(seed).integers(0, qm.vocab, 9).tolist()
    np.testing.assert_array_equal(
        golden_core(compile_model(qm, board(NARROW)), NARROW, seed).forward(tokens),
        GoldenModel(qm).forward(tokens))


def test_heads_are_padded_to_the_core(models, seed, tmp_path):
    """What zeros behind each head change: the program, and not a bit of the logits."""
    model = load_model(random_model(tmp_path, seed=seed, attention_bias=True))
    texts, config = random_texts(model, seed=seed), Config(W=16, P=4, bus_bytes=4)
    plain, padded = (quantise(model, texts, head_pad=pad) for pad in (1, 16))
    assert (plain.head_pad, padded.head_pad) == (8, 16)
    tokens = np.random.default_rng(seed).integers(0, model.vocab, 20).tolist()
    want = GoldenModel(plain).forward(tokens)
    np.testing.assert_array_equal(GoldenModel(padded).forward(tokens), want)
    np.testing.assert_array_equal(
        golden_core(compile_model(padded, board(config)), config, seed).forward(tokens), want)
    with pytest.raises(ValueError, match="heads padded to 8, but the core takes 16"):
        compile_model(plain, board(config))


@pytest.mark.parametrize("rows,row_beats,header", [
    (128, 16, Header.SCALE), (128, 24, Header.SCALE), (2, 32, Header.BIAS), (77, 4, Header.SCALE),
    (50, 31, Header.BIAS), (4000, 1, Header.SCALE)])
def test_tiles_fit_and_are_even(rows, row_beats, header):
    for config in (NARROW, WIDE, Config(W=32, P=8, bus_bytes=32)):
        t = tile_linear(rows, row_beats, config, header=header)
        assert t.rows <= config.tile_rows and t.rows * row_beats <= config.tile_beats
        assert (t.tiles - 1) * t.rows + t.last_rows == rows and 0 < t.last_rows <= t.rows
        assert t.tiles == 1 or t.rows % 2 == 0
        assert tile_linear(64, 1, config, header=header, divides=16).rows in (2, 4, 8, 16)


@pytest.mark.parametrize("change,names", [
    (dict(act_words=8), "act_words"), (dict(residual_values=124), "residual_values"),
    (dict(rope_pairs=15), "rope_pairs"), (dict(tile_beats=8), "tile_beats"),
    (dict(prog_depth=32), "prog_depth")])
def test_limits_are_named(models, change, names):
    with pytest.raises(UserError, match=f"^the model does not fit the board .*{names}"):
        compile_model(models("plain"), board(NARROW.replace(**change)))


def test_context_limits(models):
    qm = models("plain")
    assert compile_model(qm, board(NARROW)).context == 128
    assert compile_model(qm, board(NARROW.replace(context=64))).context == 64
    assert compile_model(qm, board(NARROW), context=5).context == 5
    for context in (0, 129):
        with pytest.raises(UserError, match=r"^the context must be in 1\.\.128 for this model, "):
            compile_model(qm, board(NARROW), context=context)
    with pytest.raises(UserError, match="^the model does not.* 100 tokens, at most 64 .*score_d"):
        compile_model(qm, board(NARROW.replace(score_depth=64)), context=100)


def test_memory_limit(models):
    image = compile_model(models("plain"), board(NARROW))
    need = image.needs["memory_bytes"]
    fits = -(-need // 4096) * 4096
    compile_model(models("plain"), board(NARROW, fits))
    with pytest.raises(UserError, match=f"memory {need:,} bytes, at most .*--ctx"):
        compile_model(models("plain"), board(NARROW, fits - 4096))


def table(buckets, seed=0, vocab=128):
    """Of random entries, half of them empty."""
    rng = np.random.default_rng(seed)
    entries = rng.integers(0, 1 << 13, (buckets, 4)) << 19 | rng.integers(0, vocab, (buckets, 4))
    entries = np.where(rng.random(entries.shape) < 0.5, EMPTY, entries)
    return DraftTable(model="m", vocab=vocab, vocabulary="v", least=3, made_of="nothing",
                      entries=entries.astype(np.uint32))


def test_table_of_drafts(models, seed):
    """It is in the memory, nothing else moves into it, and the model computes as without."""
    plain = compile_model(models("plain"), board(NARROW))
    assert plain.draft is plain.draft_entries is None and plain.draft_bytes == 0
    tokens = np.random.default_rng(seed).integers(0, 128, 7).tolist()
    want = golden_core(plain, NARROW).forward(tokens)
    for buckets in (1, 5, 64):
        made = table(buckets, seed)
        image = compile_model(models("plain"), board(NARROW), draft=made)
        regs, at = image.model_regs, image.model_regs["draft_addr"] * NARROW.W
        assert image.draft == dict(model="m", made_of="nothing", entries=made.used)
        assert (regs["draft_buckets"], regs["draft_least"]) == (buckets, 3)
        assert at % 64 == 0 and image.draft_bytes == 16 * buckets
        np.testing.assert_array_equal(image.draft_entries, made.entries)
        core = golden_core(image, NARROW)
        np.testing.assert_array_equal(core.forward(tokens), want)
        assert core.memory[at:at + 16 * buckets].tobytes() == made.memory
        assert image.bits_per_weight == pytest.approx(plain.bits_per_weight, rel=0.02)
        extra = -(-16 * buckets // 64) * 64
        for of in (lambda i: i.needs["memory_bytes"], lambda i: len(i.memory)):
            assert of(image) == of(plain) + extra


def test_no_room_for_a_table(models):
    """It is left out where the memory is full, and on a core without drafts."""
    need = compile_model(models("plain"), board(NARROW)).needs["memory_bytes"]
    size = -(-(need + 64) // 4096) * 4096       # whole pages
    most = (size - need) // 64 * 4              # buckets of whole sections
    for buckets, there in ((most, True), (most + 1, False)):
        image = compile_model(models("plain"), board(NARROW, size), draft=table(buckets))
        assert (image.draft is not None) is there
        assert image.needs["memory_bytes"] == need + 16 * buckets * there
    core = NARROW.replace(batches=False)
    assert compile_model(models("plain"), board(core), draft=table(1)).draft is None


def test_statistics(models):
    """Counted by hand for hidden 32, 4 heads of 8, 2 KV heads, FFN 64, 2 layers, vocabulary 128."""
    image = compile_model(models("plain"), board(NARROW))
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 64 * 32
    rows = 32 + 16 + 16 + 32 + 128 + 32
    assert image.parameters == 2 * (layer + 64) + 128 * 32 + 32
    weights = 2 * (layer + 4 * rows + 2 * 64) + 128 * (32 + 4) + 64
    table = 32 + 4 + 2 * 8
    assert image.bytes_per_token(1) == weights + table + 2 * 2 * 16 * 2
    assert image.bytes_per_token(10) - image.bytes_per_token(9) == 2 * 2 * 16
    # A pass that is not final has of the second layer the norm, the keys and the values.
    kv, kv_rows = 32 * (16 + 16), 16 + 16
    assert image.useful_bytes(pos0=0, n=10, final=False) == (
        layer + 4 * rows + 2 * 64 + kv + 4 * kv_rows + 64 + 10 * table + 2 * 16 * 10 * (1 + 2))
    assert image.useful_macs(pos0=0, n=3, final=True) == (
        3 * layer + 3 * kv + (layer - kv) + 128 * 32 + 2 * 32 * (1 + 2 + 3 + 3))
    whole = compile_model(models("plain"), board(NARROW), all_tokens=True)
    assert whole.useful_bytes(pos0=0, n=10, final=False) == (
        2 * (layer + 4 * rows + 2 * 64) + 10 * table + 2 * 2 * 2 * 16 * 10)
    assert whole.useful_macs(pos0=0, n=3, final=True) == (
        3 * 2 * layer + 128 * 32 + 2 * 2 * 32 * (1 + 2 + 3))
    for useful in ("useful_bytes", "useful_macs"):      # of a decode pass
        assert getattr(whole, useful)(pos0=7, n=1, final=True) == \
            getattr(image, useful)(pos0=7, n=1, final=True)
    assert image.bits_per_weight == 8 * len(image.memory) / image.parameters
    assert any(i["sink"] == Sink.LOGIT for i in image.instructions)


def test_statistics_of_windows(models):
    """Of the same shape: the first layer sees three positions."""
    image, whole = (compile_model(models(name), board(NARROW)) for name in ("window", "plain"))
    assert image.backs == [2, NO_WINDOW] and whole.backs == [NO_WINDOW] * 2

    def saved(useful, **of_pass):
        return getattr(whole, useful)(**of_pass) - getattr(image, useful)(**of_pass)
    for final in (False, True):         # keys 0..4; those of positions 7 and 8
        assert saved("useful_bytes", pos0=7, n=2, final=final) == 5 * 2 * 16
        assert saved("useful_macs", pos0=7, n=2, final=final) == 2 * 32 * (5 + 6)
    assert not saved("useful_bytes", pos0=0, n=9, final=True)
    assert not saved("useful_macs", pos0=0, n=3, final=True)
