"""The command line: ``meadowlark generate``, ``chat``, ``compile``, ``eval``, ``bench``,
``build``, ``flash`` and ``info``."""
from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console

from .errors import UserError
from .files import write_atomic

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from .image import Image
    from .prepare import Source

#: Exit status where ``--check`` found a difference, or the simulation itself failed.
DIFFERENT = 1
#: Exit status of everything that the user can put right.
WRONG_USE = 2
INTERRUPTED = 130

_console = Console(stderr=True, highlight=False)


# ---- Progress and results

class Progress:
    """What is going on, on stderr: one live line on a terminal, else a line a step."""

    def __init__(self) -> None:
        self._status = _console.status("") if _console.is_terminal else None
        self._last = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *what) -> None:
        self.hide()

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show a sentence, and the steps done (of how many, 0: not known)."""
        if self._status is None:
            if text != self._last:
                _console.print(f"{text} ...", style="dim", markup=False)
        else:
            self._status.update(
                f"{text} {done:,} of {total:,}" if total else f"{text} {done:,}" if done else text)
            self._status.start()
        self._last = text

    def hide(self) -> None:
        """Leave the terminal to others until the next call."""
        if self._status is not None:
            self._status.stop()


def _say(text: str) -> None:
    """A line on stderr."""
    _console.print(text, markup=False, soft_wrap=True)


def _write_json(result: dict, where: str | None) -> None:
    """``--json``: to stdout, or to a file that is replaced at once."""
    if where is None:
        return
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if where == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(where), text.encode())


# ---- Options

def _board(name: str) -> Board:
    from meadowlark_boards import get_board
    try:
        return get_board(name)
    except ValueError as error:
        raise UserError(str(error)) from error


def _common(command: Callable) -> Callable:
    """The options that every command takes."""
    for option in reversed((
            click.option("--model", default="stories", show_default=True, metavar="MODEL",
                         help="GGUF file, Hugging Face folder, image file, or the name of a "
                              "model; `meadowlark info` lists them."),
            click.option("--board", default="virtual", show_default=True, metavar="BOARD",
                         help="Board to compile for and to simulate; `meadowlark info` lists "
                              "them."),
            click.option("--target", default="sim", show_default=True, metavar="TARGET",
                         help="sim (the gateware, simulated), pins (the whole chip, down to the "
                              "pins of its SDRAM and UART), golden (the bit-exact model), or the "
                              "port of a board."),
            click.option("--packing", default="auto", show_default=True, metavar="PACKING",
                         help="How weights are packed in memory: raw, meadow, entropy, or auto, "
                              "the smallest of them that the board can read, a tensor at a time."),
            click.option("--json", "json_to", metavar="FILE",
                         help="Write the results as JSON; - is stdout, which then gets nothing "
                              "else."),
            click.option("--seed", default=0, show_default=True, type=int,
                         help="Of everything that is drawn."))):
        command = option(command)

    @functools.wraps(command)
    def checked(*args, packing: str, **kw):
        from .packing import PACKINGS
        if packing not in PACKINGS:
            raise UserError(f"there is no packing {packing!r}; give one of {', '.join(PACKINGS)}")
        return command(*args, **kw)
    return checked


def _ctx_option(command: Callable) -> Callable:
    return click.option("--ctx", type=int, metavar="N",
                        help="Tokens the KV cache holds; by default as many as model and board "
                             "allow.")(command)


def _weights_option(command: Callable) -> Callable:
    """The options of how weights are quantised."""
    for option in reversed((
            click.option("--weights", type=click.Choice(("auto", "int8")), default="auto",
                         show_default=True,
                         help="auto: blocks of a GGUF file (Q8_0, Q4_0, Q4_1) as they are, all "
                              "else in int8 with a scale a row; int8: everything so."),
            click.option("--bits", type=float, metavar="B",
                         help="int8 weights on the finest grid that takes B bits a weight, "
                              "entropy-coded."),
            click.option("--target-ppl", type=float, metavar="PERCENT",
                         help="int8 weights on the coarsest grid that costs PERCENT of perplexity "
                              "on the calibration text."))):
        command = option(command)

    @functools.wraps(command)
    def checked(*args, bits: float | None, target_ppl: float | None, **kw):
        from .budget import check_budget
        check_budget(bits, target_ppl)
        return command(*args, **kw)
    return checked


def _source(model: str, board: Board, ctx: int | None, weights: str, progress: Progress) -> Source:
    from .prepare import Source
    given = click.get_current_context().params
    return Source(model, board, context=ctx, weights=weights, progress=progress,
                  **{name: given[name] for name in ("packing", "bits", "target_ppl")})


def _given(name: str) -> bool:
    """The option stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="meadowlark", prog_name="meadowlark")
