"""The golden decoder: a whole model in exact integer arithmetic, in NumPy.

It reads nothing from the chip and knows nothing of tiles, lanes or programs; the gateware's logits
equal these bit for bit. Matrix products use float64: the sums stay below 2**53 and are exact.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

import numpy as np

from meadowlark_hdl.compute.norm_golden import add_residual, rmsnorm, sum_of_squares
from meadowlark_hdl.compute.requant_golden import requant
from meadowlark_hdl.compute.rope_golden import rope
from meadowlark_hdl.compute.softmax_golden import (MASKED, output_scale, probabilities, saturated,
                                                   scores)
from meadowlark_hdl.compute.swiglu_golden import swiglu
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sampler_golden import Sampling, sample
from meadowlark_hdl.fixed import saturate

from ..errors import UserError
from .quantise import QuantLayer, QuantLinear, QuantModel, QuantNorm

#: Format of the gate in swiglu_golden, which saturates to it by itself: here it is only counted.
GATE_BITS = 18
#: Called with (node, layer or -1, int array) as a forward pass goes.
Tracer = Callable[[str, int, np.ndarray], None]


class GoldenModel:
    """Bit-exact decoder with a KV cache.

    Parameters
    ----------
    qm : QuantModel
        The model; its arrays are used, not copied.
    context : int, optional
        Positions of the cache, at most qm.context (the default).
    trace : callable, optional
        Gets the nodes of each pass: "embedding", "x1", "q", "k", "v" (as stored: int16, int8,
        int8, [n, heads, head_pad]), "attention", "residual", "x2", "h", "final", "logits".

    Attributes
    ----------
    keys, values : int8[layers, kv_heads, context, head_pad]
        The cache as the chip holds it in memory.
    length : int
        Positions that the cache holds.
    saturations, counted : dict[str, int]
        Values that met the limit of their format, and all values, by node.
    """

    #: Tokens handled at once; bounds the memory of the scores. The result does not depend on it.
    PASS = 256
    #: Weights up to which float64 copies are kept (512 MB); larger models convert at each use,
    #: from codes of int8 or from int32 that are kept where weights are blocks.
    KEEP = 1 << 26
    #: Weights converted at once: what a processor's cache holds in float64.
    AT_ONCE = 1 << 16

    def __init__(self, qm: QuantModel, *, context: int | None = None,
                 trace: Tracer | None = None) -> None:
        self.qm = qm
        self.context = qm.context if context is None else context
        if not 1 <= self.context <= qm.context:
            raise ValueError(f"context must be in 1..{qm.context}, not {context!r}")
        shape = (len(qm.layers), qm.kv_heads, self.context, qm.head_pad)
        self.keys, self.values = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
        self.length = 0
        self.saturations: dict[str, int] = {}
        self.counted: dict[str, int] = {}
        self._trace = trace or (lambda *_: None)
        self._small = qm.parameters <= self.KEEP
        self._kept: dict[int, np.ndarray] = {}

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

    def generate(self, tokens: Sequence[int], sampling: Sampling = Sampling(), *,
                 max_new: int | None = None, stop_ids: Collection[int] | None = None,
                 start_pos: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Take a prompt, then draw tokens one by one.

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
        position, drawn = start_pos + len(tokens), 0
        while max_new is None or drawn < max_new:
            token = sample(logits, sampling, position)
            drawn += 1
            yield token, logits
            if token in stops or position == self.context or drawn == max_new:
                return
            logits = self.forward([token], position)
            position += 1

    # ---- One pass, in the order of the program

    def _pass(self, tokens: np.ndarray, pos0: int) -> np.ndarray:
        """tokens[n] at pos0.. -> residual int64[n, hidden]; writes the cache."""
        qm, n = self.qm, len(tokens)
        e = qm.embedding
        # written to an empty residual: only its saturation is left of the addition
        r = add_residual(0, requant(e.weights(tokens), e.mant[tokens, None], e.shift[tokens, None]))
        self._trace("embedding", -1, r)
        table = qm.rope[pos0:pos0 + n, None].astype(np.int64)   # [n, 1, head_pad/2, 2]
        cos, sin = table[..., 0], table[..., 1]
        for i, layer in enumerate(qm.layers):
            x = self._norm(r, layer.norm1, "x1", i)
            q = self._rotated(x, layer.q, cos, sin, layer.q_rope_shift, 16, "q", i)
            k = self._rotated(x, layer.k, cos, sin, layer.k_rope_shift, 8, "k", i)
            v = self._saturate(self._linear(x, layer.v), 8, "v").reshape(k.shape)
            self._trace("v", i, v)
            self.keys[i, :, pos0:pos0 + n] = k.swapaxes(0, 1)
            self.values[i, :, pos0:pos0 + n] = v.swapaxes(0, 1)
            a = self._attention(q, layer, i, pos0)
            r = self._add(r, self._linear(a, layer.o), i)
            x = self._norm(r, layer.norm2, "x2", i)
            y = self._linear(x, layer.gate_up)
            gate = self._saturate(y[:, 0::2], GATE_BITS, "gate")
            up = self._saturate(y[:, 1::2], 16, "up")
            h = self._at_limit(swiglu(gate, up, layer.swiglu_shift), "h")
            self._trace("h", i, h)
            r = self._add(r, self._linear(h, layer.down), i)
        return r

    def _logits(self, r: np.ndarray) -> np.ndarray:
        """residual[n, hidden] -> int32[n, vocab]."""
        x = self._norm(r, self.qm.final_norm, "final", -1)
        logits = self._linear(x, self.qm.head).astype(np.int32)
        self._trace("logits", -1, logits)
        return logits

    def _norm(self, r: np.ndarray, norm: QuantNorm, node: str, layer: int) -> np.ndarray:
        x = rmsnorm(r, sum_of_squares(r), self.qm.eps, norm.gamma, norm.shift)
        self._trace(node, layer, x)
        return self._at_limit(x, node)

    def _add(self, r: np.ndarray, y: np.ndarray, layer: int) -> np.ndarray:
        r = self._at_limit(add_residual(r, y), "residual", Config.RESID_BITS)
        self._trace("residual", layer, r)
        return r

    def _linear(self, x: np.ndarray, w: QuantLinear) -> np.ndarray:
        """int16 range [n, K] -> requantised int64[n, rows]."""
        weights, step = self._weights(w), max(1, self.AT_ONCE // x.shape[1])
        acc = np.concatenate([self._product(x, weights[at:at + step].T)
                              for at in range(0, len(weights), step)], axis=1)
        return requant(acc, w.mant, w.shift, 0 if w.bias is None else w.bias)

    def _weights(self, w: QuantLinear) -> np.ndarray:
        """[rows, K], as they are kept."""
        if id(w.codes) not in self._kept:       # self.qm keeps codes alive, so its id is its own
            weights = w.weights()
            self._kept[id(w.codes)] = weights.astype(np.float64) if self._small else weights
        return self._kept[id(w.codes)]

    @staticmethod
    def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Exact matrix product of integers -> int64; a: 16 bits at most, b: 18 bits."""
        # |a| <= 2**15 (int16, or a probability), |b| <= 2**17: no partial sum needs 54 bits
        assert a.shape[-1] << 32 < 1 << 53
        return (a.astype(np.float64) @ b.astype(np.float64, copy=False)).astype(np.int64)

    def _rotated(self, x, w: QuantLinear, cos, sin, shift: int, bits: int, node: str, layer: int,
                 ) -> np.ndarray:
        """x[n, hidden] -> rotated heads [n, heads, head_pad]."""
        y = self._linear(x, w).reshape(len(x), -1, self.qm.head_pad)
        # 32 bits hold the rotated pair: saturating afterwards is the same, and can be counted
        a, b = rope(y[..., 0::2], y[..., 1::2], cos, sin, shift, 32)
        y = self._saturate(np.stack([a, b], axis=-1).reshape(y.shape), bits, node)
        self._trace(node, layer, y)
        return y

    def _attention(self, q: np.ndarray, layer: QuantLayer, i: int, pos0: int) -> np.ndarray:
        """q[n, heads, head_pad] -> int16 range [n, heads*head_pad]; keys and values are cached.

        A query sees the keys up to its own position, and the maximum is over just those.
        """
        n, heads, pad = q.shape
        ctx = pos0 + n
        hidden = np.arange(ctx) > np.arange(pos0, ctx)[:, None]
        group = heads // self.qm.kv_heads
        out = np.empty((n, heads, pad), np.int64)
        for g in range(self.qm.kv_heads):
            k = self.keys[i, g, :ctx].astype(np.float64)
            v = self.values[i, g, :ctx].astype(np.float64)
            for h in range(g * group, (g + 1) * group):
                acc = self._product(q[:, h], k.T)
                s = scores(acc, layer.score_shift)
                self._count("scores", saturated(acc, layer.score_shift)[~hidden])
                p, total = probabilities(np.where(hidden, MASKED, s))
                mant, shift = output_scale(total, int(layer.v_mant[g]), int(layer.v_shift[g]))
                y = requant(self._product(p, v), mant[:, None], shift[:, None])
                out[:, h] = self._saturate(y, 16, "attention")
        out = out.reshape(n, -1)
        self._trace("attention", i, out)
        return out

    # ---- Counting saturations

    def _count(self, node: str, met: np.ndarray) -> None:
        self.saturations[node] = self.saturations.get(node, 0) + int(np.count_nonzero(met))
        self.counted[node] = self.counted.get(node, 0) + met.size

    def _saturate(self, y: np.ndarray, bits: int, node: str) -> np.ndarray:
        """Saturate and count what changed."""
        out = saturate(y, bits)
        self._count(node, out != y)
        return out

    def _at_limit(self, y: np.ndarray, node: str, bits: int = 16) -> np.ndarray:
        """Count what a block that saturates by itself left at the limit of its format."""
        top = 1 << bits - 1
        self._count(node, (y == top - 1) | (y == -top))
        return y
