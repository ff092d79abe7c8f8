"""Fences in a program: the same text, and a memory side that does not run ahead."""
from dataclasses import replace

import numpy as np
import pytest
from meadowlark.compile.compiler import compile_model
from meadowlark.compile.cycles import predict
from meadowlark.compile.fences import PLACES, fenced
from meadowlark.compile.image import Image
from meadowlark.errors import UserError
from meadowlark.models.registry import load_model
from meadowlark.quant.quantise import quantise
from meadowlark.run.targets import golden_core
from meadowlark_boards import get_board
from meadowlark_hdl.isa import Op
from random_model import random_model, random_texts

LAYERS = 3


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
    plain, other = (golden_core(of, board.config, seed) for of in (image, fenced(image, where)))
    for core in (plain, other):
        core.forward(tokens[:5])
    for at, token in enumerate(tokens[5:], 5):
        np.testing.assert_array_equal(other.forward([token], at), plain.forward([token], at))
    np.testing.assert_array_equal(other.memory, plain.memory)
    assert other.counters["instructions"] > plain.counters["instructions"]


def test_fences_are_where_they_are_asked_for(image):
    """A STORE and its QK before each layer but the first, or before each operator from the first
    layer's keys on; the prefill list is as it was."""
    at = image.model_regs["decode_pc"]

    def code(of):
        return of.instructions[at:]
    fence = [Op.STORE, Op.QK, Op.SV]
    for where in PLACES:
        made = fenced(image, where)
        assert made.instructions[:at] == image.instructions[:at]
        ops = [i["op"] for i in code(made)]
        places = [k for k in range(len(ops)) if ops[k:k + 3] == fence]
        assert [ops[k] for k in range(len(ops)) if not any(k - n in places for n in range(3))] == [
            i["op"] for i in code(image)]
        if where == "layers":
            assert len(places) == LAYERS - 1
            assert all(ops[k - 1] == Op.LINEAR and ops[k + 3] == Op.NORM for k in places)
        else:
            first = ops.index(Op.STORE)
            assert len(places) >= sum(op == Op.LINEAR for op in ops[first:]) - LAYERS
            assert all(ops[k + 3] in (Op.NORM, Op.LINEAR) for k in places)


@pytest.mark.parametrize("where", PLACES)
def test_a_fenced_image_is_an_image(image, where, tmp_path):
    """It is written, read and checked, and what is useful in a pass is what it was."""
    made = fenced(image, where)
    made.save(tmp_path / "f.mlk")
    again = Image.load(tmp_path / "f.mlk")
    assert again.program == made.program and again.caches == image.caches
    assert again.backs == image.backs
    assert again.useful_bytes(pos0=7, n=1, final=True) == image.useful_bytes(
        pos0=7, n=1, final=True)


def test_fences_take_time(image):
    """More at operators than at layers, more than their own words take, none in prefill."""
    for name in "virtual", "kv260":
        board = replace(get_board(name), config=get_board("virtual").config)
        found = [predict(of, board, prompt=8, generate=5) for of in (
            image, fenced(image, "layers"), fenced(image, "operators"))]
        cycles = [p.decode_cycles for p in found]
        assert cycles == sorted(set(cycles))
        assert len({p.prefill_cycles for p in found}) == 1
        words = found[2].bus_words - found[0].bus_words
        assert cycles[2] - cycles[0] > 5 * words


def test_no_fences(image):
    with pytest.raises(UserError, match="no fences at 'rows'; give one of operators, layers"):
        fenced(image, "rows")
    small = replace(image, config=image.config | {"prog_depth": len(image.instructions)})
    with pytest.raises(UserError, match="has no room for fences on virtual"):
        fenced(small, "layers")
