"""``meadowlark chat``."""
from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..files import check_outputs
from ..run.prepare import check_text
from ..text.stopped import why_ended
from . import interrupts
from .generate import drafted
from .options import (Asked, Drawing, board_option, drawing_options, json_option, model_options,
                      open_runner, stop_option, system_option, target_option)
from .scores import tell_saturated
from .status import WRONG_USE
from .terminal import Progress, Text, ask, say, write_json

if TYPE_CHECKING:
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..run.prepare import Source
    from ..run.targets import Drafting, Target
    from ..text.chat import Conversation

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
    with Progress() as progress, closing(open_runner(target, board, asked, progress)) as runner:
        which = runner.board
        draw = drawing.sampling(which)
        source = asked.open(which, progress)
        talk = source.conversation(system)
        image = source.image
        result: dict[str, Any] = {
            "model": image.name, "board": which.name, "target": target, "seed": drawing.seed,
            "turns": [], "refused": [], "end": ""}
        progress("weighing drafts")
        drafts = drawing.drafting(draw, image, runner)
        runner.load(source)
        session = _Session(source, runner, talk, draw, drafts, drawing.max_new, stop, keep, result,
                           progress, quiet=json_to == "-")
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

    def __init__(self, source: Source, runner: Target, talk: Conversation, draw: Sampling,
                 drafts: Drafting, max_new: int | None, stop: Sequence[str], keep: str,
                 result: dict[str, Any], progress: Progress, *, quiet: bool) -> None:
        self._source, self._runner, self._talk = source, runner, talk
        self._draw, self._max_new, self._stop, self._keep = draw, max_new, stop, keep
        self._drafts = drafts
        self._result, self._progress, self._quiet = result, progress, quiet

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
            check_text(question, "the question")
            ids = self._fitting(question)
        except UserError as error:
            self._refuse(question.encode(errors="backslashreplace").decode(), str(error))
        else:
            self._answer(question, ids)

    def _fitting(self, question: str) -> list[int]:
        """The prompt with a question. In a full context, the past gives way to it."""
        context = self._source.image.context
        ids = self._talk.ask(question)
        room = min(self._max_new or context, context // 4)      # for the answer
        if len(ids) + room - 1 <= context:
            return self._source.fitting(ids)
        shorter, forgotten = copy.copy(self._talk), 0
        while (self._keep == "system" or len(ids) > context // 2) and shorter.forget():
            forgotten += 1
            ids = shorter.ask(question)
        self._source.fitting(ids, "the question", "ask a shorter one")
        self._talk = shorter
        if self._keep == "system" and forgotten:
            say("the context is full; a new conversation begins")
        elif forgotten:
            say("the context is full; the oldest " + (
                "question and its answer are" if forgotten == 1 else
                f"{forgotten} questions and their answers are") + " forgotten")
        return ids

    def _answer(self, question: str, ids: list[int]) -> None:
        image, runner, tokens = self._source.image, self._runner, []
        most = min(self._max_new or image.context, image.context - len(ids) + 1)
        out = Text("", self._source.tokenizer.stream(ids), self._stop, quiet=self._quiet)
        turn = {"question": question, "prompt_tokens": len(ids), "cached_tokens": 0,
                "tokens": tokens, "text": "", "end": "error", "tokens_per_s": 0.0,
                "counters": {}}
        self._result["turns"].append(turn)
        started = ended = time.monotonic()
        terminal = sys.stdin.isatty()
        self._progress("thinking")
        try:
            with interrupts.patience(terminal), closing(runner.generate(
                    ids, self._draw, max_new=most, stop_ids=image.stop_ids, reuse=True,
                    drafts=self._drafts)) as run:
                for event in run:
                    ended = time.monotonic()
                    tokens.append(event.token)
                    if event.token not in image.stop_ids and not out.push(event.token):
                        break
            turn["end"] = why_ended(tokens, image.stop_ids, out.stopped,
                                    len(tokens) == self._max_new)
        except KeyboardInterrupt:
            turn["end"] = "Ctrl-C"
            if not terminal:
                raise
            interrupts.dealt_with()
        finally:
            out.end()
            turn |= {"cached_tokens": runner.cached,
                     "text": self._talk.answered(tokens, out.text if out.stopped else None),
                     "tokens_per_s": len(tokens) / max(ended - started, 1e-9)}
        turn["counters"] = runner.counters()
        turn |= drafted(turn["counters"], len(tokens))
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
