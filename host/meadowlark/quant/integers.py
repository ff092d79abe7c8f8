"""An integer model as bytes, in the safetensors format: what the cache keeps.

Only what quantising found is in it. Name, tokenizer and chat template are those of the model at
hand.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import safetensors.numpy

from meadowlark_hdl.isa import Mode
from meadowlark_hdl.weights.block_golden import BLOCK

from ..models.checkpoint import Model
from .quantise import QuantLayer, QuantLinear, QuantModel, QuantNorm
from .shapes import Shapes

_PARTS = {"norm1": QuantNorm, "q": QuantLinear, "k": QuantLinear, "v": QuantLinear,
          "o": QuantLinear, "norm2": QuantNorm, "gate_up": QuantLinear, "down": QuantLinear}
_ENDS = {"embedding": QuantLinear, "final_norm": QuantNorm, "head": QuantLinear}
_TYPES = {"codes": "int8", "mant": "uint16", "shift": "uint8", "bias": "int32", "scale": "float16",
          "minimum": "float16", "gamma": "int16", "v_mant": "uint16", "v_shift": "uint8",
          "rope": "int16"}


def _of_model(model: Model) -> dict[str, Any]:
    """Fields of a QuantModel that are the model's."""
    return dict(name=model.name, tokenizer_json=model.tokenizer.json, bos_id=model.bos_id,
                stop_ids=model.stop_ids, chat=model.chat)


def _objects(qm: QuantModel) -> Iterator[tuple[str, object]]:
    """All that has fields, and what stands before their names."""
    yield "", qm
    for name in _ENDS:
        yield f"{name}.", getattr(qm, name)
    for i, layer in enumerate(qm.layers):
        yield f"layers.{i}.", layer
        for name in _PARTS:
            yield f"layers.{i}.{name}.", getattr(layer, name)


def _check(q: QuantLinear) -> None:
    """ValueError unless its arrays belong together."""
    rows, columns = q.codes.shape
    blocks = None if q.mode == Mode.INT8 else (rows, columns // BLOCK)
    for name, shape in (("mant", (rows,)), ("shift", (rows,)),
                        ("bias", None if q.bias is None else (rows,)), ("scale", blocks),
                        ("minimum", blocks if q.mode == Mode.Q4_1 else None)):
        value = getattr(q, name)
        if shape != (None if value is None else value.shape):
            raise ValueError(f"{name} of {rows} rows and {columns} columns is another")


def dump(qm: QuantModel) -> bytes:
    """A model as bytes; equal models give equal bytes."""
    tensors: dict[str, np.ndarray] = {}
    numbers: dict[str, int | None] = {"layers": len(qm.layers)}
    same: dict[str, str] = {}           # of two names for one array, the later and the earlier
    names: dict[int, str] = {}
    for before, part in _objects(qm):
        for field in fields(part):      # type: ignore[arg-type]
            name, value = before + field.name, getattr(part, field.name)
            if isinstance(value, np.ndarray):
                if id(value) in names:
                    same[name] = names[id(value)]
                else:
                    names[id(value)] = name
                    tensors[name] = np.ascontiguousarray(value)
            elif isinstance(value, int) or value is None and name not in ("bos_id", "chat"):
                numbers[name] = None if value is None else int(value)
    meta = json.dumps({"numbers": numbers, "same": same}, sort_keys=True)
    return safetensors.numpy.save(tensors, {"meadowlark": meta})


def load(raw: bytes, model: Model, weights: str) -> QuantModel:
    """Inverse of :func:`dump`.

    Parameters
    ----------
    raw : bytes
    model : Model
        What it was made from, or its outline.
    weights : str
        How, see :func:`meadowlark.quant.quantise.quantise`.

    Raises
    ------
    ValueError
        It is no such thing, or of another model.
    """
    try:
        tensors = safetensors.numpy.load(raw)
        header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
        meta = json.loads(header["__metadata__"]["meadowlark"])
        numbers = meta["numbers"]
        tensors |= {name: tensors[other] for name, other in meta["same"].items()}
        for name, value in tensors.items():
            if value.dtype != _TYPES[name.rpartition(".")[2]]:
                raise ValueError(f"{name} is {value.dtype}")
        for name, value in numbers.items():
            if value is not None and type(value) is not int:
                raise ValueError(f"{name} is {value!r}")

        def make(cls: type, before: str, **known: Any) -> Any:
            for field in fields(cls):
                name = before + field.name
                if field.name not in known:
                    known[field.name] = tensors[name] if name in tensors else numbers[name]
            if cls is QuantLinear:
                known["mode"] = Mode(known["mode"])
            return cls(**known)

        layers = tuple(
            make(QuantLayer, f"layers.{i}.", **{
                name: make(cls, f"layers.{i}.{name}.") for name, cls in _PARTS.items()})
            for i in range(len(model.layers)))
        found = make(QuantModel, "", **_of_model(model), layers=layers,
                     tied=bool(numbers["tied"]), **{
                         name: make(cls, f"{name}.") for name, cls in _ENDS.items()})
        for _, part in _objects(found):
            if isinstance(part, QuantLinear):
                _check(part)
        if Shapes.of_integers(found) != Shapes.of_model(model, weights):
            raise ValueError("another shape")
        return found
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no integers of a model: {error}") from error
