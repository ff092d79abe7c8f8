"""``meadowlark chat``."""
from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..files import check_outputs
from . import interrupts
from .generate import drafted
from .options import (Asked, Drawing, board_option, drawing_options, json_option, model_options,
                      stop_option, system_option, target_option)
from .scores import tell_saturated
from .status import WRONG_USE
from .terminal import Progress, Text, ask, say, write_json

if TYPE_CHECKING:
    from ..api import Chip
    from ..api.results import Steps
    from ..api.talk import Talk

COMMANDS = """\
/help   shows this list
/reset  begins a new conversation, with the same system message
/exit   ends the program, as the end of the input does
A question that begins with / has a space in front of it."""


@click.command()
@click.option("-p", "--prompt", metavar="TEXT",
              help="First question, asked before those of the input.")
@system_option
@click.option("--keep", type=click.Choice(("recent", "system")), default="recent",
              show_default=True,
              help="What stays when the context is full: the system message and the latest "
                   "questions and answers, up to half of the context (recent), or the system "
                   "message alone (system).")
@stop_option
@drawing_options
@model_options()
@board_option("virtual", "Board to compile for and to simulate. A port has its own.")
@target_option("sim", "pins", "golden")
@json_option
def chat(prompt: str | None, system: str, keep: str, stop: Sequence[str], drawing: Drawing,
         asked: Asked, board: str, target: str, json_to: str | None) -> int:
    """Talk with a model.

    Each line is a question; empty lines are skipped. The conversation ends at /exit or the end of
    the input; /help lists the commands. Ctrl-C ends an answer, and between answers the
    conversation. What is asked is text: only the model's chat template makes control tokens.
    """
    check_outputs(json_to, inputs=[asked.name])
    with Progress() as progress, asked.on(target, board, progress) as chip:
        talk = chip.talk(system, keep=keep, stop=stop, seed=drawing.seed,
                         draft=drawing.draft, **drawing.how)
        result: dict[str, Any] = {
            "model": chip.image.name, "board": chip.board.name, "target": target,
            "seed": drawing.seed, "turns": [], "refused": [], "end": ""}
        session = _Session(chip, talk, keep, result, quiet=json_to == "-")
        try:
            result["end"] = session.run(prompt)
        except KeyboardInterrupt:
            result["end"] = "Ctrl-C"
            raise
        except Exception as error:
            result["end"] = f"error: {error}"
            raise
        finally:
            write_json(result, json_to)
    # A script that pipes its questions is to know that one was not asked.
    return WRONG_USE if result["refused"] and not sys.stdin.isatty() else 0


class _Session:
    """A conversation on the terminal; ``result`` gets its turns as they come."""

    def __init__(self, chip: Chip, talk: Talk, keep: str, result: dict[str, Any], *,
                 quiet: bool) -> None:
        self._chip, self._talk, self._keep = chip, talk, keep
        self._result, self._quiet = result, quiet

    def run(self, prompt: str | None) -> str:
        """Ask all questions; how it ended."""
        if prompt is not None:
            self._question(prompt)
        for line in _lines():
            text = line.decode(errors="surrogateescape")
            command, *others = text.split() or [""]
            if not text.startswith("/"):
                self._question(text)
            elif command == "/exit" and not others:
                return command
            elif command == "/reset" and not others:
                self._talk.reset()
                say("a new conversation begins")
            elif command == "/help" and not others:
                say(COMMANDS)
            else:
                self._refuse(text.strip(), f"there is no command {text.strip()}; /help lists "
                                           "them, and a question has a space in front of its /")
        return "end of input"

    def _refuse(self, question: str, reason: str) -> None:
        self._result["refused"].append({"question": question, "reason": reason})
        say(f"error: {reason}")

    def _question(self, text: str) -> None:
        """Ask it, or say why not; the conversation then stays as it is."""
        question = text.strip()
        if not question:
            return
        try:
            answer = self._talk.ask(question)
        except UserError as error:
            self._refuse(question.encode(errors="backslashreplace").decode(), str(error))
            return
        if forgotten := self._talk.forgotten:
            say("the context is full; " + (
                "a new conversation begins" if self._keep == "system" else
                "the oldest question and its answer are forgotten" if forgotten == 1 else
                f"the oldest {forgotten} questions and their answers are forgotten"))
        self._answer(question, answer)

    def _answer(self, question: str, answer: Steps) -> None:
        out, end = Text("", quiet=self._quiet), "error"
        terminal = sys.stdin.isatty()
        try:
            with interrupts.patience(terminal), closing(answer) as steps:
                for step in steps:
                    out.write(step.text)
            end = ""
        except KeyboardInterrupt:
            end = "Ctrl-C"
            if not terminal:
                raise
            interrupts.dealt_with()
        finally:
            out.end()
            done = self._chip.last
            assert done is not None
            turn = {"question": question, "prompt_tokens": done.prompt_tokens,
                    "cached_tokens": done.cached_tokens, "tokens": list(done.tokens),
                    "text": done.text, "end": end or done.ended, "tokens_per_s": done.tokens_per_s,
                    "counters": dict(done.counters)}
            self._result["turns"].append(turn)
        turn |= drafted(done)
        say(_turn(turn))
        tell_saturated(turn["counters"])


def _turn(turn: dict) -> str:
    """One line about a turn."""
    drafts = f"; {turn['tokens_per_pass']:.2f} tokens per pass" if turn["drafted"] else ""
    return (f"{turn['prompt_tokens']} ({turn['cached_tokens']} from the cache) + "
            f"{len(turn['tokens'])} tokens, ended by {turn['end']}; "
            f"{turn['tokens_per_s']:.1f} tokens/s here{drafts}")


def _lines() -> Iterator[bytes]:
    """Lines of the input; on a terminal each is asked for. Bytes, because what sys.stdin gives
    after an error in its encoding is not to be trusted."""
    while True:
        if sys.stdin.isatty():
            ask("> ")
        line = sys.stdin.buffer.readline()
        if not line:
            return
        yield line
