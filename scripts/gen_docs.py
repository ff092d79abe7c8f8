#!/usr/bin/env python3
"""Write the pages of docs/ that come from code; ``--check`` only says whether they are current."""
from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from meadowlark.compile.limits import LIMITS
from meadowlark.models import blocks, gguf_model, gguf_tokenizer, hf
from meadowlark_boards import BOARDS
from meadowlark_hdl import isa
from meadowlark_hdl.control import counters_table, errors
from meadowlark_hdl.link import axi_lite_table, protocol

ROOT = Path(__file__).resolve().parents[1]

NOTE = "<!-- Written by scripts/gen_docs.py; change the code and run `make docs`. -->\n"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
                     for line in lines) + "\n"


def meanings(enum: type[IntEnum]) -> dict[str, str]:
    """Member name -> the comment after ``#:`` (or ``#``) on its line."""
    found = re.findall(r"^ +(\w+) = \w+ *(?:#:? *(.*))?$", inspect.getsource(enum), re.M)
    return {name: text.replace("``", "`") for name, text in found if name in enum.__members__}


def members(enum: type[IntEnum], head: str) -> str:
    """Table of an enum."""
    text = meanings(enum)
    return table(("value", head, "meaning"),
                 ((int(m), f"`{m.name}`", text.get(m.name, "")) for m in enum))


def first_line(item: type) -> str:
    return (inspect.getdoc(item) or "").splitlines()[0]


def bits(fields: Iterable[isa.Field]) -> Iterable[tuple[str, str, int, str]]:
    """(bit range, name, width, doc) of packed fields."""
    at = 0
    for f in fields:
        yield f"{at + f.bits - 1}:{at}", f"`{f.name}`", f.bits, f.doc
        at += f.bits


def program() -> str:
    """docs/program.md."""
    out = [NOTE, "# The program\n",
           f"An instruction has {isa.INSTRUCTION_BITS} bits and is stored as "
           f"{isa.INSTRUCTION_BYTES} bytes, little endian. What each one does is in "
           "[architecture.md](architecture.md).\n",
           "## Fields\n", table(("bits", "field", "width", "meaning"), bits(isa.FIELDS))]
    for enum, title in ((isa.Op, "Operators (`op`)"), (isa.Src, "Sources of tiles (`src`)"),
                        (isa.Epi, "Epilogues of LINEAR (`epi`)"),
                        (isa.Mode, "Decoder modes (`mode`)"),
                        (isa.Header, "Row headers (`header`)")):
        out += [f"## {title}\n", members(enum, "name")]
    out += ["## Model registers\n", "Written once after an image is loaded.\n",
            table(("register", "width", "meaning"),
                  ((f"`{f.name}`", f.bits, f.doc) for f in isa.MODEL_REGS))]
    return "\n".join(out)


def registers() -> str:
    """docs/registers.md."""
    out = [NOTE, "# Commands, registers, counters\n",
           f"Protocol version {protocol.VERSION}; instruction set {protocol.ISA_CRC:#010x}.\n",
           "## Commands\n",
           table(("type", "command", "payload", "payload of the answer"),
                 ((f"{int(c):#04x}", f"`{c.name}`", info.payload, info.answer)
                  for c, info in protocol.COMMANDS.items()))]
    for enum, title in ((protocol.Result, "Results"), (protocol.Reason, "Reasons of a run's end"),
                        (errors.Error, "Errors")):
        out += [f"## {title}\n", first_line(enum) + "\n", members(enum, "name")]
    out += ["## Registers\n",
            table(("word", "register", "width", "access", "meaning"),
                  ((f"{r.address:#04x}", f"`{r.name}`", r.width, r.access, r.doc)
                   for r in protocol.REGISTERS)),
            "## Counters\n",
            f"{counters_table.COUNTER_BITS} bits each; counter i reads as the words "
            f"{protocol.COUNTER_BASE:#x} + 2*i and the next.\n",
            table(("index", "counter", "meaning"),
                  ((i, f"`{c.name}`", c.doc) for i, c in enumerate(counters_table.COUNTERS))),
            "## AXI4-Lite window\n",
            f"Version {axi_lite_table.WINDOW_VERSION}. On boards with a Zynq the frames go through "
            'this window; see "AXI boards" in [boards.md](boards.md).\n',
            table(("byte", "register", "width", "access", "meaning"),
                  ((f"{r.address:#04x}", f"`{r.name}`", r.width, r.access, r.doc)
                   for r in axi_lite_table.WINDOW))]
    return "\n".join(out)


