#!/usr/bin/env python3
"""Write the pages of docs/ that come from code; ``--check`` only says whether they are current."""
from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

import numpy as np
from meadowlark.compile import spill
from meadowlark.compile.limits import LIMITS, fits, residents
from meadowlark.models import (blocks, drawing, float_model, gguf_model, gguf_tokenizer, graph, hf,
                               rope, vjp)
from meadowlark.models.checkpoint import Model
from meadowlark.models.families import families, qwen2
from meadowlark.models.families.family import Family
from meadowlark.models.families.known import missing
from meadowlark.models.families.vit import Encoder
from meadowlark.models.metadata import Metadata
from meadowlark.models.registry import load_model
from meadowlark.papers import rows
from meadowlark.quant.plan import plan
from meadowlark.quant.shapes import Shapes
from meadowlark.text.tokenizer import Tokenizer
from meadowlark_boards import BOARDS, Board
from meadowlark_hdl import isa
from meadowlark_hdl.control import errors
from meadowlark_hdl.link import axi_lite_table, counters_table, protocol
from meadowlark_hdl.weights.modes import Packing

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
           "[architecture.md](architecture.md). `hdl/meadowlark_hdl/isa_golden.py` executes "
           "them all.\n",
           "## Fields\n", table(("bits", "field", "width", "meaning"), bits(isa.FIELDS))]
    for enum, title in ((isa.Op, "Operators (`op`)"), (isa.Src, "Sources of tiles (`src`)"),
                        (isa.Sink, "Where results go (`sink`)"),
                        (isa.Pair, "Pairs of rows (`pair`)"),
                        (isa.Fn, "Functions of a row (`fn`)"),
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
                 ((f"{int(c):#04x}", f"`{c.name}`", info.payload,
                   "(none)" if info.answer is None else info.answer)
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
                   "yes" if board.config.packing & Packing.ENTROPY else "no") for board in boards)),
           "## Images\n",
           "All keys of a layer are there before its first query. So all tokens of an image are in "
           "one pass, or they go through the model [in visits](architecture.md#more-tokens-than-a-"
           "pass-takes), as many at once as a pass takes. Without batches a board knows no visits, "
           "and refuses an image with more tokens. A pass takes so many, by the shape of the "
           "model:\n",
           table(("model", "tokens", "values of the residual",
                  *(f"`{board.name}`" for board in boards)),
                 ((name, f"{tokens:,}", f"{tokens * hidden:,}", *(
                     _tokens_of_a_pass(board, tokens, hidden, heads) for board in boards))
                  for name, tokens, hidden, heads in ENCODERS))]
    return "\n".join(out)


#: Name, tokens of an image, hidden size, heads.
ENCODERS = (("`digits-vit`, 8 x 8 pixels", 17, 64, 4), ("DeiT-Ti, 224 x 224 pixels", 197, 192, 3),
            ("DeiT-S", 197, 384, 6), ("DeiT-B", 197, 768, 12))


def _tokens_of_a_pass(board: Board, tokens: int, hidden: int, heads: int) -> str:
    """Of an encoder of images with an MLP four times (of the first, twice) as wide, and whether it
    runs in visits then."""
    graph = Encoder(
        hidden=hidden, heads=heads, kv_heads=heads, head_dim=hidden // heads, layers=1,
        ffn=(2 if hidden == 64 else 4) * hidden, vocab=1, context=5, eps=1e-6, rope=None,
        gated=False, ahead=True, tied=False, side=4, patch=2, channels=1, labels=("",)).graph()
    steps = plan(graph, head_pad=board.config.W)
    most = residents(steps, board.config) * board.config.P
    if tokens <= most:
        return f"{most:,}"
    if not spill.can(steps, board.config):
        return f"{most:,}, refused"
    steps = spill.spilled(steps, board.config.W)
    most = residents(steps, board.config) * board.config.P
    return f"{most:,}, in visits" if most else "0, refused"


