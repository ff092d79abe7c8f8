"""``meadowlark generate``."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..files import check_outputs
from .options import (
    Asked,
    Drawing,
    board_option,
    drawing_options,
    json_option,
    messages,
    model_options,
    stop_option,
    system_option,
    target_option,
)
from .recordings import Trace, trace_option, waves_option
from .scores import tell_saturated
from .status import DIFFERENT
from .terminal import Progress, Text, say, write_json

if TYPE_CHECKING:
    from ..api import Chip, Completion, Step, Waves


@click.command()
@click.argument("prompt", required=False)
@click.option("-p", "--prompt", "text", metavar="TEXT", help="The same as PROMPT.")
@click.option("-f", "--file", metavar="FILE",
              help="Read the prompt from a file in UTF-8, without the line end at its end.")
@click.option("--ids", metavar="IDS",
              help="Take token ids for the prompt, as they are, such as 5,7,9, and write ids. A "
                   "model without a tokenizer needs them.")
@click.option("--prompts", metavar="FILE",
              help="Go on with many texts at once: one a line, or where FILE ends in .jsonl each "
                   'line a JSON text or an object such as {"prompt": "Hi", "seed": 7}. Each is '
                   "what it would be alone.")
@click.option("--parallel", type=click.IntRange(min=1), metavar="N",
              help="Of --prompts, so many are in work at once; by default as many as a pass of "
                   "the board takes.")
@drawing_options
@stop_option
@click.option("--chat", is_flag=True,
              help="PROMPT is a question: put it in the model's chat template.")
@system_option
@click.option("--ignore-eos", is_flag=True, help="Go on after the model ends its text.")
@click.option("--check", is_flag=True,
              help="Compare every token and logit with the golden model; status 1 if one differs.")
@model_options()
@board_option("virtual", "Board to compile for and to simulate. A port has its own.")
@target_option("sim", "pins", "golden")
@trace_option
@waves_option
@json_option
def generate(prompt: str | None, text: str | None, file: str | None, ids: str | None,
             prompts: str | None, parallel: int | None, drawing: Drawing, stop: Sequence[str],
             chat: bool, system: str, ignore_eos: bool, check: bool, asked: Asked, board: str,
             target: str, trace: Trace | None, waves: Waves | None, json_to: str | None) -> int:
    """Write how a text goes on, or answer a question.

    The text is PROMPT. With - it is read from stdin, in UTF-8, without the line end at its end.
    Tokens are written as they arrive. Special tokens that stand in PROMPT, such as <|im_end|>, are
    taken as such; with --chat they are text, as all that is asked.
    """
    if check and target == "golden":
        raise UserError("--check compares a board with the golden model, which --target golden "
                        "is; leave one of them out")
    if system and not chat:
        raise UserError("--system is told to a model in its chat template; give --chat too, or "
                        "leave it out")
    check_outputs(json_to, trace and trace.file, *(waves.files if waves else ()),
                  inputs=[asked.name, file, prompts])
    if prompts is not None:
        if any(way is not None for way in (prompt, text, file, ids)):
            raise click.UsageError("give the prompt as PROMPT, with --prompt, --file or --ids, or "
                                   "many with --prompts, in one way only")
        if trace or waves:
            raise UserError(f"{'--trace' if trace else '--waves'} records one run, and --prompts "
                            "makes many; leave one of them out")
        from .many import generate_many
        return generate_many(prompts, parallel, drawing, stop, chat, system, ignore_eos, check,
                             asked, board, target, json_to)
    if parallel is not None:
        raise UserError("--parallel is about --prompts; give that too, or leave it out")
    prompt = _prompt(prompt, text, file, ids)
    numbers = None
    if ids is not None:
        numbers = _numbers(ids)
        prompt = ",".join(map(str, numbers))
    if numbers is not None and (chat or stop):
        raise UserError("--chat and --stop are about text, which --ids leaves out; leave them out "
                        "too, or give a text")
    with Progress() as progress, asked.on(target, board, progress, trace=trace and trace.timeline,
                                          waves=waves) as chip:
        given = numbers or (messages(prompt, system) if chat else prompt)
        with closing(chip.steps(given, stop=stop, ignore_eos=ignore_eos, seed=drawing.seed,
                                draft=drawing.draft, **drawing.how)) as steps:
            out = Text("" if chat else prompt, quiet=json_to == "-")
            for step in steps:
                out.write(step.text if numbers is None else _as_id(step, chip, ignore_eos))
        out.end()
        done = chip.last
        assert done is not None
        cycles = done.counters.get("cycles")
        result: dict[str, Any] = {
            "model": chip.image.name, "board": chip.board.name, "target": target,
            "seed": drawing.seed, "prompt_tokens": done.prompt_tokens,
            "tokens": list(done.tokens), "text": done.text if numbers is None else None,
            "end": done.ended, "tokens_per_s": done.tokens_per_s, **drafted(done),
            "cycles_per_token": done.cycles_per_token if len(done.tokens) > 1 else cycles,
            "bytes_per_token": chip.bytes_per_token(done),
            "host_messages": chip.target.messages, "clock_mhz": chip.board.clock_mhz,
            "counters": dict(done.counters)}
        if trace:
            trace.write(progress)
        verdict = chip.verify() if check else None
        if verdict is not None:
            result |= {"bit_exact": verdict.bit_exact,
                       "first_difference": verdict.first_difference}
    write_json(result, json_to)
    say(_summary(result))
    if trace:
        trace.tell()
    if waves:
        say(waves.told())
    tell_saturated(done.counters)
    if verdict is None:
        return 0
    say(f"bit-exact with the golden model over {verdict.tokens} tokens" if verdict.bit_exact
        else f"NOT bit-exact: {verdict.first_difference}")
    return 0 if verdict.bit_exact else DIFFERENT


def _as_id(step: Step, chip: Chip, ignore_eos: bool) -> str:
    """What is written of a token where ids are, and not text."""
    ends = step.token is None or not ignore_eos and step.token in chip.image.stop_ids
    return "" if ends else f",{step.token}"


def _numbers(text: str) -> list[int]:
    """ "5,7,9" -> token ids."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise UserError(f"--ids {text!r} is no list of token ids; give whole numbers with commas "
                        "between them, such as 5,7,9")
    return found