def limits() -> str:
    """docs/limits.md."""
    boards = list(BOARDS.values())
    out = [NOTE, "# Which models a board runs\n",
           "`meadowlark info MODEL` compares a model with every board. A model beyond a limit is "
           "refused from its shapes, before its weights are read.\n",
           "## What is limited\n",
           table(("limit", "what it is", "set by (Config)"),
                 ((row.name, row.doc, row.where) for row in LIMITS)),
           "## Limits of each board\n",
           "The most that a board takes. A bitstream with another Config has other limits.\n",
           table(("limit", *(f"`{board.name}`" for board in boards)),
                 ((row.name, *(f"{row.has(board):,}" for board in boards)) for row in LIMITS)),
           "## Weights\n",
           table(("board", "blocks of GGUF files (Q8_0, Q4_0, Q4_1)", "entropy-coded weights"),
                 ((f"`{board.name}`",
                   "as they are" if board.config.block_modes else "turned into int8",
                   "yes" if board.config.packing & 1 else "no") for board in boards))]
    return "\n".join(out)


def models() -> str:
    """docs/models.md."""
    rules: dict[tuple[str, ...], list[str]] = {}
    for name, patterns in gguf_tokenizer.PRE.items():
        rules.setdefault(patterns, []).append(f"`{name}`")
    neutral = [(f"`{key}`", f"`{value}`") for key, value in
               sorted({**hf.NEUTRAL, **gguf_model.NEUTRAL}.items())]
    kinds = ", ".join((*blocks.KINDS, *gguf_model.FLOATS))
    return "\n".join((
        NOTE, "# Which model files are read\n",
        "All models are of type Llama: RMSNorm, RoPE, grouped queries, SwiGLU with silu, with or "
        "without biases, the head tied to the embedding or not.\n",
        "| what | what it holds |\n|---|---|",
        f"| GGUF file | architecture `llama`, version 2 or 3, one part; tensors in {kinds}; the "
        "tokenizer and the chat template are made from its metadata |",
        "| Hugging Face folder | `config.json` of `LlamaForCausalLM`; `model.safetensors` or its "
        "shards in float32, float16 or bfloat16; `tokenizer.json`; a chat template, if there is "
        "one |",
        "| checkpoint of llama2.c | float32, without a version or of version 1; beside it its "
        "vocabulary, named `tokenizer.bin` or, for 512 tokens, `tok512.bin` |\n",
        "The first bytes of a file tell its format, not its name. `meadowlark info MODEL` reads "
        "one and tells its facts. [Limits](limits.md) says which boards run it.\n",
        "## What is refused",
        "Every entry of `config.json`, and every one of a GGUF file that begins with `llama.`, is "
        "read, is known to change nothing, or is refused by its name and value. Entries that are "
        "absent, false or empty change nothing. Scaled RoPE is refused; a scaling by 1 is none. A "
        "GGUF file with a tensor that Llama does not have is refused. In a folder such a tensor is "
        "left out, with a warning, as transformers does.\n",
        "An entry that is refused and that you know to change nothing can be taken out: in "
        "`config.json` with an editor, in a GGUF file with `gguf-new-metadata --remove-metadata "
        "KEY OLD NEW`.\n",
        "These entries change nothing at this value, and are refused at any other:\n",
        table(("entry", "value"), neutral),
        "## Tokenizers of GGUF files",
        "`tokenizer.ggml.model` is `llama` (SentencePiece) or `gpt2` (byte-level BPE). For `gpt2`, "
        "`tokenizer.ggml.pre` names the rule that cuts a text into words. Names in one row stand "
        "for one rule, as in llama.cpp:\n",
        table(("rule of", "also named"),
              ((names[0], ", ".join(names[1:])) for names in rules.values()))))


PAGES = {"docs/program.md": program, "docs/registers.md": registers, "docs/limits.md": limits,
         "docs/models.md": models}


def main(argv: list[str] | None = None) -> int:
    """Write the pages; with --check return 1 if one of them is not what it would be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if not current")
    check = parser.parse_args(argv).check
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"not current: {', '.join(stale)}; run make docs", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
