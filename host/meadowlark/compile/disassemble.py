"""Listing of a program, for people."""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING

from meadowlark_hdl.isa import (MODEL_REGS, NO_WINDOW, Field, Fn, Header, Instruction, Mode, Op,
                                Pair, Sink, Src, cap_of)

if TYPE_CHECKING:
    from .image import Image


def results(i: Instruction) -> str:
    """What becomes of an instruction's results: pair and function, sink and its bits."""
    sink = Sink(i["sink"])
    bits = {Sink.ACT: "16" if i["wide"] else "8", Sink.SCRATCH: "8"}.get(sink, "")
    return " ".join([kind(i[name]).name.lower() for kind, name in ((Pair, "pair"), (Fn, "fn"))
                     if i[name]] + ["->", sink.name.lower() + bits])


def line(i: Instruction) -> str:
    """One instruction in one line: operator, tiles, operands; what it ignores is left out.

    Addresses are in chunks (``@``), x in words, y in elements.
    """
    op = Op(i["op"])
    parts = [f"{op.name} {results(i)}" if op == Op.LINEAR else op.name]
    if i["last"]:
        parts.append("if-more" if op == Op.END else "last")
    if i["wait"]:
        parts.append("wait")
    parts += [name for name in ("add", "beside", "diagonal") if i[name] and not i["heads"]]
    if i["heads"]:
        parts.append(f"heads {i['lanes']}{' in pairs' if i['add'] else ''}")
    if op == Op.END:
        return " ".join(parts)
    if op != Op.STORE:
        source = Src(i["src"]).name.lower()
        at = "" if i["src"] == Src.STREAM else f" @{i['addr']:#x}"
        form = Mode(i["mode"]).name.lower()
        if i["header"]:
            form += f"+{Header(i['header']).name.lower()}"
        size = f"{i['rows']}x{i['row_beats']}"
        if i["src"] == Src.STREAM:
            size = f"{i['tiles']} x {size}"
            if i["last_rows"] != i["rows"]:
                size += f", last {i['last_rows']}"
        parts.append(f"{source}{at} [{size} {form}, {i['chunks']} chunks]")
    else:
        parts.append(f"@{i['addr']:#x} [{i['row_beats']} chunks a token]")
    if op in (Op.LINEAR, Op.STORE, Op.QK):
        parts.append(f"x {i['x']}")
    if i["sink"] in (Sink.ACT, Sink.SCRATCH):
        parts.append(f"y {i['y']}")
    if op == Op.SV:
        parts.append(f"mant {i['mant']}" + (" more" if i["more"] else ""))
    if cap := cap_of(i):
        parts.append(f"cap {cap}")
    if op in (Op.NORM, Op.QK, Op.SV) or i["pair"] or i["fn"] and not cap:
        parts.append(f"shift {i['shift']}")
    if op in (Op.QK, Op.SV):
        parts += [f"back {i['back']}"] if i["back"] < NO_WINDOW else []
        parts += ["ahead"] if i["ahead"] else []
    return " ".join(parts)


def listing(image: Image) -> Iterator[str]:
    """Lines of text: the model registers, then both lists, or those of all visits, with their
    addresses."""
    field: Field
    for field in MODEL_REGS:
        yield f"; {field.name:12} {image.model_regs[field.name]}"
    starts = {image.model_regs["prefill_pc"]: "prefill:", image.model_regs["decode_pc"]: "decode:"}
    starts |= {visit.pc: f"visit {k}:" for k, visit in enumerate(image.visits)}
    for pc, i in enumerate(image.instructions):
        if pc in starts:
            yield starts[pc]
        yield f"{pc:5}  {line(i)}"


def subjects(image: Image) -> list[str]:
    """What each instruction works on, in a word: a matrix of the stream, or its layer; "" where the
    image knows no name."""
    out = [""] * len(image.listed)
    W, known = image.config["W"], sorted(image.tensors, key=lambda t: t["at"])
    starts = [t["at"] for t in known]
    lists = {image.model_regs[name] for name in ("prefill_pc", "decode_pc")
             if not image.visits}           # these go on in the stream
    at, before = 0, ""
    for pc, i in enumerate(image.listed):
        if pc in lists:
            at, before = W * image.model_regs["stream_addr"], ""
        if i["src"] == Src.STREAM:
            end = at + W * ((i["tiles"] - 1) * i["chunks"] + i["last_chunks"])
            if i["op"] == Op.NORM:      # of what comes behind it
                out[pc] = f"before {known[k]['name']}" if (k := bisect_left(starts, end)) < len(
                    known) else ""
            else:
                out[pc] = before = known[k - 1]["name"] if (k := bisect_left(starts, end)) else ""
            at = end
        elif i["op"] == Op.STORE:
            out[pc] = before
        elif i["src"] == Src.KV:
            out[pc] = before.rpartition(".")[0]
    return out
