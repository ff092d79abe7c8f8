"""Golden model of what a core keeps of tokens: activations, scratch memory, residual."""
from __future__ import annotations

import numpy as np

from .compute.norm_golden import add_residual, sum_of_squares
from .control.fetch_golden import need
from .control.sequencer_golden import Pass
from .fixed import saturate
from .isa import Instruction, Sink
from .runs_golden import GoldenRuns


class GoldenMemories(GoldenRuns):
    """Where results of an instruction go, and what of them is saturated."""
    _pass: Pass

    def _fill_memories(self, rng: np.random.Generator) -> None:
        """All of them full of noise."""
        config, model = self.config, self.model
        self.slots = model["blocks"] * config.P         # tokens of a pass, at most
        self._act = rng.integers(-1 << 15, 1 << 15, (config.P, config.act_words * config.W),
                                 np.int16)
        self._scratch = rng.integers(-128, 128, (self.slots, model["token_words"] * config.W),
                                     np.int8)
        values = rng.integers(-1 << 26, 1 << 26, (self.slots, model["stride"]))
        self._residual, self._beside = np.split(values, [model["hidden"]], axis=1)
        self._sums = rng.integers(0, 1 << 63, self.slots, np.uint64)    # of its squares

    def _words(self, slots: np.ndarray, element: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Where ``count`` elements lie, from one of the block's on, for token slots int[n]:
        indices (lane, element), which broadcast to [n, count]."""
        block, lane = np.divmod(slots[:, None], self.config.P)
        at = block * self.model["block_words"] * self.config.W + element + np.arange(count)
        need(int(at.max()) < self._act.shape[1], "activations beyond their memory")
        return lane, at

    def _read(self, slots: np.ndarray, word: int, count: int) -> np.ndarray:
        """int16[n, count], from a word of each slot's block on."""
        return self._act[self._words(slots, word * self.config.W, count)]

    def _write(self, i: Instruction, slots: np.ndarray, element: int, wide: np.ndarray) -> None:
        """int16[n, count], or int8, of wider values, from an element of each slot's block on."""
        self._act[self._words(slots, element, wide.shape[1])] = self._saturated(
            wide, 16 if i["wide"] else 8)

    def _write_scratch(self, slots: np.ndarray, element: int, wide: np.ndarray) -> None:
        """int8[n, count] of wider values, from an element of each slot's part on."""
        end = element + wide.shape[1]
        need(end <= self._scratch.shape[1], "values beyond a token's part of scratch memory")
        self._scratch[slots, element:end] = self._saturated(wide, 8)

    def _saturated(self, wide: np.ndarray, bits: int) -> np.ndarray:
        y = saturate(wide, bits)
        self._counts["saturations"] += int(np.count_nonzero(y != wide))
        return y

    def _of_pass(self, i: Instruction) -> np.ndarray:
        """Token slots of an instruction: all of the pass, or with ``last`` those of its last
        block."""
        n, P = self._pass.n, self.config.P
        return np.arange((n - 1) // P * P if i["last"] else 0, n)

    def _write_residual(self, i: Instruction, slots: np.ndarray, y: np.ndarray) -> None:
        """Rows y[slots, rows] for its first values, or for the first ones beside it."""
        beside, n = i["sink"] == Sink.BESIDE, y.shape[1]
        to = self._beside if beside else self._residual
        need(n <= to.shape[1], f"rows beyond {'values beside ' if beside else ''}the residual")
        r = to[slots, :n] = add_residual(0 if beside else to[slots, :n], y)
        if i["stats"]:
            self._sums[slots] = sum_of_squares(r)
