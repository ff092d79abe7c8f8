"""Attention by the golden models against what docs/numerics.md says, a query at a time: no tiles,
no blocks, no loops but those over heads and tokens, and tables made anew.

``SHAPES=1000`` tries as many random shapes of each kind, instead of a few.
"""
from __future__ import annotations

import itertools
import os
from dataclasses import replace
from math import exp2, floor
from pathlib import Path

import numpy as np
from meadowlark.compile import limits
from meadowlark.compile.compiler import compile_model
from meadowlark.models.registry import load_model
from meadowlark.models.rewrite import suited
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.plan import AttendStep
from meadowlark.quant.quantise import QuantModel, quantise
from meadowlark.quant.shapes import Shapes
from meadowlark.run.targets import golden_core
from meadowlark_boards import BOARDS, Board, get_board
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import pass_of, tile_keys
from meadowlark_hdl.isa import Header, Instruction, Mode, Op, Sink, Src
from meadowlark_hdl.isa_golden import GoldenCore
from random_model import random_model

SHAPES = int(os.environ.get("SHAPES") or 25)


# ---- The reference

def half_up(x: int, shift: int) -> int:
    """x / 2**shift, rounded half up."""
    return (2 * x + (1 << shift)) >> shift + 1


POWERS = [floor(exp2(15 - i / 256) + 0.5) for i in range(256)]
RECIPROCALS = [(2 * 65536 * 256 + 256 + i) // (2 * (256 + i)) for i in range(257)]


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, *, score_shift: int, mant: int,
           shift: int) -> tuple[np.ndarray, int]:
    """A query int[d] with the keys and values int[n, d] that it sees -> (int[d], how many scores
    were saturated)."""
    wanted = [half_up(int(x), score_shift) for x in keys.astype(np.int64) @ q.astype(np.int64)]
    scores = [min(max(s, -131071), 131071) for s in wanted]
    most, p = max(scores), []
    for s in scores:
        steps, part = divmod((most - s + 2) // 4, 256)
        p.append(half_up(POWERS[part], steps))
    total = sum(p)
    k = total.bit_length() - 1
    at, rest = divmod((total << 18 >> k) - (1 << 18), 1024)     # 18 bits below the leading one
    a, b = RECIPROCALS[at:at + 2]
    scale = half_up((a + half_up((b - a) * rest, 10)) * mant, 16)
    sums = np.array(p, np.int64) @ values.astype(np.int64)
    out = [half_up(int(y) * scale, k + shift) for y in sums]
    return (np.clip(out, -32768, 32767),
            sum(s != w for s, w in zip(scores, wanted, strict=True)))


def test_the_reference_is_attention(seed):
    """In floating point: softmax of the scores, in base 2, and the mean of the values by it."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        n, d = int(rng.integers(1, 300)), int(rng.integers(8, 65))
        q = rng.normal(0, 3000, d).astype(np.int16)
        keys, values = rng.integers(-127, 128, (2, n, d))
        shift, mant = int(rng.integers(8, 14)), int(rng.integers(1 << 15, 1 << 16))
        found, saturated = attend(q, keys, values, score_shift=shift, mant=mant, shift=9)
        scores = np.clip(keys @ q / 2**shift, -131071, 131071) / 1024
        p = np.exp2(scores - scores.max())
        want = p @ values / p.sum() * mant / 2**9
        spread = np.abs(values).max() * mant / 2**9
        assert np.abs(found - want).max() < 0.004 * spread + 1
        assert saturated == np.count_nonzero(np.abs(keys @ q) >= (131071.5 * 2**shift))


# ---- The program: a QK and its SV in a core of any size

class Case:
    """A core with an attention in it, of a random shape.

    d: head dimension, padded to ``head``. q: int16[n, heads, d]. keys, values: int8[ctx, d].
    """

    def __init__(self, rng: np.random.Generator) -> None:
        W = int(rng.choice([4, 8, 16, 32]))
        sv_cycles = int(rng.choice([c for c in (2, 4, 8, 16) if c <= W // 2]))
        self.config = Config(
            W=W, P=int(rng.integers(5 if W == 32 else 3, 13)), bus_bytes=int(rng.choice([2, 4])),
            act_words=4096, residual_values=1 << 16, rope_pairs=1 << 16,
            score_depth=1 << int(rng.integers(6, 11)), tile_beats=1 << int(rng.integers(4, 10)),
            sv_cycles=sv_cycles)
        self.d = int(rng.choice([8, 24, 48, 80, 128, 256, int(rng.integers(8, 257))]))
        self.head = max(W, 1 << (self.d - 1).bit_length())
        self.heads = int(rng.choice([1, 3, 9, 12, int(rng.integers(1, 13))]))
        self.decode = bool(rng.integers(2))
        self.n = 1 if self.decode else int(rng.choice([1, self.config.P, rng.integers(1, 48)]))
        most = min(self.config.score_depth, 600)
        self.ctx = int(rng.choice([1, self.n, 16, most, rng.integers(1, most + 1)]))
        self.pos0 = self.ctx - self.n
        # Keys that a token sees, its own the last; and those behind it.
        self.window = int(rng.choice([1, 16, self.ctx, 1 << 13, rng.integers(1, 2 * self.ctx)]))
        self.ahead = int(rng.integers(4) == 0)
        self.draw(rng)

    @property
    def fits(self) -> bool:
        """A core of this size holds a key, and a lot at this position; queries and results fit."""
        c, blocks = self.config, -(-self.n // self.config.P)
        return self.pos0 >= 0 and self.head <= c.tile_beats * c.W and \
            2 * blocks * self.heads * self.head // c.W <= c.act_words

    @property
    def columns(self) -> int:
        """Of the values, that an SV takes: what the accumulators hold of a head."""
        return min(self.head, self.config.acc_slots * self.config.W // self.config.sv_cycles)

    def draw(self, rng: np.random.Generator) -> None:
        """Values; at times so large that scores saturate, or all alike."""
        top = 1 << 15
        how = rng.choice(["plain", "small", "limits"])
        shape = max(self.n, 1), self.heads, self.d
        self.q = {"plain": rng.integers(-top, top, shape), "small": rng.integers(-9, 10, shape),
                  "limits": rng.choice([-top, top - 1], shape)}[how].astype(np.int16)
        self.keys, self.values = rng.integers(-128, 128, (2, self.ctx, self.d)).astype(np.int8)
        if rng.integers(4) == 0:
            self.keys[:] = self.keys[:1]
        # a sum of d products has about this many bits
        spread = 15 + 7 + (self.d.bit_length() >> 1)
        self.score_shift = int(rng.integers(max(0, spread - 22), spread - 8))
        self.mant, self.shift = int(rng.integers(1 << 15, 1 << 16)), int(rng.integers(4, 14))
        self.last = not self.decode and rng.integers(4) == 0
        self.at_once = self.config.P if self.decode else int(rng.integers(1, self.heads + 1))
        self.seed = int(rng.integers(1 << 30))

    def run(self) -> tuple[np.ndarray, int]:
        """-> (int16[tokens, heads, head] of the tokens that were asked for, saturated scores)"""
        c, n, head, words = self.config, self.n, self.head, self.head // self.config.W
        at_once = min(self.at_once, self.heads)
        blocks = -(-n // c.P)
        here, there = 0, self.heads * words         # words of the queries, and of the results
        memory = np.zeros((2, self.ctx, head), np.int8)
        memory[0, :, :self.d], memory[1, :, :self.d] = self.keys, self.values
        # Columns of the values lie one behind the other.
        memory[1] = np.concatenate([memory[1, :, at:at + self.columns].ravel() for at in range(
            0, head, self.columns)]).reshape(memory[1].shape)

        def kv(width: int) -> dict:
            rows, beats = tile_keys(c, width.bit_length() - 1), width // c.W
            return dict(src=Src.KV, mode=Mode.INT8, header=Header.NONE, rows=rows, row_beats=beats,
                        chunks=rows * beats, last=int(self.last), back=self.window - 1,
                        ahead=self.ahead)
        program = []
        for first in range(0, self.heads, at_once):
            count = min(at_once, self.heads - first)
            how = dict(heads=1, lanes=count, group=1) if self.decode else dict(group=count)
            program += [
                Instruction(Op.QK, addr=0, x=here + (0 if self.decode else first * words),
                            shift=self.score_shift, **kv(head), **how)]
            program += [
                Instruction(Op.SV, sink=Sink.ACT, wide=1,
                            addr=self.ctx * (head + at) // c.W, y=there * c.W + first * head + at,
                            mant=self.mant, shift=self.shift,
                            more=int(at + self.columns < head), **kv(self.columns), **how)
                for at in range(0, head, self.columns)]
            if self.decode:                         # the lanes of other heads
                here += words
        program.append(Instruction(Op.END))
        size = self.heads * words * 2
        model = dict(prefill_pc=0, decode_pc=0, stream_addr=0, block_words=size, blocks=blocks,
                     token_words=0, hidden=c.W, stride=c.W, head_log2=head.bit_length() - 1,
                     group=1 if self.decode else at_once, eps=1, vocab=64, draft_addr=0,
                     draft_buckets=0, draft_least=0)
        core = GoldenCore(c, program=program, model=model, memory=memory.tobytes(),
                          memory_bytes=memory.size, seed=self.seed)
        for t, h in np.ndindex(n, self.heads):
            q = np.zeros(head, np.int16)
            q[:self.d] = self.q[t, h]
            if self.decode:
                lane, at = h % at_once, h // at_once * head
            else:
                lane, at = t % c.P, t // c.P * size * c.W + h * head
            core._act[lane, at:at + head] = q
        core.run(pass_of(c, model, self.pos0, n, final=False, decode=self.decode), [0] * n)
        tokens = range((n - 1) // c.P * c.P if self.last else 0, n)
        out = np.array([core._act[t % c.P, (t // c.P * size + there) * c.W:][:self.heads * head]
                        for t in tokens])
        return out.reshape(len(tokens), self.heads, head), core.counters["score_saturations"]

    def check(self) -> int:
        """Compare all; returns the saturated scores."""
        found, counted = self.run()
        saturated = 0
        for at, h in np.ndindex(found.shape[:2]):
            t = self.n - len(found) + at
            own = self.pos0 + t
            sees = slice(max(0, own - self.window + 1), self.ctx if self.ahead else own + 1)
            want, wrong = attend(
                self.q[t, h], self.keys[sees], self.values[sees], score_shift=self.score_shift,
                mant=self.mant, shift=self.shift)
            np.testing.assert_array_equal(found[at, h, :self.d], want)
            assert not found[at, h, self.d:].any()
            saturated += wrong
        assert counted == saturated
        return saturated


def test_programs(seed):
    """Any core, head, group, pass and context: the values, and the count of saturated scores."""
    rng = np.random.default_rng(seed)
    tried, seen = 0, dict.fromkeys(("saturated", "tiles", "blocks", "subgroups", "decode",
                                         "windows", "ahead", "columns"), 0)
    while tried < SHAPES or min(seen.values()) == 0:        # until there was one of each kind
        case = Case(rng)
        if not case.fits:
            continue
        c, p = case.config, None
        model = dict(head_log2=case.head.bit_length() - 1, blocks=-(-case.n // c.P),
                     group=min(case.at_once, case.heads))
        try:
            p = pass_of(c, model, case.pos0, case.n, final=False, decode=case.decode)
        except ValueError:              # not even one lot
            continue
        shape = {k: v for k, v in vars(case).items() if isinstance(v, int)}
        try:
            saturated = case.check()
        except AssertionError as error:
            raise AssertionError(f"shape {tried}: {c}, {shape}") from error
        tried += 1
        seen["saturated"] += saturated > 0
        seen["tiles"] += case.ctx > tile_keys(c, model["head_log2"])
        seen["blocks"] += p.nb > 1
        seen["subgroups"] += not case.decode and (p.sub_heads < model["group"]
                                                  or p.sub_blocks < p.nb)
        seen["decode"] += case.decode
        seen["windows"] += case.window < case.ctx and p.nb > 1
        seen["ahead"] += case.ahead and p.nb > 1
        seen["columns"] += case.columns < case.head


# ---- Whole models: hidden, FFN and heads as they come, contexts and windows down to one token

class Watched:
    """A model in integers whose attention is compared as it runs."""

    def __init__(self, qm: QuantModel) -> None:
        self.qm, self.edges, self.saturated = qm, {}, 0
        self.golden = GoldenModel(qm, trace=self._seen)
        self.steps = {step.name: step for step in qm.plan.attends}
        self.kept: dict[str, list[np.ndarray]] = {name: [] for name in self.steps}

    def _seen(self, name: str, made: np.ndarray) -> None:
        self.edges[name] = made
        if name in self.steps:
            self._compare(self.steps[name], made)

    def _compare(self, step: AttendStep, made: np.ndarray) -> None:
        q, k, v = (self.edges[name] for name in step.op.inputs)
        cache, numbers = self.kept[step.name], self.qm.numbers[step.name]
        group = step.op.heads // step.op.kv_heads
        made = made.reshape(q.shape)
        for t in range(len(q)):
            cache.append(np.stack([k[t], v[t]]))
            keys, values = np.stack(cache[-step.op.window if step.op.window else 0:], axis=1)
            for h in range(step.op.heads):
                g = h // group
                want, wrong = attend(
                    q[t, h], keys[:, g], values[:, g], score_shift=numbers.score_shift,
                    mant=int(numbers.v_mant[g]), shift=int(numbers.v_shift[g]))
                np.testing.assert_array_equal(made[t, h], want)
                self.saturated += wrong


def random_case(rng: np.random.Generator, folder: Path) -> tuple[QuantModel, Board]:
    """A quantised model, and a board that it fits."""
    group, kv_heads = int(rng.choice([1, 3, 9, 12])), int(rng.integers(1, 3))
    if group > 4:
        kv_heads = 1
    head_dim = int(rng.choice([8, 24, 48, 80, 128, 256, 2 * rng.integers(4, 40)]))
    context, layers = int(rng.choice([1, 2, 16, rng.integers(3, 150)])), int(rng.integers(1, 3))
    window = int(rng.choice([1, 16, context, rng.integers(1, context + 1)]))
    model = load_model(random_model(
        folder, seed=int(rng.integers(1 << 30)), hidden=int(rng.integers(5, 40)) * 2,
        layers=layers, heads=kv_heads * group, kv_heads=kv_heads,
        head_dim=head_dim, ffn=int(rng.integers(10, 90)), vocab=int(rng.integers(64, 150)),
        context=context, tied=bool(rng.integers(2)),
        **(dict(family="mistral", sliding_window=window, layer_types=rng.choice(
            ["sliding_attention", "full_attention"], layers).tolist()) if rng.integers(2) else
           dict(attention_bias=bool(rng.integers(2)), mlp_bias=bool(rng.integers(2))))))
    loud = 30 if rng.integers(3) == 0 else 1
    model = replace(model, weights={
        name: w * np.float32(loud if name.endswith(".q") else 1)
        for name, w in model.weights.items()})
    while True:
        config = Case(rng).config.replace(bus_bytes=4)
        board = replace(get_board("virtual"), config=config)
        on = suited(model, limits.most_ffn(model.hidden, board))
        if not limits.fits(Shapes.of_model(on, head_pad=config.W), board):
            break
    texts = rng.integers(0, model.vocab, (8, min(48, model.context))).tolist()
    return quantise(on, texts, head_pad=config.W), board


def test_stories260k(tmp_path, seed):
    """The shape of the smallest model that people have (heads of 8, hidden 64, 8 heads on 4 KV
    heads) goes on every board."""
    rng = np.random.default_rng(seed)
    model = load_model(random_model(tmp_path, seed=seed, hidden=64, layers=5, heads=8, kv_heads=4,
                                    ffn=172, vocab=512, context=512))
    texts, tokens = rng.integers(0, 512, (2, 32)).tolist(), rng.integers(0, 512, 70).tolist()
    for board in BOARDS.values():
        qm = quantise(model, texts, head_pad=board.config.W)
        core = golden_core(compile_model(qm, board), board.config)
        np.testing.assert_array_equal(core.forward(tokens), GoldenModel(qm).forward(tokens))


def test_models(tmp_path, seed):
    """Attention of the model in integers; and the program of a random core gives its logits."""
    rng = np.random.default_rng(seed)
    saturated = 0
    for k in itertools.count():
        if k >= -(-SHAPES // 5) and saturated > 0:      # until there was one
            break
        qm, board = random_case(rng, tmp_path / str(k))
        watched = Watched(qm)
        tokens = rng.integers(0, qm.vocab, int(rng.integers(1, min(qm.context, 60) + 1))).tolist()
        want = list(watched.golden.generate(tokens, max_new=3, stop_ids=()))
        saturated += watched.saturated
        assert watched.golden.saturations["scores"] == watched.saturated
        image = compile_model(qm, board, all_tokens=bool(rng.integers(2)))
        room = image.context - len(tokens) + 1
        found = list(golden_core(image, board.config, k).generate(tokens, max_new=min(3, room)))
        for (a, logits), (b, same) in zip(found, want[:min(3, room)], strict=True):
            np.testing.assert_array_equal(logits, same)
            assert a == b
