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
from meadowlark_hdl.weights.modes import BLOCK, MODES

from ..models.checkpoint import Model
from .plan import AttendStep, GateStep, NormStep, PatchStep, Plan, ReadStep
from .quantise import (QuantAttend, QuantGate, QuantLinear, QuantModel, QuantNorm,
                       QuantPatches)
from .shapes import Shapes

_TYPES = {"codes": "int8", "mant": "uint16", "shift": "uint8", "bias": "int32", "scale": "float16",
          "minimum": "float16", "gamma": "int16", "v_mant": "uint16", "v_shift": "uint8",
          "rope": "int16", "phi": "int8"}


def _of_model(model: Model) -> dict[str, Any]:
    """Fields of a :class:`QuantModel` that are the model's."""
    return dict(name=model.name, tokenizer_json=model.tokenizer.json, bos_id=model.bos_id,
                stop_ids=model.stop_ids, chat=model.chat, pictures=model.pictures)


def _kinds(steps: Plan) -> dict[str, type]:
    """Name -> what the numbers of that name are."""
    found: dict[str, type] = {m.name: QuantLinear for m in steps.every_matrix}
    for step_type, kind in ((NormStep, QuantNorm), (ReadStep, QuantNorm), (AttendStep, QuantAttend),
                            (GateStep, QuantGate), (PatchStep, QuantPatches)):
        found |= dict.fromkeys((step.name for step in steps.of(step_type)), kind)
    return found | {norm.op.out: QuantNorm for norm in steps.norms}


def _check(qm: QuantModel) -> None:
    """ValueError unless its arrays have the shapes of its plan."""
    steps, numbers = qm.plan, qm.numbers
    wanted = [("rope", qm.rope, (len(steps.tables), qm.context, qm.head_pad // 2, 2))]
    for m in steps.every_matrix:
        q: QuantLinear = numbers[m.name]
        blocks = (m.rows, m.columns // BLOCK)
        wanted += [(f"{m.name}.{name}", getattr(q, name), shape) for name, shape in (
            ("codes", (m.rows, m.columns)), ("mant", (m.rows,)), ("shift", (m.rows,)),
            ("bias", (m.rows,) if m.biases else None),
            *((half, blocks if half in MODES[q.mode].halves else None)
              for half in ("scale", "minimum")))]
    wanted += [(step.name, numbers[step.name].gamma, (qm.hidden,))
               for step in steps.of(NormStep, ReadStep)
               if isinstance(step, ReadStep) or step.matrix is None]
    wanted += [(norm.op.out, numbers[norm.op.out].gamma, (norm.width,)) for norm in steps.norms]
    wanted += [(step.name, getattr(numbers[step.name], name), (step.op.kv_heads,))
               for step in steps.attends for name in ("v_mant", "v_shift")]
    wanted += [(step.name, numbers[step.name].phi,
                (step.op.kv_heads,) if numbers[step.name].window else None)
               for step in steps.attends]
    for name, value, shape in wanted:
        if shape != (None if value is None else value.shape):
            raise ValueError(f"{name} has another shape")


def _objects(qm: QuantModel) -> Iterator[tuple[str, object]]:
    """All that has fields, and what stands before their names."""
    yield "", qm
    for name, numbers in qm.numbers.items():
        yield f"{name}.", numbers


def dump(qm: QuantModel) -> bytes:
    """A model as bytes; equal models give equal bytes."""
    tensors: dict[str, np.ndarray] = {}
    numbers: dict[str, int | None] = {}
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
            elif isinstance(value, int) or value is None and name not in ("bos_id", "chat",
                                                                        "pictures"):
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

        shapes = Shapes.of_model(model, weights, head_pad=2 * tensors["rope"].shape[2])
        steps = shapes.plan
        found = make(QuantModel, "", **_of_model(model), plan=steps, numbers={
            name: make(kind, f"{name}.") for name, kind in _kinds(steps).items()})
        _check(found)
        if Shapes.of_integers(found) != shapes:
            raise ValueError("kept in another way")
        return found
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError,
            IndexError) as error:
        raise ValueError(f"no integers of a model: {error}") from error
