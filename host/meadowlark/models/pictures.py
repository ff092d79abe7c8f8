"""Pictures -> what an encoder of images reads, as the image processors of transformers make it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, brief
from .metadata import TAKE_OUT, Metadata

if TYPE_CHECKING:
    from PIL.Image import Image

#: Most pixels of a side, and most classes: beyond any model.
MAX_SIDE, MAX_LABELS = 1 << 12, 1 << 19
#: Entries of preprocessor_config.json that change nothing here.
_HARMLESS = ("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb",
             "_*", "data_format", "input_data_format", "return_tensors", "device",
             "disable_grouping", "do_pad")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What an encoder is shown.

    A picture is resized, its middle cut out, its values multiplied by ``rescale``, less ``mean``
    and divided by ``std`` of their channel, and cut into patches of ``patch`` x ``patch`` pixels.

    side: of the picture that the model reads, which is square, in pixels. channels: 1 or 3, red
    first; flipped: blue first. patch: divides side. others: tokens without a patch, which stand
    behind those that have one. resize: (height, width), or (pixels of the shorter side,), or ().
    resample: filter of that, as Pillow numbers it. crop: pixels of a side, 0 if it is not cut.
    top: the largest value of a pixel before mean and std. labels: names of the classes.
    """
    side: int
    channels: int
    patch: int
    others: int
    labels: tuple[str, ...]
    resize: tuple[int, ...] = ()
    resample: int = 2
    crop: int = 0
    rescale: float = 1 / 255
    top: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flipped: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} must have {self.channels} numbers")
        if self.channels not in (1, 3) or self.patch < 1 or self.side % self.patch or \
                self.side < 1 or self.others < 0 or not self.labels or min(self.std) <= 0 \
                or not self.top > 0 or len(self.resize) > 2 or min(self.resize, default=1) < 1:
            raise ValueError(f"pictures that cannot be: {self}")

    @property
    def tokens(self) -> int:
        """Of a picture."""
        return (self.side // self.patch) ** 2 + self.others

    @property
    def width(self) -> int:
        """Values of a patch."""
        return self.channels * self.patch ** 2

    @property
    def largest(self) -> float:
        """Largest magnitude of a value."""
        return max(max(mean, self.top - mean) / std for mean, std in zip(self.mean, self.std))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Pictures:
        """Inverse of :meth:`as_dict`. ValueError, TypeError or KeyError for anything else."""
        made: dict[str, Any] = {
            f.name: tuple(v) if isinstance(v := values[f.name], list) else v for f in fields(cls)}
        for name, value in made.items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(v, str if name == "labels" else (int, float)) for v in numbers):
                raise ValueError(f"{name} is {value!r}")
        return cls(**made)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Values of pixels float32[channels, side, side] -> what tokens are given,
        float32[tokens, width]: of each patch channel, line, pixel; of other tokens zeros."""
        n, p = self.side // self.patch, self.patch
        patches = values.reshape(self.channels, n, p, n, p).transpose(1, 3, 0, 2, 4)
        return np.concatenate([patches.reshape(n * n, -1),
                               np.zeros((self.others, self.width), np.float32)])

    def open(self, path: str | Path) -> np.ndarray:
        """A file that Pillow reads, PNG or JPEG, -> :meth:`rows`.

        Raises
        ------
        UserError
            It cannot be read, has another size where nothing is resized, or values that the model
            was not made for.
        """
        from PIL import Image
        try:
            with Image.open(path) as image:
                picture = self._cut(image.convert("L" if self.channels == 1 else "RGB"), path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"the image {path} cannot be read ({brief(error)}); give a PNG or "
                            "JPEG file") from error
        pixels = np.asarray(picture, np.float32).reshape(self.side, self.side, -1)
        if self.flipped:
            pixels = pixels[..., ::-1]
        pixels = pixels * np.float32(self.rescale)
        if (most := float(pixels.max())) > self.top * 1.001:
            raise UserError(
                f"the image {path} has pixels of {most / self.rescale:g}, and the model was made "
                f"for 0 to {self.top / self.rescale:g} (rescale_factor in its "
                "preprocessor_config.json); scale the image")
        values = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return self.rows(values.transpose(2, 0, 1))

    def _cut(self, image: Image, path: str | Path) -> Image:
        """Resized, and its middle cut out."""
        width, height = image.size
        if self.resize:
            if len(self.resize) == 2:
                height, width = self.resize
            else:                       # the longer side is rounded down, as transformers does
                short = min(width, height)
                height, width = (self.resize[0] * side // short for side in (height, width))
            image = image.resize((width, height), self.resample)
        if self.crop:
            left, top = (width - self.crop) // 2, (height - self.crop) // 2
            image = image.crop((left, top, left + self.crop, top + self.crop))
        if image.size != (self.side, self.side):
            raise UserError(f"the image {path} has {image.size[0]} x {image.size[1]} pixels, and "
                            f"the model takes {self.side} x {self.side} without resizing; give "
                            "one of that size")
        return image

    def codes(self, rows: np.ndarray, fraction: int) -> np.ndarray:
        """Values of :meth:`rows` with so many fractional bits: int16[tokens, width]."""
        return np.clip(np.rint(rows * 2.0**fraction), -32768, 32767).astype(np.int16)


def shape_of(config: Metadata) -> dict[str, Any]:
    """side, patch, channels and labels, as config.json has them."""
    side, patch = (config.whole(key, most=MAX_SIDE) for key in ("image_size", "patch_size"))
    channels = config.whole("num_channels", 3)
    if side % patch or channels not in (1, 3):
        raise config.refuse(f"images of {channels} channels and {side} pixels in patches of {patch}"
                            " are not supported", "use a checkpoint with 1 or 3 channels")
    named = config.table("id2label").values
    count = len(named) or config.whole("num_labels", 2, most=MAX_LABELS)
    return dict(side=side, patch=patch, channels=channels,
                labels=tuple(brief(named.get(str(i), i)) for i in range(count)))


def read_pictures(folder: Path, side: int, patch: int, channels: int, labels: tuple[str, ...],
                  *, others: int) -> Pictures:
    """What preprocessor_config.json says; the rest is config.json's, see :func:`shape_of`.

    Raises
    ------
    UserError
        It is missing, or has something that is not supported, by name.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        raise UserError(f"{path} is missing, which says what becomes of a picture; get it from "
                        "where the model came from")
    config, unused = Metadata.from_json(path), [*map(str, _HARMLESS)]
    size = crop = ()
    if config.flag("do_resize", True):
        size = _sides(config, "size", side)
    else:
        unused.append("size")
    if config.flag("do_center_crop", False):
        crop = _sides(config, "crop_size", side)
    else:
        unused.append("crop_size")
    if len(set(crop)) > 1:
        raise config.refuse("crop_size is not square, which is not supported", "use another model")
    scaled, normed = config.flag("do_rescale", True), config.flag("do_normalize", True)
    factor, resample = config.number("rescale_factor", 1 / 255), config.whole(
        "resample", 2, least=0, most=5)
    mean, std = (_of_channels(config, name, channels, 0.5) for name in ("image_mean", "image_std"))
    flipped = config.flag("do_flip_channel_order", False)
    config.refuse_unread(unused, {}, TAKE_OUT)
    return Pictures(
        side=side, channels=channels, patch=patch, others=others, labels=labels, resize=size,
        resample=resample, crop=crop[0] if crop else 0, rescale=factor if scaled else 1.0,
        top=1.0 if scaled else 255.0, mean=mean if normed else (0.0,) * channels,
        std=std if normed else (1.0,) * channels, flipped=flipped)


def _sides(config: Metadata, key: str, default: int) -> tuple[int, ...]:
    """An entry that is one number, or an object of height and width or of shortest_edge."""
    if not isinstance(config.values.get(key), dict):
        return (config.whole(key, default, most=MAX_SIDE),) * 2
    table = config.table(key)
    names = ("shortest_edge",) if table.has("shortest_edge") else ("height", "width")
    return tuple(table.whole(name, most=MAX_SIDE) for name in names)


def _of_channels(config: Metadata, key: str, channels: int, default: float) -> tuple[float, ...]:
    """A list of numbers, one a channel."""
    found = config.entries(key, [default] * channels)
    good = len(found) == channels and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6 for v in found)
    if not good or key == "image_std" and min(found) < 1e-6:
        raise config.refuse(f"{key} must be a list of {channels} numbers, of image_std above 0")
    return tuple(map(float, found))