def _prompt(prompt: str | None, text: str | None, file: str | None, ids: str | None) -> str:
    """The prompt, given in one of four ways."""
    ways = [way for way in (prompt, text, file, ids) if way is not None]
    if len(ways) != 1:
        raise click.UsageError("give the prompt as PROMPT, with --prompt, --file or --ids"
                               + (", in one way only" if ways else ""))
    if file is None and prompt != "-":
        return ways[0]
    name = "stdin" if ways[0] == "-" else ways[0]
    try:
        raw = sys.stdin.buffer.read() if ways[0] == "-" else Path(ways[0]).read_bytes()
        return raw.decode().removesuffix("\n")
    except OSError as error:
        raise UserError(f"cannot read the prompt from {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt in {name} is not UTF-8 (byte {error.start})") from error


def drafted(done: Completion) -> dict[str, Any]:
    """What drafts brought a run."""
    return {"tokens_per_pass": done.tokens_per_pass, "drafted": done.drafted,
            "accepted": done.accepted}


def _summary(result: dict) -> str:
    """One line about a run."""
    parts = [f"{result['prompt_tokens']} + {len(result['tokens'])} tokens, ended by "
             f"{result['end']}", f"{result['tokens_per_s']:.1f} tokens/s here"]
    if result["drafted"]:
        parts.append(f"{result['tokens_per_pass']:.2f} tokens per pass")
    if cycles := result["cycles_per_token"]:
        mhz = result["clock_mhz"]
        parts.append(f"{cycles:,.0f} cycles per token ({mhz * 1e6 / cycles:,.1f} tokens/s at "
                     f"{mhz:g} MHz)")
    return "; ".join(parts)