def cli() -> None:
    """Small FPGAs run language models, with open tools."""


# ---- generate

def _drawing(command: Callable) -> Callable:
    """The options of what is drawn."""
    for option in reversed((
            click.option("-n", "--tokens", "max_new", type=int, metavar="N",
                         help="Most tokens to generate; by default until the model ends the text "
                              "or the context is full."),
            click.option("--temperature", default=0.0, show_default=True,
                         help="0 takes the likeliest token."),
            click.option("--top-k", default=0, show_default=True,
                         help="Draw from the K likeliest; 0: all."),
            click.option("--top-p", default=1.0, show_default=True,
                         help="Draw from the likeliest that hold this share; 1: all."))):
        command = option(command)
    return command


def _most(max_new: int | None) -> None:
    """Raise unless it is a number of tokens."""
    if max_new is not None and max_new < 1:
        raise UserError(f"the number of tokens must be at least 1, not {max_new}")


@cli.command()
@click.argument("prompt")
@_drawing
@click.option("--stop", multiple=True, metavar="TEXT",
              help="End before this text; may be given several times.")
@click.option("--chat", is_flag=True,
              help="PROMPT is a question: put it in the model's chat template.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model ends its text.")
@click.option("--check", is_flag=True,
              help="Compare every token and logit with the golden model; status 1 if one differs.")
@_ctx_option
@_weights_option
@_common
def generate(prompt: str, max_new: int | None, temperature: float, top_k: int, top_p: float,
             stop: Sequence[str], chat: bool, ignore_eos: bool, check: bool, ctx: int | None,
             weights: str, model: str, board: str, target: str, json_to: str | None,
             seed: int) -> int:
    """Continue PROMPT, or answer it; the text is written as its tokens arrive."""
    from .sampling import sampling
    from .targets import GoldenTarget, open_target
    from .targets import check as compare
    which = _board(board)
    draw = sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                    max_top_k=which.config.topk)
    _most(max_new)
    if check and target == "golden":
        raise UserError("--check compares a board with the golden model, which --target golden "
                        "is; leave one of them out")
    if any(not s for s in stop):
        raise UserError("--stop needs a text that is not empty")
    with Progress() as progress:
        source = _source(model, which, ctx, weights, progress)
        ids, image = source.prompt(prompt, chat=chat), source.image
        if check and source.is_image:
            raise UserError("--check needs the checkpoint, which an image does not hold; give the "
                            "model itself")
        stops = () if ignore_eos else image.stop_ids
        # The last token needs no place of its own.
        most = min(max_new or image.context, image.context - len(ids) + 1)
        with closing(open_target(target, which, progress=progress)) as runner:
            runner.load(source)
            progress("taking the prompt")
            out = _Text("" if chat else prompt, source.tokenizer.stream(ids), stop,
                        quiet=json_to == "-")
            events, started, ended = [], time.monotonic(), 0.0
            with closing(runner.generate(ids, draw, max_new=most, stop_ids=stops)) as run:
                for event in run:
                    ended = time.monotonic()
                    progress.hide()
                    events.append(event)
                    if event.token not in stops and not out.push(event.token):
                        break
            out.end()
            seconds = max(ended - started, 1e-9)
            counters, messages = runner.counters(), runner.messages
        passes = range(len(ids), len(ids) + len(events) - 1)    # decode passes, by position
        result: dict[str, Any] = {
            "model": image.name, "board": which.name, "target": target, "seed": seed,
            "prompt_tokens": len(ids), "tokens": [e.token for e in events], "text": out.text,
            "end": _end([e.token for e in events], stops, out, len(events) == max_new),
            "tokens_per_s": len(events) / seconds,
            "cycles_per_token": _cycles_per_token(counters, len(events)),
            "bytes_per_token": _bytes_per_token(image, len(ids), passes),
            "host_messages": messages, "clock_mhz": which.clock_mhz, "counters": counters}
        verdict = None
        if check:
            golden = GoldenTarget()
            golden.load(source)
            verdict = compare(events, golden.generate(ids, draw, max_new=most, stop_ids=stops),
                              whole=not out.stopped, progress=progress)
            result["bit_exact"] = verdict.bit_exact
            result["first_difference"] = verdict.first_difference
    _write_json(result, json_to)
    _say(_summary(result))
    if verdict is None:
        return 0
    _say(f"bit-exact with the golden model over {verdict.tokens} tokens" if verdict.bit_exact
         else f"NOT bit-exact: {verdict.first_difference}")
    return 0 if verdict.bit_exact else DIFFERENT


