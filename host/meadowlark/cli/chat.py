"""``meadowlark chat``."""
from __future__ import annotations

import sys
import time
from contextlib import closing

import click

from ..errors import UserError
from ..files import check_outputs
from .generate import why_ended
from .options import (
    Asked,
    Drawing,
    board_named,
    board_option,
    drawing_options,
    json_option,
    model_options,
    target_option,
)
from .scores import tell_saturated
from .terminal import Progress, Text, ask, say, write_json


@click.command()
@click.option("-p", "--prompt", metavar="TEXT",
              help="First question, asked before those of the input.")
@drawing_options
@model_options()
@board_option("virtual", "Board to compile for and to simulate.")
@target_option("sim", "pins", "golden")
@json_option
def chat(prompt: str | None, drawing: Drawing, asked: Asked, board: str, target: str,
         json_to: str | None) -> int:
    """Talk with a model.

    Each line is a question. The conversation ends at an empty line or the end of the input.
    Ctrl-C ends an answer, and between answers the conversation.
    """
    from ..targets import open_target
    which = board_named(board)
    check_outputs(json_to, inputs=[asked.name])
    draw, max_new = drawing.sampling(which), drawing.max_new
    with Progress() as progress:
        source = asked.open(which, progress)
        talk, image, turns = source.conversation(), source.image, []
        with closing(open_target(target, which, progress=progress)) as runner:
            runner.load(source)
            while question := prompt or _question():
                prompt = None
                ids = source.fitting(talk.ask(question), "with this question the conversation",
                                     "start a new one")
                most = min(max_new or image.context, image.context - len(ids) + 1)
                out = Text("", source.tokenizer.stream(ids), (), quiet=json_to == "-")
                tokens, interrupted = [], False
                started, ended = time.monotonic(), 0.0
                progress("thinking")
                try:
                    with closing(runner.generate(ids, draw, max_new=most,
                                                 stop_ids=image.stop_ids, reuse=True)) as run:
                        for event in run:
                            ended = time.monotonic()
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
                    "end": "Ctrl-C" if interrupted else why_ended(
                        tokens, image.stop_ids, out, len(tokens) == max_new),
                    "tokens_per_s": len(tokens) / max(ended - started, 1e-9),
                    "counters": runner.counters()})
                say(_turn(turns[-1]))
                tell_saturated(turns[-1]["counters"])
    write_json({"model": image.name, "board": which.name, "target": target, "seed": drawing.seed,
                 "turns": turns}, json_to)
    return 0


def _turn(turn: dict) -> str:
    """One line about a turn."""
    return (f"{turn['prompt_tokens']} ({turn['cached_tokens']} from the cache) + "
            f"{len(turn['tokens'])} tokens, ended by {turn['end']}; "
            f"{turn['tokens_per_s']:.1f} tokens/s here")


def _question() -> str:
    """The next line of the input, "" at its end; asked for on a terminal."""
    if sys.stdin.isatty():
        ask("> ")
    try:
        question = sys.stdin.readline().strip()
        question.encode()
        return question
    except UnicodeError:
        raise UserError("the question is not valid UTF-8; check the terminal's encoding") from None
