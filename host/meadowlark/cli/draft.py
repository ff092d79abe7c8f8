"""``meadowlark draft``."""
from __future__ import annotations

import re
import time
from typing import Any

import click

from ..errors import UserError
from ..files import check_outputs, read_text, write_atomic
from .options import json_option
from .terminal import Progress, say, show, write_json

_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}


def _bytes(text: str) -> int:
    """"300k" -> 300,000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)B?", text)
    if not found:
        raise UserError(f"a size is a number of bytes such as 300k or 1M, not {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


@click.command(name="draft")
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", metavar="FILE",
              help="Table of drafts to write; replaced only when it is complete.")
@click.option("--text", "texts", multiple=True, metavar="FILE",
              help="Make it from texts, one per line, plain or .xz: what the model was trained on, "
                   "for example. May be given several times.")
@click.option("--chats", multiple=True, metavar="FILE",
              help="Make it from the answers of conversations: a file of NumPy with the arrays "
                   "tokens, prompt_lengths and answer_lengths. May be given several times.")
@click.option("--own", type=click.IntRange(min=1), metavar="N",
              help="Make it from N conversations that the model writes itself, in float32. What "
                   "was written is kept, so that an interrupted command goes on.")
@click.option("--prompts", metavar="FILE",
              help="What --own begins with, one per line: questions where the model has a chat "
                   "template, else beginnings of texts. By default the model draws them too.")
@click.option("-n", "--tokens", type=click.IntRange(min=4), default=320, show_default=True,
              metavar="N", help="Tokens of a conversation of --own at most.")
@click.option("--temp", type=click.FloatRange(min=0), default=0.0, show_default=True, metavar="T",
              help="Temperature of the answers of --own.")
@click.option("-s", "--seed", type=click.IntRange(min=0), default=1, show_default=True,
              metavar="N", help="Seed of --own.")
@click.option("--keep", metavar="FILE",
              help="Write the conversations of --own to a file as --chats and --measure take "
                   "them.")
@click.option("--size", default="1M", show_default=True, metavar="BYTES",
              help="Bytes of memory that the table takes at most, such as 300k or 1M.")
@click.option("--measure", metavar="FILE",
              help="Say how many tokens a pass gives with drafts, had the model written these "
                   "conversations (.npz, as --chats takes them) or texts (one per line).")
@click.option("--table", "table_from", metavar="FILE",
              help="The table that --measure takes. By default the one that is made, else the one "
                   "that comes with the model, if any.")
@click.option("-k", "--drafts", "k", type=click.IntRange(1, 31), default=7, show_default=True,
              metavar="K", help="Drafts of a pass, for --measure.")
@json_option
def draft(model: str, output: str | None, texts: tuple[str, ...], chats: tuple[str, ...],
          own: int | None, prompts: str | None, tokens: int, temp: float, seed: int,
          keep: str | None, size: str, measure: str | None, table_from: str | None, k: int,
          json_to: str | None) -> int:
    """Make a table of drafts for a model, or measure one.

    A draft is a guess at the next tokens. One pass of the model verifies several, so the text stays
    the same and comes in fewer passes. Drafts come from the text so far, and from a table of what
    often follows what.
    """
    started = time.monotonic()
    check_outputs(output, json_to, keep,
                  inputs=[model, *texts, *chats, prompts, measure, table_from])
    size_bytes = _bytes(size)
    sources = [f"--{name}" for name, value in (("text", texts), ("chats", chats), ("own", own))
               if value]
    if output is measure is keep is None:
        raise UserError("nothing is asked for; give -o FILE to make a table or --measure FILE to "
                        "measure one")
    if output is not None and not sources:
        raise UserError("a table is made from --text, --chats or --own; give one of them")
    if output is None and (texts or chats or own and keep is None):
        raise UserError(f"{sources[0]} is to make a table from; give -o FILE, or leave it out")
    for name, value in (("--prompts", prompts), ("--keep", keep)):
        if value is not None and own is None:
            raise UserError(f"{name} is for what --own writes; give --own N, or leave it out")
    if output is not None and table_from is not None:
        raise UserError("--table is a table to measure, and -o makes one; leave one of them out")
    from ..api import load
    with Progress() as progress:
        drafts = load(model, progress=progress).drafts
        parts = [*(drafts.read(path, text=True) for path in texts),
                 *(drafts.read(path, text=False) for path in chats)]
        if own is not None:
            parts.append(drafts.own(own, prompts=None if prompts is None else _prompts(prompts),
                                    max_tokens=tokens, temperature=temp, seed=seed))
        result: dict[str, Any] = {"model": drafts.model}
        if keep is not None:
            write_atomic(keep, parts[-1].content())
            result |= {"kept": keep}
        table, named = None, output or table_from or drafts.packaged
        if output is not None:
            table = drafts.table(*parts, size=size_bytes, made_of=" ".join(sources))
            table.save(output)
        elif named is not None:
            table = drafts.load(named)
        if table is not None:
            result |= {"file": str(named), "bytes": table.size, "entries": table.used}
        if output is not None:
            result |= {"conversations": sum(map(len, parts)),
                       "tokens": sum(len(part.tokens) for part in parts)}
        found = {}
        if measure is not None:
            found = drafts.measure(drafts.read(measure), table, most=k)
            best = next(iter(found.values()))
            result |= {"measured": measure, "k": k, "tokens_per_pass": best.tokens_per_pass,
                       **{name: way.as_dict() for name, way in found.items()}}
        if table is not None:
            result |= {"least": table.least}
        result |= {"seconds": time.monotonic() - started}
    write_json(result, json_to)
    if output is not None and table is not None:
        say(f"{output}: {table.used:,} entries in {table.size:,} bytes, for {result['model']}")
    if found and json_to != "-":
        names = {"together": "context and table", "context": "context alone",
                 "table": "table alone"}
        show(f"tokens per pass, with {k} drafts\n" + "\n".join(
            f"{names[name]:18} {way.tokens_per_pass:6.3f}   passes by drafts accepted: "
            + " ".join(f"{passes:,}" for passes in way.accepted) for name, way in found.items()))
    return 0


def _prompts(path: str) -> list[str]:
    """Lines of a file, of which one at least is no empty one."""
    lines = read_text(path)
    if not any(map(str.strip, lines)):
        raise UserError(f"there are no prompts in {path}; give one a line")
    return lines
