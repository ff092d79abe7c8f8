"""Options that several commands take, and what is made of them.

Each command takes only those that change what it does. What is named as in llama.cpp has the short
and long names that it has there.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import UserError
from .terminal import Progress, warn

if TYPE_CHECKING:

    from ..api import Chip, LoadedModel, Message
    from ..api.results import DrawingOptions


def given(name: str) -> bool:
    """The option stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def board_option(default: str, text: str) -> Callable[[Callable], Callable]:
    return click.option("--board", default=default, show_default=True, metavar="BOARD",
                        help=f"{text} `meadowlark info` lists the boards; a file that ends in .py "
                             "is one of its own.")


def asked_board(board: str) -> str | None:
    """What ``--board`` says. None if it is not given: then an image has its own, a port as well,
    and else it is the default."""
    return board if given("board") else None


def sizes_option(behind: str = "") -> Callable[[Callable], Callable]:
    """``-p``, ``-n`` and ``-d``, texts: sizes of the tests of a bench, see :func:`counts` and
    :func:`positions_of`. behind: more of the help of ``-d``."""
    options = (
        click.option("-p", "--n-prompt", "prompts", default="128", show_default=True, metavar="N",
                     help="Tokens of the prompt; several numbers with commas between them make "
                          "several tests, 0 leaves the test out."),
        click.option("-n", "--n-gen", "generates", default="32", show_default=True, metavar="N",
                     help="Tokens to generate from bos, likewise."),
        click.option("-d", "--position", "positions", default="0", show_default=True, metavar="N",
                     help="Position at which the tests begin, likewise; llama-bench calls it "
                          f"depth.{behind}"))

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command
    return decorate


def _numbers(text: str, option: str, what: str) -> list[int]:
    """What stands between commas, each once; what: end of the sentence that refuses it."""
    try:
        numbers = [int(x) for x in text.split(",")]
    except ValueError:
        numbers = [-1]
    if any(x < 0 for x in numbers):
        raise UserError(f"{option} {text!r} is no {what}")
    return list(dict.fromkeys(numbers))


def counts(text: str, option: str) -> list[int]:
    """ "128" or "16,128" -> numbers of tokens; 0 leaves a test out.

    Raises
    ------
    UserError
        Not whole numbers.
    """
    return [n for n in _numbers(
        text, option, "number of tokens; give one such as 128, several with commas between them, "
        "or 0 to leave the test out") if n]


def positions_of(text: str) -> list[int]:
    """ "2000" or "0,2000" -> positions; raises as :func:`counts`."""
    return _numbers(text, "--position", "position; give one such as 2000, or several with commas "
                    "between them; 0 is the beginning")


def target_option(*names: str) -> Callable[[Callable], Callable]:
    """``--target``, of these and the port of a board; the first is the default."""
    what = {"sim": "the gateware, simulated",
            "pins": "the whole chip, simulated down to the pins of its SDRAM and UART",
            "golden": "the bit-exact model of it"}
    return click.option("--target", default=names[0], show_default=True, metavar="TARGET",
                        help="What the model runs on: "
                             + ", ".join(f"{name} ({what[name]})" for name in names)
                             + ", or the port of a board.")


json_option = click.option("--json", "json_to", metavar="FILE",
                           help="Write the results as JSON; - is stdout, which then gets nothing "
                                "else.")


html_option = click.option("--html", "html_to", metavar="FILE",
                           help="Write a report too: one HTML file, with pictures in it.")


def stop_option(command: Callable) -> Callable:
    """``--stop``: texts that end an answer; the command gets them as ``stop``."""
    command = click.option("--stop", multiple=True, metavar="TEXT",
                           help="End before this text. May be given several times.")(command)

    @functools.wraps(command)
    def checked(*args, stop: tuple[str, ...], **kw):
        if any(not text for text in stop):
            raise UserError("--stop needs a text that is not empty")
        return command(*args, **kw, stop=stop)
    return checked


system_option = click.option(
    "--system", "-sys", "--system-prompt", "system", default="", metavar="TEXT",
    help="System message: what the model is told before the first question. Where its chat "
         "template knows none, it stands in front of that question.")


