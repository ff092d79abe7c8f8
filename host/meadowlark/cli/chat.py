"""``meadowlark chat``."""
from __future__ import annotations

import sys
import time
from contextlib import closing

import click

from ..errors import UserError
from .generate import why_ended
from .options import (
    board_named,
    check_most,
    common_options,
    ctx_option,
    drawing_options,
    open_source,
    weights_option,
)
from .terminal import Progress, Text, ask, say, write_json


@click.command()
@drawing_options
@ctx_option
@weights_option
@common_options
def chat(max_new: int | None, temperature: float, top_k: int, top_p: float, ctx: int | None,
         weights: str, model: str, board: str, target: str, json_to: str | None,
         seed: int) -> int:
    """Talk with a model: a question a line, until an empty line or the end of the input.

    Ctrl-C ends an answer, and between answers the conversation.
    """
    from ..sampling import sampling
    from ..targets import open_target
    which = board_named(board)
    draw = sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                    max_top_k=which.config.topk)
    check_most(max_new)
    with Progress() as progress:
        source = open_source(model, which, ctx, weights, progress)
        talk, image, turns = source.conversation(), source.image, []
        with closing(open_target(target, which, progress=progress)) as runner:
            runner.load(source)
            while question := _question():
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
                    "tokens_per_s": len(tokens) / max(ended - started, 1e-9)})
                say(_turn(turns[-1]))
    write_json({"model": image.name, "board": which.name, "target": target, "seed": seed,
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