def _boards_of(family: Family, public: dict | None) -> str:
    """A public model of a family, and the boards that it fits."""
    if public is None:
        return ""
    values = {**family.defaults, **public["config"]}
    made = family.from_config(Metadata(Path("config.json"), values))
    graph = made.graph()
    model = Model(
        name=public["model"], family=family.name, graph=graph, context=made.context, bos_id=None,
        weights={name: np.broadcast_to(np.float32(0), shape)
                 for name, shape in graph.shapes.items()},
        tokenizer=Tokenizer(b""), stop_ids=(), parameters=1)
    shapes = Shapes.of_model(model)
    fit = [f"`{board.name}`" for board in BOARDS.values() if not fits(shapes, board)]
    return f"{public['model']}: {', '.join(fit) or 'none'}"


def _fidelity(measured: dict) -> str:
    """Of a trained model."""
    if "images" in measured:
        return (f"{measured['model']}: {measured['accuracy_fixed']:.4f} of {measured['images']} "
                f"images right, float32 {measured['accuracy_float']:.4f}")
    return f"{measured['model']}: {measured['delta_pct']:+.3f} % +- {measured['delta_se']:.3f}"


def models() -> str:
    """docs/models.md."""
    rules: dict[tuple[str, ...], list[str]] = {}
    for name, patterns in gguf_tokenizer.PRE.items():
        rules.setdefault(patterns, []).append(f"`{name}`")
    neutral = [(f"`{key}`", f"`{value}`") for key, value in
               sorted({**hf.NEUTRAL,
                       **{f"ARCH.{key}": v for key, v in gguf_model.NEUTRAL.items()}}.items())]
    kinds = ", ".join((*blocks.KINDS, *gguf_model.FLOATS))
    known = json.loads((ROOT / "docs/families.json").read_text())
    return "\n".join((
        NOTE, "# Which model files are read\n",
        "| what | what it holds |\n|---|---|",
        f"| GGUF file | version 2 or 3, one part, of an architecture below; tensors in {kinds}; "
        "the tokenizer and the chat template are made from its metadata |",
        "| Hugging Face folder | `config.json` of a class below; `model.safetensors` or its "
        "shards in float32, float16 or bfloat16; `tokenizer.json`, or else `tokenizer.model` of "
        "SentencePiece (unigram or BPE), without which a model takes token ids and knows no text; "
        "a chat template, if there is one |",
        "| checkpoint of llama2.c | float32, without a version or of version 1; beside it its "
        "vocabulary, named `tokenizer.bin` or, for 512 tokens, `tok512.bin` |\n",
        "The first bytes of a file tell its format, not its name. `meadowlark info MODEL` reads "
        "one and tells its facts. [Limits](limits.md) says which boards run it.\n",
        "`hf:owner/name` is a folder of the Hugging Face Hub, and `hf:owner/name/file.gguf` a "
        "file there. It is fetched once, into the cache of `huggingface_hub` (`HF_HOME`); "
        "`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are heeded.\n",
        "The folder [models](../models/README.md) has examples. Encoders of images, such as `vit`, "
        "have a `preprocessor_config.json` instead of a tokenizer, and run by `meadowlark "
        "classify`.\n",
        "## Families\n",
        table(("model_type", "class", "GGUF", "what it is", "a public model, and boards it fits",
               "integers beside float32"),
              ((f"`{name}`", ", ".join(f"`{c}`" for c in family.classes),
                f"`{family.gguf_name}`" if family.arch is not None else "",
                " ".join((inspect.getdoc(type(family)) or "").split()),
                _boards_of(family, known["public"].get(name)),
                "; ".join(map(_fidelity, (one for one in known["fidelity"]["models"]
                                          if one["family"] == name))))
               for name, family in families().items())),
        "A public model is the smallest that is widely used. It fits a board by its shapes, "
        "without options; with a shorter `--ctx`, or fewer `--bits`, it may fit more, which "
        "`meadowlark info` says. The examples fit all boards. Integers beside float32 are the "
        "perplexity of a model that was trained for this, with its standard error, by "
        f"`{known['fidelity']['command']}` on {known['fidelity']['text']}: "
        f"{known['fidelity']['tokens']:,} tokens. An encoder of images has its accuracy instead. "
        "The figures are in [families.json](families.json).\n",
        "The head may be tied to the embedding. A layer with a window reads the keys in it alone; "
        "its cache holds all positions. [How to add a family](add-a-family.md).\n",
        "These are known and not run; they are refused with what they need:\n",
        table(("model_type", "what it needs"),
              ((f"`{name}`", needs) for name, needs in missing().items())),
        "## RoPE\n",
        "Plain, and scaled by `linear`, `yarn` or `llama3`: from `rope_parameters` or "
        "`rope_scaling` of `config.json`; from `rope.scaling.*`, `rope.scale_linear` and the "
        "tensor `rope_freqs.weight` of a GGUF file. In `config.json` by `longrope` and `dynamic`, "
        "too. `yarn` turns slow pairs more slowly and makes scores larger. Of `longrope` (also "
        "named `su`) the `short_factor` counts, and the context ends where the "
        "`long_factor` would begin, at `original_max_position_embeddings`. `dynamic` changes "
        "nothing within `max_position_embeddings`, where the context ends in any case. In GGUF "
        "files this is refused with what it needs:\n",
        table(("scaling", "what it needs"),
              ((f"`{name}`", needs) for name, needs in rope.UNSUPPORTED.items())),
        "## What is refused",
        "Every entry of `config.json`, and every one of a GGUF file that begins with the name of "
        "its architecture, is read, is known to change nothing, or is refused by its name and "
        "value. Entries that are absent, false or empty change nothing. A GGUF file with a tensor "
        "that its family does not have is refused. In a folder such a tensor is left out, with a "
        "warning, as transformers does.\n",
        "An entry that is refused and that you know to change nothing can be taken out: in "
        "`config.json` with an editor, in a GGUF file with `gguf-new-metadata --remove-metadata "
        "KEY OLD NEW`.\n",
        "These entries change nothing at this value, and are refused at any other, where the "
        "family does not read them; ARCH is the architecture:\n",
        table(("entry", "value"), neutral),
        "## Tokenizers of GGUF files",
        "`tokenizer.ggml.model` is `llama` (BPE of SentencePiece), `t5` (its unigram) or `gpt2` "
        "(byte-level BPE). For `gpt2`, "
        "`tokenizer.ggml.pre` names the rule that cuts a text into words. Names in one row stand "
        "for one rule, as in llama.cpp:\n",
        table(("rule of", "also named"),
              ((names[0], ", ".join(names[1:])) for names in rules.values()))))