class _Text:
    """Generated text on its way to the terminal: held back where a stop text could begin.

    quiet: stdout is for JSON, so the text goes to stderr.
    """

    def __init__(self, prompt: str, stream, stop: Sequence[str], *, quiet: bool) -> None:
        self._stream, self._stop = stream, stop
        self._to = sys.stderr if quiet else sys.stdout
        self._shown = 0
        self.text = ""
        self.stopped = False
        self._write(prompt)

    def _write(self, text: str) -> None:
        # A terminal may not know every character: better a question mark than an error.
        encoding = self._to.encoding or "utf-8"
        self._to.write(text.encode(encoding, "replace").decode(encoding))
        self._to.flush()

    def push(self, token: int) -> bool:
        """Take a token; False when a stop text is complete."""
        return self._more(self._stream.push(token), final=False)

    def end(self) -> None:
        """No more tokens; the rest of the text and the end of its line."""
        if not self.stopped:
            self._more(self._stream.flush(), final=True)
        self._write("\n")

    def _more(self, piece: str, *, final: bool) -> bool:
        self.text += piece
        found = [at for s in self._stop if (at := self.text.find(s)) >= 0]
        if found:
            self.stopped = True
            self.text = self.text[:min(found)]
        sure = len(self.text)
        if not final and not self.stopped:
            # The longest end of the text that begins a stop text.
            sure -= max((n for s in self._stop for n in range(1, len(s))
                         if self.text.endswith(s[:n])), default=0)
        if sure > self._shown:
            self._write(self.text[self._shown:sure])
            self._shown = sure
        return not self.stopped


def _end(tokens: Sequence[int], stops: Sequence[int], out: _Text, full: bool) -> str:
    """Why a text ended."""
    if out.stopped:
        return "stop text"
    if tokens and tokens[-1] in stops:
        return "stop id"
    return "number of tokens" if full else "context"


def _cycles_per_token(counters: dict[str, int], tokens: int) -> float | None:
    """Of the decode passes; of the whole run if there was none; None without counters."""
    if "cycles" not in counters:
        return None
    if tokens < 2:
        return float(counters["cycles"])
    return (counters["cycles"] - counters["cycles_first_token"]) / (tokens - 1)


def _bytes_per_token(image: Image, prompt: int, passes: range) -> float:
    """Useful bytes of a decode pass, averaged over the run; of the next one if there was none."""
    if not passes:
        return float(image.bytes_per_token(prompt))
    return sum(image.bytes_per_token(position + 1) for position in passes) / len(passes)


def _summary(result: dict) -> str:
    """One line about a run."""
    parts = [f"{result['prompt_tokens']} + {len(result['tokens'])} tokens, ended by "
             f"{result['end']}", f"{result['tokens_per_s']:.1f} tokens/s here"]
    if cycles := result["cycles_per_token"]:
        mhz = result["clock_mhz"]
        parts.append(f"{cycles:,.0f} cycles a token ({mhz * 1e6 / cycles:,.1f} tokens/s at "
                     f"{mhz:g} MHz)")
    return "; ".join(parts)


