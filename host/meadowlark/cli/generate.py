"""``meadowlark generate``."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..files import check_outputs
from ..text.stopped import why_ended
from .options import (
    Asked,
    Drawing,
    board_option,
    drawing_options,
    json_option,
    model_options,
    open_runner,
    stop_option,
    system_option,
    target_option,
)
from .recordings import Trace, recorded, trace_option, waves_option
from .scores import tell_saturated
from .status import DIFFERENT
from .terminal import Progress, Text, say, write_json

if TYPE_CHECKING:
    from ..compile.image import Image
    from ..run.waves import Waves


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
    from ..run.targets import GoldenTarget
    from ..run.targets import check as compare
    max_new = drawing.max_new
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
    with Progress() as progress, closing(open_runner(target, board, asked, progress,
                                                     trace=trace is not None,
                                                     waves=waves is not None)) as runner:
        which = runner.board
        draw = drawing.sampling(which)
        source = asked.open(which, progress)
        tokens = source.prompt(prompt, chat=chat, system=system) if numbers is None \
            else source.given(numbers)
        image = source.image
        stops = () if ignore_eos else image.stop_ids
        # The last token needs no place of its own.
        most = min(max_new or image.context, image.context - len(tokens) + 1)
        progress("weighing drafts")
        drafts = drawing.drafting(draw, image, runner)
        runner.load(source)
        progress("taking the prompt")
        out = Text("" if chat else prompt,
                   source.tokenizer.stream(tokens) if numbers is None else _Ids(), stop,
                   quiet=json_to == "-")
        events, started, ended = [], time.monotonic(), 0.0
        with recorded(runner, image, "generate", trace, waves), closing(runner.generate(
                tokens, draw, max_new=most, stop_ids=stops, drafts=drafts)) as run:
            for event in run:
                ended = time.monotonic()
                events.append(event)
                progress("generating", len(events), most)
                if event.token not in stops and not out.push(event.token):
                    break
        out.end()
        seconds = max(ended - started, 1e-9)
        counters, messages = runner.counters(), runner.messages
        passes = range(len(tokens), len(tokens) + len(events) - 1)    # decode passes, by position
        result: dict[str, Any] = {
            "model": image.name, "board": which.name, "target": target,
            "seed": drawing.seed,
            "prompt_tokens": len(tokens), "tokens": [e.token for e in events],
            "text": out.text if numbers is None else None,
            "end": why_ended([e.token for e in events], stops, out.stopped,
                             len(events) == max_new),
            "tokens_per_s": len(events) / seconds,
            **drafted(counters, len(events)),
            "cycles_per_token": _cycles_per_token(counters, len(events)),
            "bytes_per_token": _bytes_per_token(image, len(tokens), passes),
            "host_messages": messages, "clock_mhz": which.clock_mhz, "counters": counters}
        if trace:
            trace.write(progress)
        verdict = None
        if check:
            golden = GoldenTarget(which, progress=progress)
            golden.load(source)
            verdict = compare(events, golden.generate(tokens, draw, max_new=most, stop_ids=stops,
                                                      drafts=drafts),
                              whole=not out.stopped, counters=(counters, golden.counters),
                              progress=progress)
            result["bit_exact"] = verdict.bit_exact
            result["first_difference"] = verdict.first_difference
    write_json(result, json_to)
    say(_summary(result))
    if trace:
        trace.tell()
    if waves:
        say(waves.told())
    tell_saturated(counters)
    if verdict is None:
        return 0
    say(f"bit-exact with the golden model over {verdict.tokens} tokens" if verdict.bit_exact
        else f"NOT bit-exact: {verdict.first_difference}")
    return 0 if verdict.bit_exact else DIFFERENT


class _Ids:
    """What :class:`.terminal.Text` writes instead of text: ids, each behind a comma."""

    def push(self, token: int) -> str:
        return f",{token}"

    def flush(self) -> str:
        return ""


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


def drafted(counters: dict[str, int], tokens: int) -> dict[str, Any]:
    """What drafts brought a run that gave so many tokens. tokens_per_pass: of the passes behind the
    prompt's last one, which gives the first token; 1 where there were none."""
    accepted = counters.get("accepted", 0)
    passes = max(tokens - 1 - accepted, 1)
    return {"tokens_per_pass": 1 + accepted / passes, "drafted": counters.get("drafted", 0),
            "accepted": accepted}


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
    if result["drafted"]:
        parts.append(f"{result['tokens_per_pass']:.2f} tokens per pass")
    if cycles := result["cycles_per_token"]:
        mhz = result["clock_mhz"]
        parts.append(f"{cycles:,.0f} cycles per token ({mhz * 1e6 / cycles:,.1f} tokens/s at "
                     f"{mhz:g} MHz)")
    return "; ".join(parts)
