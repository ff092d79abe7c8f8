"""Pictures on a target: the class of each, and how likely it is."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..progress import Progress
from ..quant.quantise import LOGIT_FRAC
from .targets import Check, GoldenTarget, Target
from .targets import check as compare

if TYPE_CHECKING:
    from ..compile.image import Image
    from .prepare import Source


@dataclass(frozen=True, kw_only=True, eq=False)
class Classified:
    """A picture: its file, its class by number and name, the CRC of the logits, these
    (int32[classes], 12 fractional bits), and the core's counters of its run; of a golden model
    there are few."""
    file: str
    token: int
    label: str
    crc: int
    logits: np.ndarray
    counters: Mapping[str, int]

    @property
    def probabilities(self) -> np.ndarray:
        """float64[classes], their sum is 1."""
        x = np.exp((self.logits - self.logits.max()) / 2.0**LOGIT_FRAC)
        return x / x.sum()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        p = self.probabilities
        return {"file": self.file, "class": self.token, "label": self.label,
                "probability": float(p[self.token]), "probabilities": p.tolist(),
                "logits_crc": self.crc, "cycles": self.counters.get("cycles_first_token")}


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Pictures on a target.

    images: up to where the golden model differs, if the target shows no logits. labels: of all
    classes. check: what a comparison with the golden model said, or None: nothing was compared.
    speed: of the core by its counters, {} without: cycles_per_image, images_per_s, and
    mac_utilisation and bytes_per_image of what a picture needs at least.
    """
    images: list[Classified]
    labels: Sequence[str]
    check: Check | None
    speed: Mapping[str, float]


def opened(source: Source, files: Sequence[str]) -> list[np.ndarray]:
    """What each file shows an encoder: int16[tokens, width]. UserError: one cannot be read."""
    vision = source.image.vision
    assert vision is not None
    return [vision.pictures.codes(vision.pictures.open(file), vision.fraction) for file in files]


def classify(runner: Target, source: Source, files: Sequence[str], codes: Sequence[np.ndarray], *,
             always: bool = False, progress: Progress | None = None,
             ) -> Classification:
    """One run a picture, one after the other.

    A chip tells the class and a CRC of all logits. Where these have not been seen themselves they
    are those of the golden model, and the CRC says that the chip's are the same.

    Parameters
    ----------
    runner : Target
        With the model loaded.
    source : Source
        An encoder of images.
    files : sequence of str
    codes : sequence of int16[tokens, width]
        From :func:`opened`.
    always : bool
        Compare with the golden model in any case.
    progress : callable, optional
    """
    tell = progress or (lambda *_: None)
    events, counters = [], []
    for at, code in enumerate(codes):
        tell("classifying", at, len(codes))
        events.append(runner.classify(code))
        counters.append(runner.image_counters())
    verdict, seen = None, [event.logits for event in events]
    if always or any(logits is None for logits in seen):
        golden = GoldenTarget(runner.board, progress=progress)
        golden.load(source)
        wanted = [golden.classify(code) for code in codes]
        verdict = compare(events, iter(wanted), progress=progress)
        same = len(events) if verdict.bit_exact else verdict.tokens
        seen = [want.logits if logits is None and at < same else logits
                for at, (logits, want) in enumerate(zip(seen, wanted))]
    image = source.image
    assert image.vision is not None
    labels = image.vision.pictures.labels
    found = [Classified(file=file, token=event.token, label=labels[event.token], crc=event.crc,
                        logits=logits, counters=count)
             for file, event, logits, count in zip(files, events, seen, counters)
             if logits is not None]
    return Classification(images=found, labels=labels, check=verdict,
                          speed=_speed(found, image, runner.board.clock_mhz))


def _speed(found: Sequence[Classified], image: Image, mhz: float) -> dict[str, float]:
    """Of the core at a clock, by its own counters, from the start of a run to the class; {} without
    them."""
    cycles = [one.counters.get("cycles_first_token", 0) for one in found]
    if not any(cycles):
        return {}
    mean, lanes = sum(cycles) / len(cycles), image.config["W"] * image.config["P"]
    macs = image.useful_macs(pos0=0, n=image.context, final=True)
    return {"cycles_per_image": mean, "images_per_s": mhz * 1e6 / mean,
            "mac_utilisation": macs / (mean * lanes),
            "bytes_per_image": image.useful_bytes(pos0=0, n=image.context, final=True)}
