"""Golden model of runs: the passes that the Sequencer makes of a prompt, and then of each token."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .compute.softmax_golden import of_field, peaks
from .config import Config
from .control.fetch_golden import ProgramError, need
from .control.sequencer_golden import (Pass, Place, batch_pass, context_limit, draft_pass,
                                       prompt_passes, token_ids)
from .draft.drafter_golden import draft
from .draft.run_golden import turns
from .draft.table_lookup_golden import BUCKET_BYTES, SLOTS
from .isa import Instruction, Op, unified_of
from .sampler.sampler_golden import Sampling, sample


class GoldenRuns(ABC):
    """What a core does with tokens, from what it makes of a pass (:meth:`run`).

    config, model, memory: as of :class:`.isa_golden.GoldenCore`. rows, redone: of scores with a
    unified maximum, and those of them that have another.
    """
    memory: np.ndarray

    def __init__(self, config: Config, model: Mapping[str, int], memory_bytes: int) -> None:
        self.config, self.model = config, model
        table = model["draft_addr"] * config.W + BUCKET_BYTES * model["draft_buckets"]
        need(table <= memory_bytes, "model registers that cannot be: a table of drafts")
        self._text = np.zeros(config.context, np.int64)     # the token memory

    def clear(self) -> None:
        """Set the counters to 0."""
        self.rows = self.redone = 0
        self._counts = dict.fromkeys(("bus_write_words", "passes", "instructions", "saturations",
                                      "score_saturations", "drafted", "accepted"), 0)

    def _peaks(self, qk: Instruction, svs: Sequence[Instruction], found: np.ndarray) -> np.ndarray:
        """What stands for the maximum of each row of scores: int64[heads, slots, 1]."""
        phi, window = of_field(unified_of(qk))
        need(not window or self.config.unified, "a unified maximum on a core without")
        for sv in svs if window else ():
            need(sv["op"] == Op.SV and not sv["add"] and sv["rows"] >= qk["rows"]
                 and qk["row_beats"] <= max(
                     self.config.ACC_TURN, sv["row_beats"] * self.config.sv_cycles),
                "an SV that could read scores before they are there")
        peak, good = peaks(found.max(axis=-1, keepdims=True), phi, window)
        if window:
            self.rows, self.redone = self.rows + good.size, self.redone + np.count_nonzero(~good)
        return peak

    @abstractmethod
    def run(self, p: Pass, tokens: Sequence[int]) -> np.ndarray | None:
        """A pass -> logits of its last token, or of each, int32[1 or n, vocab]; None if it is not
        final. tokens: its n ids."""

    def forward(self, tokens: Sequence[int], start_pos: int = 0, base: int = 0) -> np.ndarray:
        """Take tokens at positions start_pos.. -> logits of the last one, int32[vocab].

        base: of their cache, see :class:`.control.sequencer_golden.Place`. The cache below
        start_pos is kept. Cut into passes as the Sequencer does: one token is
        a decode pass.

        Raises
        ------
        ValueError
            No token, or one beyond the vocabulary.
        """
        logits = self._take(tokens, start_pos, base, final=True)
        assert logits is not None       # the last pass is final
        return logits[0]

    def _take(self, tokens: Sequence[int], start_pos: int, base: int,
              final: bool) -> np.ndarray | None:
        """Passes over tokens, see :meth:`forward`; final: the last one has logits."""
        tokens = token_ids(tokens, self.model["vocab"])
        try:
            passes = list(prompt_passes(self.config, self.model, start_pos, len(tokens), final))
        except ValueError as error:
            raise ProgramError(str(error)) from error
        logits = None
        for p in passes:
            at = p.pos0 - start_pos
            logits = self.run(replace(p, base=base), tokens[at:at + p.n])
        return logits

    def check(self, tokens: Sequence[int], start_pos: int = 0, base: int = 0) -> np.ndarray:
        """Take a token and drafts of those behind it, 1..P in all, in one pass -> logits of each,
        int32[n, vocab].

        Raises
        ------
        ValueError
            No token, too many, or one beyond the vocabulary.
        """
        tokens = token_ids(tokens, self.model["vocab"])
        need(len(tokens) <= self.config.P, "more drafts than lanes")
        return self._each(tokens, replace(
            draft_pass(self.config, self.model, start_pos, len(tokens)), base=base))

    def batch(self, tokens: Sequence[int], places: Sequence[Place], before: int = 0) -> np.ndarray:
        """Take 1..P tokens, each to a place of its own, in one pass -> logits of each,
        int32[n, vocab]. Keys before each place are those of its sequence. before: passes of the
        same run, see :func:`.control.sequencer_golden.batch_pass`.

        Raises
        ------
        ValueError
            Not as many tokens as places, none or too many, or one beyond the vocabulary.
        """
        tokens = token_ids(tokens, self.model["vocab"])
        need(len(tokens) == len(places) <= self.config.P, "no place for each of 1..P tokens")
        return self._each(tokens, batch_pass(self.config, self.model, places, before))

    def batches(self, tokens: Sequence[int], places: Sequence[Place], draws: Sequence[Sampling], *,
                max_new: int, stop_ids: Collection[int] = (),
                ) -> Iterator[list[tuple[int, np.ndarray]]]:
        """A run of a batch: passes that each draw a token for each sequence, and go on with it.
        Ends after ``max_new`` passes, with the pass that draws a stop id, or where the token memory
        ends.

        tokens, places: of the first pass. draws: of each sequence, alike but for the seed.

        Yields
        ------
        list of (token, logits int32[vocab])
            Of a pass, for each sequence.
        """
        self.clear()
        tokens, limit = list(tokens), context_limit(self.config)
        for before in range(min(max_new, limit + 1 - len(tokens))):
            rows = self.batch(tokens, places, before)
            tokens = [sample(row, draw, before + place.position + 1)
                      for row, draw, place in zip(rows, draws, places, strict=True)]
            yield list(zip(tokens, rows, strict=True))
            if not set(tokens).isdisjoint(stop_ids):
                return

    def _each(self, tokens: Sequence[int], p: Pass) -> np.ndarray:
        logits = self.run(p, tokens)
        assert logits is not None
        return logits

    def generate(self, tokens: Sequence[int], sampling: Sampling = Sampling(), *, max_new: int,
                 stop_ids: Collection[int] = (), start_pos: int = 0,
                 draft_most: int = 0, draft_price: int = 0,
                 base: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """A run: take a prompt, then draw tokens. Ends after ``max_new``, a stop id, or the first
        token without a place in the core's memories; with ``max_new`` 0 it only fills the cache.

        Up to ``draft_most`` drafts begin the pass of a generated token, see
        :func:`.draft.run_golden.turns`, if the core has a drafter, which takes text below
        ``start_pos`` from earlier runs. base: of the sequence's cache.

        Yields
        ------
        token : int
        logits : int32[vocab]
            What it was drawn from.
        """
        self.clear()
        limit, taken, rows = context_limit(self.config), start_pos, list[np.ndarray]()
        self._text[start_pos:start_pos + len(tokens)] = tokens

        def draw(position: int, guessed: list[int]) -> Iterator[int]:
            nonlocal taken
            new = self._text[taken:position + 1].tolist()
            found = self.check([*new, *guessed], taken, base) if guessed else [
                self.forward(new, taken, base)]
            for logits in found:
                rows.append(logits)
                taken = position + len(rows)
                token = sample(logits, sampling, taken)
                self._text[taken:taken + 1] = token
                yield token
        if not max_new:
            self._take(tokens, start_pos, base, final=False)
        for turn in turns(self._text[:start_pos + len(tokens)].tolist(), draw, self._drafter,
                          most=draft_most * self.config.drafts, price=draft_price,
                          max_new=max_new, stop_ids=stop_ids, limit=limit):
            self._counts["drafted"] += len(turn.drafts)
            self._counts["accepted"] += turn.accepted
            yield from zip(turn.tokens, rows, strict=True)
            rows.clear()

    def _drafter(self, text: list[int], k: int) -> list[int]:
        """What the table says, if there is one, and the context."""
        at, buckets = self.model["draft_addr"] * self.config.W, self.model["draft_buckets"]
        table = self.memory[at:at + BUCKET_BYTES * buckets].view("<u4").reshape(-1, SLOTS)
        return draft(text, k, table if buckets else None, least=self.model["draft_least"])
