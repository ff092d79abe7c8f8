"""Pictures made of noise: what the scales of an encoder of images are measured on.

They fit any model, whatever it was trained on, and no pictures of others are needed: noise of
every coarseness, contrast and brightness, as pictures of the world have them.
"""
from __future__ import annotations

import numpy as np

from ..models.pictures import Pictures


def own_pictures(pictures: Pictures, count: int, *, seed: int = 1) -> list[np.ndarray]:
    """float32[tokens, width] of each of ``count`` pictures, see
    :meth:`meadowlark.models.pictures.Pictures.rows`."""
    rng = np.random.default_rng(seed)
    side, channels = pictures.side, pictures.channels
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (pictures.mean, pictures.std))
    out = []
    for _ in range(count):
        cells = int(np.exp(rng.uniform(np.log(2), np.log(side + 1))))
        grey, colours = rng.random((1, cells, cells)), rng.random((channels, cells, cells))
        noise = grey + rng.random() * (colours - grey)
        at = np.linspace(0, cells - 1, side)
        for axis in (1, 2):
            noise = np.apply_along_axis(
                lambda line, at=at, cells=cells: np.interp(at, np.arange(cells), line), axis, noise)
        shown = 0.5 + rng.uniform(0.3, 4) * (noise - 0.5) + rng.uniform(-0.5, 0.5)
        values = np.clip(shown, 0, 1) * pictures.top
        out.append(pictures.rows(((values - mean) / std).astype(np.float32)))
    return out