def add_a_family() -> str:
    """docs/add-a-family.md."""
    source = inspect.getsource(qwen2)
    lines = [line for line in source.splitlines() if line.strip()]
    tables = {"checked, its edges named": graph._EDGE, "run in float32": float_model.FORWARD,
              "its gradient": vjp.VJP}
    where = {"checked, its edges named": "models/graph.py", "run in float32":
             "models/float_model.py", "its gradient": "models/vjp.py"}
    assert len({frozenset(rows) for rows in tables.values()}) == 1
    return "\n".join((
        NOTE, "# How to add a family of models\n",
        "A family is a file in `host/meadowlark/models/families`. It says what its "
        "hyperparameters are called in `config.json` and in GGUF, what its tensors are called, "
        "and what a layer computes. Readers, the quantiser, the golden model and the compiler "
        "know no family: they walk the graph that it builds, so nothing else changes but tests "
        "and docs.\n",
        "## An example: Qwen2\n",
        "Qwen2 is Llama with biases of queries, keys and values. Its later layers may have a "
        f"window of attention. `families/qwen2.py` is all there is of it, {len(lines)} lines:\n",
        f"```python\n{source}```\n",
        "| part | what it says |\n|---|---|",
        "| `name`, `classes` | `model_type` and `architectures` of `config.json` |",
        "| `arch` | the architecture in GGUF; names of tensors are taken from the gguf package's "
        "map of it |",
        "| `defaults` | what transformers takes for entries that `config.json` lacks |",
        "| `interleaved` | llama.cpp's converter has made rows that rotate together neighbours; it "
        "does so for Llama and the classes derived from `LlamaModel` there |",
        "| `from_config`, `from_gguf` | the hyperparameters. What they look up counts as read, "
        "what is left is refused |",
        "| `names` | weight of the graph -> tensor of transformers. Weights with the same tensor "
        "are its rows, one behind the other, see `families/phi3.py` |",
        "| `stored`, `restored` | where transformers has a tensor in another shape, or its rows in "
        "another order; see `families/gpt2.py` and `families/gpt_neox.py` |",
        "| `graph` (of the hyperparameters) | the layers, built with `Builder`; see "
        "`families/decoder.py` |\n",
        "## Step by step\n",
        "1. Read the model's `modeling_*.py` and `configuration_*.py` in transformers, and its "
        "converter and its graph in llama.cpp. Note every entry that changes what is computed.",
        "2. Make a reference: a tiny model with random weights, and its logits.\n",
        "   ```python",
        "   import numpy as np, torch, transformers",
        "   config = transformers.Qwen2Config(vocab_size=256, hidden_size=64, num_hidden_layers=2,",
        "       num_attention_heads=4, num_key_value_heads=2, intermediate_size=96)",
        "   model = transformers.AutoModelForCausalLM.from_config(config).half()",
        '   model.save_pretrained("sim_tests/reference/qwen2")',
        "   tokens = torch.randint(2, 256, (1, 48))",
        "   with torch.inference_mode():",
        "       logits = model.float()(tokens).logits[0].numpy()",
        '   np.savez_compressed("sim_tests/reference/qwen2/reference.npz", logits=logits,',
        "       tokens=tokens[0].numpy().astype(np.int32))",
        "   ```\n",
        "   Draw the weights larger than transformers does, and norms and biases at random, so "
        "that a mistake shows.",
        "3. Write the file, and a row in `CLASSES` of `sim_tests/random_model.py`. "
        "`sim_tests/test_families.py` then compares both ways of the float model with the "
        "reference, and GGUF with the folder.",
        "4. `meadowlark info MODEL --graph` prints the graph. `meadowlark eval --model MODEL` "
        "compares integers with float32, `meadowlark generate --check` the gateware with the "
        "golden model. `scripts/random_checkpoint.py FAMILY --layers 2 -o FOLDER` writes a "
        "checkpoint with random weights in the shape of the family's public model, whose "
        "prompts are `--ids`.",
        "5. `make docs` puts it into [models.md](models.md).\n",
        "## If an operator is missing\n",
        "An operator is a class in `models/graph.py`, a method of `Builder`, and a row in the "
        "table of each pass:\n",
        table(("pass", "where", "operators"),
              ((f"how it is {name}" if name != "its gradient" else name,
                f"`host/meadowlark/{where[name]}`",
                ", ".join(sorted(op.__name__ for op in rows))) for name, rows in tables.items())),
        "`quant/plan.py` then gives it to a step of the machine, the step to "
        "`quant/quantise.py`, `quant/golden.py` and `compile/compiler.py`; or a pass of "
        "`models/rewrite.py` makes operators of it that are there, as it does with LayerNorm. "
        "`sim_tests/test_vjp.py` fails until every pass has the new row.\n"))


def block() -> str:
    """docs/images/block.svg."""
    return drawing.svg(load_model("stories", outline=True).graph, "stories")


def papers() -> str:
    """docs/papers.md: what `meadowlark ablate` has found."""
    return rows.markdown(rows.load(ROOT / "docs/papers.json"), pictures="images")


PAGES = {"docs/papers.md": papers, "docs/program.md": program,
         "docs/registers.md": registers, "docs/limits.md": limits,
         "docs/models.md": models, "docs/add-a-family.md": add_a_family,
         "docs/images/block.svg": block}


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