# ---- chat

@cli.command()
@_drawing
@_ctx_option
@_weights_option
@_common
def chat(max_new: int | None, temperature: float, top_k: int, top_p: float, ctx: int | None,
         weights: str, model: str, board: str, target: str, json_to: str | None,
         seed: int) -> int:
    """Talk with a model: a question a line, until an empty line or the end of the input.

    Ctrl-C ends an answer, and between answers the conversation.
    """
    from .sampling import sampling
    from .targets import open_target
    which = _board(board)
    draw = sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                    max_top_k=which.config.topk)
    _most(max_new)
    with Progress() as progress:
        source = _source(model, which, ctx, weights, progress)
        talk, image, turns = source.conversation(), source.image, []
        with closing(open_target(target, which, progress=progress)) as runner:
            runner.load(source)
            while question := _question(progress):
                ids = source.fitting(talk.ask(question), "with this question the conversation",
                                     "start a new one")
                most = min(max_new or image.context, image.context - len(ids) + 1)
                out = _Text("", source.tokenizer.stream(ids), (), quiet=json_to == "-")
                tokens, interrupted = [], False
                started, ended = time.monotonic(), 0.0
                progress("thinking")
                try:
                    with closing(runner.generate(ids, draw, max_new=most,
                                                 stop_ids=image.stop_ids, reuse=True)) as run:
                        for event in run:
                            ended = time.monotonic()
                            progress.hide()
                            tokens.append(event.token)
                            if event.token not in image.stop_ids:
                                out.push(event.token)
                except KeyboardInterrupt:
                    if not sys.stdin.isatty():
                        raise
                    interrupted = True
                out.end()
                turns.append({
                    "question": question, "prompt_tokens": len(ids),
                    "cached_tokens": runner.cached, "tokens": tokens,
                    "text": talk.answered(tokens),
                    "end": "Ctrl-C" if interrupted else _end(
                        tokens, image.stop_ids, out, len(tokens) == max_new),
                    "tokens_per_s": len(tokens) / max(ended - started, 1e-9)})
                progress.hide()
                _say(_turn(turns[-1]))
    _write_json({"model": image.name, "board": which.name, "target": target, "seed": seed,
                 "turns": turns}, json_to)
    return 0


def _turn(turn: dict) -> str:
    """One line about a turn."""
    return (f"{turn['prompt_tokens']} ({turn['cached_tokens']} from the cache) + "
            f"{len(turn['tokens'])} tokens, ended by {turn['end']}; "
            f"{turn['tokens_per_s']:.1f} tokens/s here")


def _question(progress: Progress) -> str:
    """The next line of the input, "" at its end; asked for on a terminal."""
    progress.hide()
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    try:
        question = sys.stdin.readline().strip()
        question.encode()
        return question
    except UnicodeError:
        raise UserError("the question is not valid UTF-8; check the terminal's encoding") from None


# ---- compile

@cli.command(name="compile")
@click.argument("source_model", metavar="MODEL", required=False)
@click.option("-o", "--output", required=True, metavar="IMAGE",
              help="Image file to write; replaced only when it is complete.")
@_ctx_option
@_weights_option
@_common
def compile_(source_model: str | None, output: str, ctx: int | None, weights: str, model: str,
             board: str, target: str, json_to: str | None, seed: int) -> int:
    """Quantise MODEL, lay it out for the board and write an image."""
    started = time.monotonic()
    if source_model and _given("model") and model != source_model:
        raise UserError(f"two models are given, {source_model!r} and {model!r}; leave one out")
    name = source_model or model
    if Path(output).is_dir():
        raise UserError(f"cannot write the image {output}: it is a folder")
    which = _board(board)
    with Progress() as progress:
        source = _source(name, which, ctx, weights, progress)
        checkpoint = source.model       # an image cannot be compiled
        image = source.image
        progress("writing the image")
        image.save(output)
    result = {
        "model": image.name, "board": which.name, "image": output,
        "parameters": checkpoint.parameters, "bytes": image.size,
        "bytes_per_token": image.bytes_per_token(1),
        "bytes_per_token_full_context": image.bytes_per_token(image.context),
        "bits_per_weight": image.bits_per_weight, "context": image.context,
        "memory_bytes": image.needs["memory_bytes"],
        "instructions": image.needs["prog_depth"], "blocks": image.model_regs["blocks"],
        "seconds": time.monotonic() - started}
    _write_json(result, json_to)
    _say(f"{output}: {image.name} for {which.name}, {result['parameters']:,} parameters, "
         f"{result['bytes']:,} bytes, {result['bits_per_weight']:.2f} bits a weight, "
         f"{result['bytes_per_token']:,} bytes a token, context {image.context}")
    return 0


