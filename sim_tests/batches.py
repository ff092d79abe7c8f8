"""Tokens of several sequences: one after the other, and what a batch of them needs."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
from meadowlark.compile.image import Image
from meadowlark.run.targets import golden_core
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import Place
from meadowlark_hdl.isa_golden import GoldenCore


def alone_and_together(image: Image, config: Config, seed: int, sequences: int, longest: int,
                       ) -> tuple[GoldenCore, list[np.ndarray], GoldenCore, list[int], list[Place]]:
    """Sequences of random lengths, up to ``longest``, each with a cache of its own, and one token
    more of each.

    Returns
    -------
    alone : GoldenCore
        Has taken them one after the other, these tokens too.
    logits : list of int32[vocab]
        What came of them.
    together : GoldenCore
        Has the same caches, but without these tokens.
    tokens, places : list
        These, and where they belong.
    """
    rng = np.random.default_rng(seed)
    begin, end = len(image.memory), image.needs["memory_bytes"]     # of the cache of the addresses
    room = end - begin
    image = replace(image, needs=image.needs | {"memory_bytes": begin + sequences * room})
    alone, together = (golden_core(image, config, seed) for _ in range(2))
    tokens, places, logits, kept = [], [], [], []
    for k in range(sequences):
        length = int(rng.integers(1, longest))
        *before, token = rng.integers(0, image.model_regs["vocab"], length + 1).tolist()
        alone.forward(before)
        together.memory[begin + k * room:end + k * room] = alone.memory[begin:end]
        logits.append(alone.forward([token], length))
        kept.append(alone.memory[begin:end].copy())
        tokens.append(token)
        places.append(Place(k * room // config.W, length))
    alone.memory[begin:] = np.concatenate(kept)
    return alone, logits, together, tokens, places
