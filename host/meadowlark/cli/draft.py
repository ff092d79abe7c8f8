"""``meadowlark draft``."""
from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from ..files import check_outputs, write_atomic
from .options import json_option
from .terminal import Progress, say, show, write_json

if TYPE_CHECKING:
    from ..draft.conversations import Conversations
    from ..draft.table import DraftTable
    from ..models.checkpoint import Model

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
    from ..draft.conversations import Conversations
    from ..draft.table import DraftTable, packaged
    from ..models.registry import load_model
    with Progress() as progress:
        progress("reading the model")
        checkpoint = load_model(model, outline=own is None)
        table, result = None, {"model": checkpoint.name}
        parts = [*(_given(checkpoint, path, text=True) for path in texts),
                 *(_given(checkpoint, path, text=False) for path in chats)]
        if own is not None:
            parts.append(_own(model, checkpoint, own, prompts, tokens, temp, seed, progress))
        if keep is not None:
            write_atomic(keep, parts[-1].content())
            result |= {"kept": keep}
        if output is not None:
            said = Conversations.joined(parts)
            table = _made(checkpoint, said, size_bytes, " ".join(sources), progress)
            table.save(output)
            result |= {"file": output, "bytes": table.size, "entries": table.used,
                       "conversations": len(said), "tokens": len(said.tokens)}
        elif named := table_from or packaged(model):
            table = DraftTable.load(named)
            table.check_for(checkpoint, str(named))
            result |= {"file": str(named), "bytes": table.size, "entries": table.used}
        found = {}
        if measure is not None:
            from ..draft.replay import measure as replay
            given = _given(checkpoint, measure)
            progress("drafting")
            found = replay(given, k, table.entries if table else None,
                           table.least if table else 2)
            best = next(iter(found.values()))
            result |= {"measured": measure, "k": k, "tokens_per_pass": best.tokens_per_pass,
                       **{name: way.as_dict() for name, way in found.items()}}
        if table is not None:
            result |= {"least": table.least}
        result |= {"seconds": time.monotonic() - started}
    write_json(result, json_to)
    if output is not None and table is not None:
        say(f"{output}: {table.used:,} entries in {table.size:,} bytes, for {checkpoint.name}")
    if found and json_to != "-":
        names = {"together": "context and table", "context": "context alone",
                 "table": "table alone"}
        show(f"tokens per pass, with {k} drafts\n" + "\n".join(
            f"{names[name]:18} {way.tokens_per_pass:6.3f}   passes by drafts accepted: "
            + " ".join(f"{passes:,}" for passes in way.accepted) for name, way in found.items()))
    return 0


def _own(name: str, model: Model, count: int, prompts: str | None, tokens: int, temp: float,
         seed: int, progress: Progress) -> Conversations:
    """What the model writes itself, as far as it is not kept from an earlier run."""
    from .. import cache
    from ..draft.own import own
    from ..models.registry import find_model, model_files
    return own(model, count, length=tokens, temp=temp, seed=seed, progress=progress,
               prompts=None if prompts is None else _prompts(model, prompts),
               key=cache.digest(*model_files(find_model(name))))


def _given(model: Model, path: str, *, text: bool | None = None) -> Conversations:
    """Texts or conversations in a file. text: by its name if None."""
    from ..draft.conversations import Conversations
    if text is None:
        text = not path.endswith(".npz")
    if not text:
        return Conversations.read(path, model.vocab)
    from ..run.evaluate import read_text
    return Conversations.of_text(model, read_text(path), path)


def _prompts(model: Model, path: str) -> list[list[int]]:
    """Ids of the lines of a file."""
    from ..run.evaluate import read_text
    from ..text.chat import Conversation
    found = []
    for line in filter(str.strip, read_text(path)):
        if model.chat is None:
            found.append(model.tokenizer.opened(line, model.bos_id))
        else:
            found.append(Conversation(model.chat, model.tokenizer, bos=model.bos_id,
                                      stop_ids=model.stop_ids).ask(line))
    if not found:
        raise UserError(f"there are no prompts in {path}; give one a line")
    if (most := max(map(max, found))) >= model.vocab:
        raise UserError(f"{model.tokenizer.name} gives token {most} and the model knows "
                        f"{model.vocab}; leave the prompt with that token out")
    return found


def _made(model: Model, said: Conversations, size: int, sources: str,
          progress: Progress) -> DraftTable:
    from ..draft.make import make
    from ..draft.table import DraftTable
    entries, least = make(said, size, progress)
    return DraftTable.of(model, entries, least,
                         f"{len(said):,} conversations, {len(said.tokens):,} tokens, by {sources}")