# ---- eval

@cli.command(name="eval")
@click.option("--text", metavar="FILE",
              help="Text to predict, a text a line, plain or .xz; by default the packaged held-out "
                   "stories.")
@click.option("--tokens", type=int, metavar="N", help="Most tokens to predict; by default all.")
@_weights_option
@_common
def eval_(text: str | None, tokens: int | None, weights: str, model: str, board: str, target: str,
          json_to: str | None, seed: int) -> int:
    """Perplexity of the exact integer arithmetic beside that of float32."""
    from .evaluate import perplexity, read_text, validation_text
    if _given("target") and target != "golden":
        raise UserError("eval runs the golden model, which is bit-exact with the board; use "
                        "--target golden or leave it out")
    if tokens is not None and tokens < 1:
        raise UserError(f"the number of tokens must be at least 1, not {tokens}")
    lines = validation_text() if text is None else read_text(text)
    which = _board(board)
    with Progress() as progress:
        source = _source(model, which, None, weights, progress)
        quantised = source.quantised
        found = perplexity(source.model, quantised, lines, max_tokens=tokens,
                           progress=lambda n: progress("predicting", n, tokens or 0))
    result = {"model": source.model.name, **found.as_dict()}
    _write_json(result, json_to)
    if json_to != "-":
        print(f"float32   {found.ppl_float:.4f} +- {found.ppl_se:.4f}\n"
              f"integers  {found.ppl_fixed:.4f} ({found.delta_pct:+.3f} % +- "
              f"{found.delta_se:.3f})\n"
              f"tokens    {found.tokens:,}")
    return 0


# ---- bench

@cli.command()
@click.option("-p", "--prompt", "prompts", default="128", show_default=True, metavar="N",
              help="Prompt tokens (several with commas between them); 0 leaves the test out.")
@click.option("-n", "--generate", "generates", default="32", show_default=True, metavar="N",
              help="Tokens to generate from bos; 0 leaves the test out.")
@click.option("-o", "--output", "form", default="md", show_default=True, metavar="FORM",
              help="Table as md, csv or json.")
@click.option("--against-raw", is_flag=True,
              help="Measure the weights as they are without packing and budget too.")
@_ctx_option
@_weights_option
@_common
def bench(prompts: str, generates: str, form: str, against_raw: bool, ctx: int | None,
          weights: str, model: str, board: str, target: str, json_to: str | None,
          seed: int) -> int:
    """Cycles, bandwidth and products of prefill and decode, from the core's counters."""
    from . import bench as benching
    from .targets import open_target
    if form not in ("md", "csv", "json"):
        raise UserError(f"there is no form {form!r}; give md, csv or json")
    if target == "golden":
        raise UserError("the golden model has no clock to measure; use --target sim or the port "
                        "of a board")
    which = _board(board)
    numbers = benching.counts(prompts, "-p"), benching.counts(generates, "-n")
    with Progress() as progress:
        source = _source(model, which, ctx, weights, progress)
        image = source.image
        tests = benching.plan(image, prompts=numbers[0], generates=numbers[1], seed=seed)
        with closing(open_target(target, which, progress=progress)) as runner:
            runner.load(source)
            results = benching.run(runner, image, which, tests, progress=progress)
            if against_raw:
                raw = replace(source, packing="raw", bits=None, target_ppl=None)
                runner.load(raw)
                results |= {f"{name} raw": found for name, found in benching.run(
                    runner, raw.image, which, tests, progress=progress).items()}
    _write_json(benching.as_json(results, image, which), json_to)
    if json_to != "-":
        print(benching.as_table(results, image, which, form=form))
    return 0