def messages(question: str, system: str) -> list[Message]:
    """A conversation that asks a question."""
    said = [{"role": "system", "content": system}] if system else []
    return [*said, {"role": "user", "content": question}]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The model that was asked for, and in which form; see :func:`..api.load`."""
    name: str
    context: int | None
    weights: str
    packing: str
    all_tokens: bool
    lanes: str
    bits: float | None
    target_ppl: float | None
    fuse_ffn: str
    drop_attention: str
    maximum: str

    def load(self, progress: Progress, *, draft: str = "auto") -> LoadedModel:
        """The model; draft: its table of drafts."""
        from ..api.model import load
        return load(self.name, context=self.context, weights=self.weights, packing=self.packing,
                    all_tokens=self.all_tokens, lanes=self.lanes, bits=self.bits,
                    target_ppl=self.target_ppl, draft=draft, fuse_ffn=self.fuse_ffn,
                    drop_attention=self.drop_attention, maximum=self.maximum,
                    progress=progress, warn=warn)

    def on(self, target: str, board: str, progress: Progress, **options: Any) -> Chip:
        """The model on a target, which is there before anything is read or compiled for it.

        Without --board that is the one at the port; for a simulation the one that an image was made
        for, or the default. options: of :meth:`.LoadedModel.on`.
        """
        return self.load(progress).on(target, board=asked_board(board), load=False, **options)


def model_options(*, argument: bool = False, default: str | None = "stories", image: bool = True,
                  measures: bool = False) -> Callable[[Callable], Callable]:
    """The options of a model; the command gets them as ``asked``.

    argument: MODEL is an argument of the command instead of an option. default: of the option;
    None: it has to be given. image: the command makes or takes an image, so that context and
    packing matter. measures: what is only of use to measure it matters too.
    """
    ways: dict[str, Any] = dict(required=True) if default is None else \
        dict(default=default, show_default=True)
    model = click.argument("model", metavar="MODEL") if argument else click.option(
        "-m", "--model", metavar="MODEL", **ways,
        help=f"GGUF file, Hugging Face folder, hf:owner/name, {'image file, ' if image else ''}"
             "checkpoint of llama2.c, or a name that `meadowlark info` lists.")
    context = click.option(
        "-c", "--ctx", "--ctx-size", "context", type=int, metavar="N",
        help="Tokens the KV cache holds. By default as many as model and board allow.")
    packing = click.option(
        "--packing", default="auto", show_default=True, metavar="PACKING",
        help="How weights are packed in memory: raw, meadow or entropy. With auto each tensor "
             "takes the smallest that the board can read.")
    all_tokens = click.option(
        "--all-tokens", is_flag=True,
        help="Take all tokens of a prompt through all of the last layer, to measure what leaving "
             "that out brings.")
    maximum = click.option(
        "--maximum", type=click.Choice(("exact", "unified", "unified-16", "unified-4")),
        default="exact", show_default=True,
        help="With unified a constant stands for the maximum of each row of scores, to measure "
             "what waiting for it costs. Rows whose maximum is not in the 8 log2 units below it "
             "(16, 4) are done again.")
    lanes = click.option(
        "--lanes", type=click.Choice(("direct", "pairs", "auto")), default="auto",
        show_default=True,
        help="Lanes that a query head has in decode: one (direct), or several where lanes are free "
             "(pairs). With auto those that are quicker. Only some boards can have several.")
    options = [
        model, *([context] if image else []),
        click.option("--weights", type=click.Choice(("auto", "int8")), default="auto",
                     show_default=True,
                     help="With auto, blocks of a GGUF file (Q8_0, Q4_0, Q4_1) stay as they are "
                          "where the board can read them. int8 gives all weights 8 bits and a "
                          "scale per row."),
        click.option("--bits", type=float, metavar="B",
                     help="Round int8 weights to the finest grid that takes B bits per weight, "
                          "entropy-coded."),
        click.option("--target-ppl", type=float, metavar="PERCENT",
                     help="Round int8 weights to the coarsest grid that costs PERCENT of "
                          "perplexity on the calibration text."),
        click.option("--fuse-ffn", default="none", show_default=True, metavar="N",
                     help="Run N FFNs that follow each other side by side, as one: fewer steps, "
                          "another model. auto fuses those that depend little on each other."),
        click.option("--drop-attention", default="", metavar="LAYERS",
                     help="Leave the attention of some layers out, such as 3-6, counted from 0: "
                          "another model. FFNs without attention between them can be fused."),
        *([packing] if image else []), *([all_tokens, lanes] if image and measures else []),
        *([maximum] if measures else [])]

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)

        @functools.wraps(command)
        def collected(*args, model: str, weights: str, bits: float | None,
                      target_ppl: float | None, fuse_ffn: str, drop_attention: str,
                      context: int | None = None, packing: str = "auto",
                      all_tokens: bool = False, maximum: str = "exact", lanes: str = "auto",
                      **kw):
            return command(*args, **kw, asked=Asked(
                name=model, context=context, weights=weights, packing=packing,
                all_tokens=all_tokens, lanes=lanes, bits=bits, target_ppl=target_ppl,
                fuse_ffn=fuse_ffn, drop_attention=drop_attention, maximum=maximum))
        return collected
    return decorate


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are drawn, and how many: options of :meth:`..api.Chip.steps`."""
    how: DrawingOptions
    seed: int
    draft: str


def drawing_options(command: Callable) -> Callable:
    """The options of what is drawn; the command gets them as ``drawing``."""
    for option in reversed((
            click.option("-n", "--predict", "--tokens", "max_new", type=int, metavar="N",
                         help="Most tokens to generate. By default until the model ends the text "
                              "or the context is full."),
            click.option("--temp", "--temperature", "temperature", default=0.0, show_default=True,
                         help="0 takes the likeliest token; --top-k, --top-p and --seed then "
                              "change nothing."),
            click.option("--top-k", default=0, show_default=True,
                         help="Draw from the K likeliest tokens; 0 is all."),
            click.option("--top-p", default=1.0, show_default=True,
                         help="Draw from the fewest likeliest tokens that hold this share; 1 is "
                              "all."),
            click.option("-s", "--seed", default=0, show_default=True, type=int,
                         help="Seed of the draws. The same seed gives the same text."),
            click.option("--draft", default="auto", show_default=True, metavar="K",
                         help="Guess the next K tokens and check them in one pass: the same text "
                              "in fewer passes. auto does so as long as it pays, off never. With "
                              "--top-k and --top-p there are no drafts: the core draws one token "
                              "a pass then."))):
        command = option(command)

    @functools.wraps(command)
    def collected(*args, max_new: int | None, temperature: float, top_k: int, top_p: float,
                  seed: int, draft: str, **kw):
        if max_new is not None and max_new < 1:
            raise UserError(f"the number of tokens must be at least 1, not {max_new}")
        return command(*args, **kw, drawing=Drawing(
            how={"max_tokens": max_new, "temperature": temperature, "top_k": top_k,
                 "top_p": top_p},
            seed=seed, draft=draft))
    return collected
