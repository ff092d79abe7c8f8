"""The golden decoder: a whole model in exact integer arithmetic, in NumPy.

It reads nothing from the chip and knows nothing of tiles, lanes or programs; the gateware's logits
equal these bit for bit. Matrix products use float64: the sums stay below 2**53 and are exact.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from meadowlark_hdl.compute.fused_golden import fused
from meadowlark_hdl.compute.norm_golden import add_residual, rmsnorm, sum_of_squares
from meadowlark_hdl.compute.requant_golden import requant
from meadowlark_hdl.compute.rope_golden import rope
from meadowlark_hdl.compute.softcap_golden import softcap
from meadowlark_hdl.compute.softmax_golden import (MASKED, output_scale, peaks, probabilities,
                                                   saturated, scores, spilled)
from meadowlark_hdl.compute.glu_golden import alone, glu
from meadowlark_hdl.compute.tiling_engine_golden import FLOATS_KEPT, dot, product
from meadowlark_hdl.config import Config
from meadowlark_hdl.draft.drafter_golden import draft
from meadowlark_hdl.draft.run_golden import Turn, turns
from meadowlark_hdl.sampler.sampler_golden import Sampling, sample
from meadowlark_hdl.fixed import saturate

from ..errors import UserError
from ..models.float_model import unseen
from .plan import (AddStep, AttendStep, EmbedStep, GateStep, HeadStep, Matrix, Normed, NormStep,
                   PatchStep, ReadStep, Step)
from .quantise import QuantAttend, QuantLinear, QuantModel, logit_cap, score_cap

#: Format of the gate in glu_golden, which saturates to it by itself: here it is only counted.
GATE_BITS = 18
#: Called with (edge, int array) as a forward pass goes.
Tracer = Callable[[str, np.ndarray], None]
#: Called with an attention's name, the first of some KV heads, and maxima of their rows of scores,
#: int64[KV heads, ...].
Maxima = Callable[[str, int, np.ndarray], None]
#: (text, k) -> 0..k drafts of what comes behind it.
Drafter = Callable[[list[int], int], list[int]]


@dataclass
class _Pass:
    """Of a pass under way: tokens[n] at pos0.., or of an image codes[n, width], and what its steps
    have made."""
    tokens: np.ndarray
    pos0: int
    residual: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    edges: dict[str, np.ndarray] = field(default_factory=dict)


class GoldenModel:
    """Bit-exact decoder with a KV cache.

    Parameters
    ----------
    qm : QuantModel
        The model; its arrays are used, not copied.
    context : int, optional
        Positions of the cache, at most qm.context (the default).
    gemm : bool
        Scores are in memory before their softmax, see :mod:`meadowlark.compile.gemm`.
    tile : int, optional
        Attention goes tile by tile of so many keys, see
        :func:`meadowlark_hdl.compute.fused_golden.fused`; of models without windows, unified
        maxima and gemm. No core does yet.
    trace : callable, optional
        Gets the edges that steps make, in order, and before attention those of its queries, keys
        and values (as stored: int16, int8, int8, [n, heads, values of a head]).
    maxima : callable, optional
        Gets the maxima of all rows of scores.

    Attributes
    ----------
    keys, values : int8[caches, kv_heads, context, plan.key_pad or plan.value_pad]
        The caches of attention as the chip holds them in memory.
    text : int64[context]
        Ids of the positions that the cache holds, and of the next one.
    length : int
        Positions that the cache holds.
    turns : list of Turn
        The passes of the latest :meth:`generate`, from the one that gave the first token on.
    rows, redone : int
        Rows of scores with a unified maximum, and those of them that have another.
    saturations, counted : dict[str, int]
        Values that met the limit of their format, and all values, by what they are: "norm", "q",
        "k", "v", "scores", "attention", "gate", "up", "h", "residual".
    """

    #: Tokens handled at once; bounds the memory of the scores. The result does not depend on it.
    PASS = 256
    #: Scores made at once, more or less.
    SCORES = 1 << 20

    def __init__(self, qm: QuantModel, *, context: int | None = None, gemm: bool = False,
                 tile: int | None = None, trace: Tracer | None = None,
                 maxima: Maxima | None = None) -> None:
        self.qm, self._gemm, self._tile, self._maxima = qm, gemm, tile, maxima
        if tile is not None and (tile < 1 or gemm or any(
                step.op.window is not None or qm.numbers[step.name].phi is not None
                for step in qm.plan.attends)):
            raise ValueError(f"no fused tiles of {tile!r} keys with windows, phi or gemm")
        self.rows = self.redone = 0
        self.context = qm.context if context is None else context
        if not 1 <= self.context <= qm.context:
            raise ValueError(f"context must be in 1..{qm.context}, not {context!r}")
        # The norm of the head and the head are only run for tokens whose logits are wanted.
        self._end = qm.plan.end
        self._body = qm.plan.steps[:-len(self._end)]
        self._pools = len(self._end) == 1
        attends = qm.plan.attends
        shape = len(attends), attends[0].op.kv_heads, self.context
        self.keys, self.values = (np.zeros((*shape, width), np.int8)
                                  for width in (qm.plan.key_pad, qm.plan.value_pad))
        self.text, self.length = np.zeros(self.context + 1, np.int64), 0
        self._cache, self._others = 0, dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, int]]()
        self.turns: list[Turn] = []
        self.saturations: dict[str, int] = {}
        self.counted: dict[str, int] = {}
        self._trace = trace or (lambda *_: None)
        self._floats = qm.parameters <= FLOATS_KEPT
        self._kept: dict[int, np.ndarray] = {}

    def turn_to(self, cache: int) -> None:
        """Go on with the sequence of another cache, an empty one the first time. It begins with
        number 0; the arrays change with it."""
        self._others[self._cache] = self.keys, self.values, self.text, self.length
        self._cache = cache
        self.keys, self.values, self.text, self.length = self._others.pop(cache, None) or (
            np.zeros_like(self.keys), np.zeros_like(self.values), np.zeros_like(self.text), 0)

    def forget(self) -> None:
        """Empty the cache; the counts of saturations stay."""
        self.keys[:], self.values[:] = 0, 0
        self.length = 0

    # ---- Passes

    def forward(self, tokens: Sequence[int] | np.ndarray, start_pos: int = 0,
                want: Literal["last", "all"] = "last") -> np.ndarray:
        """Take tokens at positions start_pos.. and return logits.

        However a prompt is cut into calls, cache and logits are the same.

        Parameters
        ----------
        tokens : sequence of n ids, n >= 1
        start_pos : int
            Position of the first; the cache below it is kept, what was above is replaced.
        want : "last" or "all"

        Returns
        -------
        int32[vocab] ("last") or int32[n, vocab] ("all"), 12 fractional bits

        Raises
        ------
        UserError
            The tokens do not fit the context.
        ValueError
            A token id or start_pos out of range.
        """
        tokens = np.asarray(tokens, np.int64)
        if tokens.ndim != 1 or not len(tokens):
            raise ValueError(f"tokens must be a sequence of at least 1 id, not {tokens!r}")
        if tokens.min() < 0 or tokens.max() >= self.qm.vocab:
            raise ValueError(f"token ids must be in 0..{self.qm.vocab - 1}, not "
                             f"{tokens.min()}..{tokens.max()}")
        if not 0 <= start_pos <= self.length:
            raise ValueError(f"start_pos must be in 0..{self.length} (the cache), not "
                             f"{start_pos!r}")
        if want not in ("last", "all"):
            raise ValueError(f"want must be 'last' or 'all', not {want!r}")
        if start_pos + len(tokens) > self.context:
            raise UserError(f"{start_pos + len(tokens)} tokens do not fit the context of "
                            f"{self.context}; shorten the prompt.")
        self.text[start_pos:start_pos + len(tokens)] = tokens
        out = []
        for at in range(0, len(tokens), self.PASS):
            part = tokens[at:at + self.PASS]
            final = at + len(part) == len(tokens)
            r = self._pass(part, start_pos + at)
            self.length = start_pos + at + len(part)
            if want == "all" or final:
                out.append(self._logits(r if want == "all" else r[-1:]))
        logits = np.concatenate(out)
        return logits if want == "all" else logits[0]

    def classify(self, codes: np.ndarray) -> np.ndarray:
        """An image, int16[context, width] (:meth:`meadowlark.models.pictures.Pictures.codes`), ->
        int32[classes], 12 fractional bits."""
        step = self.qm.plan.patches
        if step is None or codes.shape != (self.context, step.op.width):
            raise ValueError(f"codes must be of {self.context} tokens, not {codes.shape!r}")
        residual, self.length = self._pass(codes.astype(np.int64), 0), self.context
        return self._logits(residual[-1:])[0]

    def generate(self, tokens: Sequence[int], sampling: Sampling = Sampling(), *,
                 max_new: int | None = None, stop_ids: Collection[int] | None = None,
                 start_pos: int = 0, draft_most: int = 0, draft_price: int = 0,
                 drafter: Drafter = draft) -> Iterator[tuple[int, np.ndarray]]:
        """Take a prompt, then draw tokens.

        Each token is drawn with its own position (the index of the token to come). Ends after a
        stop id (which is given as well), after max_new tokens, or when the token just drawn has
        no place in the context.

        Parameters
        ----------
        tokens : sequence of ids
            The prompt, at start_pos...
        sampling : Sampling
            From :func:`meadowlark.quant.sampling.sampling`; greedy by default.
        max_new : int, optional
            Most tokens to draw; None: as many as the context takes. 0 only fills the cache.
        stop_ids : collection of ids, optional
            The model's own by default.
        start_pos : int
            As in :meth:`forward`.
        draft_most, draft_price : int
            Drafts of a pass, see :func:`meadowlark_hdl.draft.run_golden.turns`. They change no
            token and no logit, only :attr:`turns`.
        drafter : callable
            By default from the text alone, without a table.

        Yields
        ------
        token : int
        logits : int32[vocab]
            What it was drawn from.
        """
        if max_new is not None and max_new < 0:
            raise ValueError(f"max_new must be at least 0, not {max_new!r}")
        if not len(tokens):
            raise UserError("the prompt has no tokens; give at least one word.")
        stops = self.qm.stop_ids if stop_ids is None else stop_ids
        logits = self.forward(tokens, start_pos)
        end, rows = start_pos + len(tokens), list[np.ndarray]()
        self.turns = []

        def draw(position: int, drafts: list[int]) -> Iterator[int]:
            found = [logits] if position < end else self.forward(
                [self.text[position], *drafts], position, "all")
            for at, row in enumerate(found, position + 1):
                rows.append(row)
                token = sample(row, sampling, at)
                self.text[at] = token
                yield token
        most = self.context if max_new is None else max_new
        for turn in turns(self.text[:end].tolist(), draw, drafter, most=draft_most,
                          price=draft_price, max_new=most, stop_ids=stops, limit=self.context):
            self.turns.append(turn)
            yield from zip(turn.tokens, rows, strict=True)
            rows.clear()

    # ---- One pass, step by step

    def _pass(self, tokens: np.ndarray, pos0: int) -> np.ndarray:
        """tokens[n] at pos0.. -> what the end reads: residual int64[n, hidden], or what pools;
        writes the cache."""
        state = _Pass(tokens, pos0)
        for step in self._body:
            self._run(step, state)
        return state.edges[self.qm.plan.head.matrix.x] if self._pools else state.residual

    def _logits(self, before: np.ndarray) -> np.ndarray:
        """What the end reads -> int32[n, vocab]."""
        state = _Pass(np.zeros(0, np.int64), 0, before)
        if self._pools:
            state.edges[self.qm.plan.head.matrix.x] = before
        for step in self._end:
            self._run(step, state)
        return state.edges[self.qm.plan.head.name].astype(np.int32)

    def _run(self, step: Step, state: _Pass) -> None:
        """A step, and what it makes."""
        made = _RUN[type(step)](self, step, state)
        self._trace(step.name, made)
        if isinstance(step, EmbedStep | AddStep):
            state.residual = made
        else:
            state.edges[step.name] = made

    def _embed(self, step: EmbedStep, state: _Pass) -> np.ndarray:
        positions = step.op.offset + state.pos0 + np.arange(len(state.tokens))
        residual: np.ndarray | int = 0
        for matrix in step.tables:
            # written to an empty residual only its saturation is left of the addition
            residual = add_residual(residual, self._rows(
                matrix, state.tokens if matrix is step.matrix else positions))
        assert isinstance(residual, np.ndarray)
        return self._at_limit(residual, "residual", Config.RESID_BITS) \
            if len(step.tables) > 1 else residual

    def _patches(self, step: PatchStep, state: _Pass) -> np.ndarray:
        return state.tokens

    def _rows(self, matrix: Matrix, which: np.ndarray) -> np.ndarray:
        """Requantised rows of a table: int64[n, hidden]."""
        table = self._numbers(matrix)
        return requant(table.weights(which), table.mant[which, None], table.shift[which, None])

    def _norm(self, step: NormStep, state: _Pass) -> np.ndarray:
        if step.inner is not None and step.matrix is not None:
            return self._inner(step.inner, self._linear(step.matrix, state))
        norm, r = self.qm.numbers[step.name], state.residual
        return self._at_limit(rmsnorm(r, sum_of_squares(r), self.qm.eps, norm.gamma, norm.shift),
                              "norm")

    def _read(self, step: ReadStep, state: _Pass) -> np.ndarray:
        norm, constant = self.qm.numbers[step.name], self._numbers(step.matrix)
        squares = np.full(len(state.residual), sum_of_squares(constant.bias))
        return self._at_limit(rmsnorm(state.residual, squares, self.qm.eps, norm.gamma, norm.shift),
                              "norm")

    def _add(self, step: AddStep, state: _Pass) -> np.ndarray:
        return self._at_limit(add_residual(state.residual, self._taken(
            step.matrix, step.norm, state)), "residual", Config.RESID_BITS)

    def _gate(self, step: GateStep, state: _Pass) -> np.ndarray:
        y, shift = self._linear(step.matrix, state), self.qm.numbers[step.name].shift
        if step.op.up is None:
            h = alone(step.op.fn, self._saturate(y, GATE_BITS, "gate"), shift)
        else:
            gate = self._saturate(y[:, 0::2], GATE_BITS, "gate")
            h = glu(step.op.fn, gate, self._saturate(y[:, 1::2], 16, "up"), shift)
        return self._at_limit(h, "h")

    def _head(self, step: HeadStep, state: _Pass) -> np.ndarray:
        y, cap = self._linear(step.matrix, state), logit_cap(step.op)
        return softcap(y, cap) if cap else y

    # ---- Attention

    def _attend(self, step: AttendStep, state: _Pass) -> np.ndarray:
        """int16 range [n, heads*plan.key_pad]."""
        numbers: QuantAttend = self.qm.numbers[step.name]
        q, k, v = (self._heads(matrix, norm, state) for matrix, norm in (
            (step.q, step.q_norm), (step.k, step.k_norm), (step.v, step.v_norm)))
        if step.table is not None:
            rows = self.qm.rope[self.qm.plan.tables.index(step.table)]
            q, k = (self._rotated(y, state, rows, shift)
                    for y, shift in ((q, numbers.q_shift), (k, numbers.k_shift)))
        q, k, v = (self._saturate(y, bits, part)
                   for part, y, bits in (("q", q, 16), ("k", k, 8), ("v", v, 8)))
        for edge, y in zip(step.op.inputs, (q, k, v), strict=True):
            self._trace(edge, y)
        if step.op.latent:
            k, v = np.concatenate([k, v], axis=-1), v[..., :self.values.shape[-1]]
        stop = state.pos0 + len(q)
        for cache, new in ((self.keys, k), (self.values, v)):
            cache[step.cache, :, state.pos0:stop] = new.swapaxes(0, 1)
        return self._attention(q, step, numbers, state.pos0)

    def _heads(self, matrix: Matrix, norm: Normed | None, state: _Pass) -> np.ndarray:
        """[n, heads, values of one]."""
        heads = matrix.rows // sum(padded for _, padded in matrix.parts)
        return self._taken(matrix, norm, state).reshape(len(state.tokens), heads, -1)

    def _rotated(self, y: np.ndarray, state: _Pass, rows: np.ndarray, shift: int) -> np.ndarray:
        """[n, heads, values], not yet saturated. rows: int16[context, head_pad/2, 2]."""
        table = rows[state.pos0:state.pos0 + len(y), None, :y.shape[-1] // 2].astype(np.int64)
        # 32 bits hold the rotated pair: saturating afterwards is the same, and can be counted
        a, b = rope(y[..., 0::2], y[..., 1::2], table[..., 0], table[..., 1], shift, 32)
        return np.stack([a, b], axis=-1).reshape(y.shape)

    def _attention(self, q: np.ndarray, step: AttendStep, numbers: QuantAttend, pos0: int,
                   ) -> np.ndarray:
        """q[n, heads, head] -> int16 range [n, heads*head]; keys and values are cached.

        A query sees the keys up to its own position, those in its window, and the maximum is over
        just those.
        """
        n, heads, pad = q.shape
        ctx, groups = pos0 + n, step.op.kv_heads
        hidden = unseen(step.op, np.arange(pos0, ctx), ctx)
        q = q.reshape(n, groups, -1, pad).transpose(1, 2, 0, 3)     # [KV head, its heads, n, pad]
        out = np.zeros(q.shape, np.int64)
        columns = slice(self.values.shape[-1])
        most = max(1, self.SCORES * groups // (heads * n * ctx))
        for at in range(0, groups, most):
            some = slice(at, at + most)
            k, v = (cache[step.cache, some, None, :ctx] for cache in (self.keys, self.values))
            acc = product(q[some], k.swapaxes(-1, -2))
            s = scores(acc, numbers.score_shift)
            limit = ~hidden & (np.abs(s) == -MASKED - 1)
            self._count("scores", saturated(acc[limit], numbers.score_shift),
                        acc[..., 0, 0].size * int((~hidden).sum()))
            if cap := score_cap(step.op):
                s = softcap(s, cap)
            s = np.where(hidden, MASKED, s)
            peak = self._peaks(step, numbers, some, s.max(axis=-1, keepdims=True))
            if self._tile is not None:
                sums, total = fused(s, v, self._tile)
            else:
                p, total = probabilities(spilled(s) << 2 if self._gemm else s, peak)
                sums = product(p, v)
            mant, shift = output_scale(total, *(x[some, None, None].astype(np.int64) for x in (
                numbers.v_mant, numbers.v_shift)))
            out[some, ..., columns] = requant(sums, mant[..., None], shift[..., None])
        return self._saturate(out, 16, "attention").transpose(2, 0, 1, 3).reshape(n, -1)

    def _peaks(self, step: AttendStep, numbers: QuantAttend, heads: slice, maxima: np.ndarray,
               ) -> np.ndarray:
        """What stands for the maxima[KV heads, heads of each, n, 1] of rows of some KV heads."""
        if self._maxima is not None:
            self._maxima(step.name, heads.start, maxima)
        if numbers.phi is None:
            return maxima
        peak, good = peaks(maxima, numbers.phi[heads, None, None, None], numbers.window)
        self.rows, self.redone = self.rows + good.size, self.redone + np.count_nonzero(~good)
        return peak

    # ---- Matrices

    def _numbers(self, matrix: Matrix) -> QuantLinear:
        return self.qm.numbers[matrix.name]

    def _linear(self, matrix: Matrix, state: _Pass) -> np.ndarray:
        """Requantised int64[n, rows] of what the matrix reads."""
        w, x = self._numbers(matrix), state.edges[matrix.x]
        return requant(dot(self._weights(w), x), w.mant, w.shift, 0 if w.bias is None else w.bias)

    def _taken(self, matrix: Matrix, norm: Normed | None, state: _Pass) -> np.ndarray:
        """What a matrix makes, normed or not: int64[n, rows]."""
        y = self._linear(matrix, state)
        if norm is None:
            return y
        y = self._inner(norm, y)
        if norm.diagonal is None:
            return y
        w = self._numbers(norm.diagonal)
        y = np.pad(y, ((0, 0), (0, len(w.codes) - y.shape[1])))
        return requant(y * w.codes[:, 0].astype(np.int64), w.mant, w.shift)

    def _inner(self, norm: Normed, y: np.ndarray) -> np.ndarray:
        """Outputs of a matrix, normed: int64[n, rows]."""
        numbers = self.qm.numbers[norm.op.out]
        y = self._at_limit(add_residual(0, y), "residual", Config.RESID_BITS).reshape(
            len(y), -1, norm.width)
        return self._at_limit(rmsnorm(y, sum_of_squares(y), self.qm.eps, numbers.gamma,
                                      numbers.shift), "norm").reshape(len(y), -1)

    def _weights(self, w: QuantLinear) -> np.ndarray:
        """[rows, K], as they are kept; integers are codes of int8, or int32 of blocks."""
        if id(w.codes) not in self._kept:       # self.qm keeps codes alive, so its id is its own
            weights = w.weights()
            self._kept[id(w.codes)] = weights.astype(np.float64) if self._floats else weights
        return self._kept[id(w.codes)]

    # ---- Counting saturations

    def _count(self, what: str, met: np.ndarray, of: int | None = None) -> None:
        """met: which values met their limit. of: how many were looked at, if more."""
        self.saturations[what] = self.saturations.get(what, 0) + int(np.count_nonzero(met))
        self.counted[what] = self.counted.get(what, 0) + (met.size if of is None else of)

    def _saturate(self, y: np.ndarray, bits: int, what: str) -> np.ndarray:
        """Saturate and count what changed."""
        out = saturate(y, bits)
        self._count(what, out != y)
        return out

    def _at_limit(self, y: np.ndarray, what: str, bits: int = 16) -> np.ndarray:
        """Count what a block that saturates by itself left at the limit of its format."""
        top = 1 << bits - 1
        self._count(what, (y == top - 1) | (y == -top))
        return y


#: What runs a step; a new one is a row here.
_RUN: dict[type[Step], Callable[..., np.ndarray]] = {
    EmbedStep: GoldenModel._embed, PatchStep: GoldenModel._patches, NormStep: GoldenModel._norm,
    ReadStep: GoldenModel._read, AttendStep: GoldenModel._attend, GateStep: GoldenModel._gate,
    AddStep: GoldenModel._add, HeadStep: GoldenModel._head}