# ---- Bitstreams

_build_directory = click.option(
    "-o", "--output", metavar="FOLDER", help="Default: build/BOARD.", default=None)


@cli.command()
@click.option("--board", default="ulx3s_85f", show_default=True, metavar="BOARD")
@click.option("--seeds", default=3, show_default=True, metavar="N",
              help="Placements to try until one routes and meets timing; the fastest is kept.")
@click.option("--clock", "clock_mhz", type=float, metavar="MHZ",
              help="Another clock than the board's, such as one that timing meets; the memory's "
                   "times in cycles follow.")
@_build_directory
@click.option("--json", "json_to", metavar="FILE",
              help="Write the report as JSON; - is stdout, which then gets nothing else.")
def build(board: str, seeds: int, clock_mhz: float | None, output: str | None,
          json_to: str | None) -> int:
    """A board's bitstream, by Yosys and nextpnr; ends with a report. Of a board with a Zynq, the
    package from which Vivado makes it."""
    from . import build as building
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    which = _board(board)
    if which.zynq is not None:
        if _given("seeds"):
            raise UserError(f"--seeds is for nextpnr, and board {board} is Vivado's; leave it out")
        if clock_mhz is not None:
            raise UserError(f"--clock is for nextpnr, and board {board} is Vivado's; leave it out")
        return _package(which, Path(output or f"build/{board}"), json_to)
    if clock_mhz is not None:
        if which.ddr3 is not None:
            raise UserError(f"the clock of board {board} is its memory's; leave --clock out")
        if not 10 <= clock_mhz <= 200:
            raise UserError(f"--clock must be 10..200 MHz, not {clock_mhz:g}")
        which = replace(which, clock_mhz=clock_mhz)
    begun = time.monotonic()
    with Progress() as progress:
        def tell(line: str) -> None:
            progress(f"{time.monotonic() - begun:.0f} s: {line[:70]}")
        built = building.build(which, Path(output or f"build/{board}"), seeds=seeds, progress=tell)
    result = building.summary(which, built)
    _write_json(result, json_to)
    if json_to != "-":
        print(_listing(result))
    if not built.meets_timing:
        _say(f"timing is missed: {result['fmax_mhz']} of {which.clock_mhz:g} MHz. The bitstream is "
             "there, but may fail on the board; try --seeds, --clock, or a smaller Config")
        return DIFFERENT
    return 0


def _package(board: Board, directory: Path, json_to: str | None) -> int:
    """`build` where the bitstream is left to the vendor's tool."""
    from . import vivado
    with Progress() as progress:
        written = vivado.package(board, directory, progress=progress)
    result = vivado.summary(board, written)
    _write_json(result, json_to)
    if json_to != "-":
        print(_listing({name: fact for name, fact in result.items() if fact is not None}))
    _say(f"this is no bitstream yet: `{vivado.COMMAND}` in {directory} makes it. No vendor tool "
         f"has run on this package, so neither its Tcl nor {board.clock_mhz:g} MHz is confirmed")
    return 0


@cli.command()
@click.option("--board", default="ulx3s_85f", show_default=True, metavar="BOARD")
@_build_directory
def flash(board: str, output: str | None) -> int:
    """Load the bitstream that `build` made into a board."""
    from . import build as building
    which = _board(board)
    building.platform_of(which)
    building.flash(which, Path(output or f"build/{board}") / f"{board}.bit")
    return 0


# ---- info

@cli.command()
@click.argument("what", metavar="[IMAGE|BOARD|MODEL]", required=False)
@click.option("--plot", metavar="FILE", help="Draw the packing of an image, as SVG.")
@_common
def info(what: str | None, plot: str | None, model: str, board: str, target: str,
         json_to: str | None, seed: int) -> int:
    """Facts of an image, a board or a model; without an argument, what there is."""
    from meadowlark_boards import BOARDS

    from . import packing_report
    from .gguf_file import is_gguf
    from .model import NAMES
    if what is None and (_given("model") or _given("board")):
        what = model if _given("model") else board
        if what == board:
            _board(board)
    tensors: tuple[dict, ...] = ()
    if what is None:
        result: dict[str, Any] = {"boards": {b.name: b.title for b in BOARDS.values()},
                                  "models": list(NAMES)}
    elif what in BOARDS:
        result = _board_facts(BOARDS[what])
    elif Path(what).is_file() and not is_gguf(what):
        from .image import Image
        image = Image.load(what)
        result, tensors = _image_facts(image), image.tensors
    elif what in NAMES or Path(what).exists():
        from .model import load_model
        m = load_model(what)
        result = {"model": m.name, "parameters": m.parameters, "hidden": m.hidden,
                  "layers": len(m.layers), "heads": m.heads, "kv_heads": m.kv_heads,
                  "head_dim": m.head_dim, "ffn": m.ffn, "vocab": m.vocab, "context": m.context}
    else:
        raise UserError(f"{what!r} is neither an image nor a model; the boards are "
                        f"{', '.join(BOARDS)}, the models by name {', '.join(NAMES)}")
    if plot is not None:
        if not tensors:
            raise UserError("only the packing of an image can be drawn; give an image file")
        from .files import write_atomic
        try:
            write_atomic(Path(plot), packing_report.svg(tensors, result["image"]).encode())
        except OSError as error:
            raise UserError(f"cannot write {plot}: {error.strerror or error}") from error
    _write_json(result | ({"tensors": list(tensors)} if tensors else {}), json_to)
    if json_to != "-":
        print(_listing(result))
        if tensors:
            print(packing_report.table(tensors))
    return 0


def _board_facts(board: Board) -> dict:
    from dataclasses import asdict
    return {"board": board.name, "title": board.title, "clock_mhz": board.clock_mhz,
            "bandwidth_bytes_per_s": board.bandwidth, "config": board.config.as_dict(),
            "memory": asdict(board.memory), "link": asdict(board.link)}


def _image_facts(image: Image) -> dict:
    return {"image": image.name, "board": image.board, "parameters": image.parameters,
            "bytes": image.size, "bits_per_weight": round(image.bits_per_weight, 3),
            "bytes_per_token": image.bytes_per_token(1),
            "bytes_per_token_full_context": image.bytes_per_token(image.context),
            "context": image.context, "instructions": len(image.instructions),
            "shape": image.shape, "needs": image.needs, "model_regs": image.model_regs,
            "bos_id": image.bos_id, "stop_ids": list(image.stop_ids),
            "chat_template": image.chat is not None}


def _listing(facts: dict, indent: str = "") -> str:
    """Facts as lines of names and values."""
    lines, width = [], max(map(len, map(str, facts)))
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", _listing(value, indent + "  ")]
        elif isinstance(value, list) and len(shown := list(map(str, value))) > 1 \
                and max(map(len, shown)) > 20:
            lines += [f"{indent}{name}", *(f"{indent}  {line}" for line in shown)]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else \
                f"{value:,}" if isinstance(value, (int, float)) else str(value)
            lines.append(f"{indent}{name:{width}}  {shown}")
    return "\n".join(lines)


# ---- Entry

def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0: done. 1: ``--check`` found a difference. 2: something the user can put right, told in one
    sentence on stderr. 130: interrupted, by Ctrl-C or a signal to end; tools run for us end too.
    """
    from .simboard import SimulationError
    if args is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return cli.main(args=list(sys.argv[1:] if args is None else args), prog_name="meadowlark",
                        standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_USE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "meadowlark"
        return _fail(f"{error.format_message().rstrip('.')}; see `{where} --help`")
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except SimulationError as error:
        return _fail(str(error), DIFFERENT)
    except BrokenPipeError:
        # Whoever reads our output has left; nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG_USE
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{name}")


def _fail(sentence: str, status: int = WRONG_USE) -> int:
    sys.stdout.flush()
    _say("error: " + " ".join(sentence.split()))
    return status


if __name__ == "__main__":
    sys.exit(main())
