"""``meadowlark generate --prompts``: many texts at once."""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..text.stopped import StoppedText, why_ended
from .options import Asked, Drawing, open_runner
from .scores import tell_saturated
from .status import DIFFERENT
from .terminal import Progress, say, show, write_json

if TYPE_CHECKING:
    from meadowlark_boards import Board
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..run.batch import Running
    from ..run.prepare import Source
    from ..run.targets import Check, Event


@dataclass(frozen=True, kw_only=True)
class Line:
    """A prompt of a file, and the seed that it asks for."""
    prompt: str
    seed: int | None = None


def read_prompts(name: str) -> list[Line]:
    """Prompts of a file, one a line that is not empty; where its name ends in .jsonl each is JSON:
    a text, or an object with "prompt" and perhaps "seed".

    Raises
    ------
    UserError
        The file cannot be read, or a line is none.
    """
    from ..run.evaluate import read_text
    lines = [(at, line) for at, line in enumerate(read_text(name), 1) if line.strip()]
    if not lines:
        raise UserError(f"{name} has no prompts; give a file with one a line")
    if not name.endswith(".jsonl"):
        return [Line(prompt=line.removesuffix("\n")) for _, line in lines]
    return [_line(name, at, line) for at, line in lines]


def _line(name: str, at: int, line: str) -> Line:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    parts = found if isinstance(found, dict) else {"prompt": found}
    prompt, seed = parts.get("prompt"), parts.get("seed")
    if not isinstance(prompt, str) or set(parts) - {"prompt", "seed"} or not (
            seed is None or isinstance(seed, int) and not isinstance(seed, bool)):
        raise UserError(f'line {at} of {name} is no prompt; give a JSON text, or an object such as '
                        '{"prompt": "Once upon a time", "seed": 7}')
    return Line(prompt=prompt, seed=seed)


class _Text:
    """One of the texts on its way."""

    def __init__(self, source: Source, line: Line, tokens: list[int], draw: Sampling,
                 stop: Sequence[str], stop_ids: Sequence[int]) -> None:
        self.line, self.tokens, self.draw, self._stop_ids = line, tokens, draw, stop_ids
        self.text = StoppedText(source.tokenizer.stream(tokens), stop)
        self.running: Running | None = None
        self.verdict: Check | None = None

    def watch(self, event: Event) -> bool:
        """Take a token; whether a stop text is complete."""
        if event.token not in self._stop_ids:
            self.text.push(event.token)
        return self.text.stopped

    @property
    def ended(self) -> bool:
        """No more will come."""
        return self.running is not None and self.running.ended

    @property
    def events(self) -> list[Event]:
        """All of them."""
        assert self.running is not None
        return self.running.events

    def result(self, max_new: int | None) -> dict[str, Any]:
        """What ``--json`` says of it, once it has ended."""
        assert self.running is not None
        ids = [event.token for event in self.events]
        checked = {} if self.verdict is None else {
            "bit_exact": self.verdict.bit_exact, "first_difference": self.verdict.first_difference}
        return {"seed": self.draw.seed, "prompt_tokens": len(self.tokens),
                "cached_tokens": self.running.cached, "tokens": ids, "text": self.text.text,
                "end": why_ended(ids, self._stop_ids, self.text.stopped, len(ids) == max_new),
                **checked}


def generate_many(file: str, parallel: int | None, drawing: Drawing, stop: Sequence[str],
                  chat: bool, system: str, ignore_eos: bool, check: bool, asked: Asked, board: str,
                  target: str, json_to: str | None) -> int:
    """Go on with each prompt of a file; -> exit status. Texts are written whole, in the file's
    order."""
    from ..run.batch import Batch
    lines = read_prompts(file)
    with Progress() as progress, closing(open_runner(target, board, asked, progress)) as runner:
        which = runner.board
        draw = drawing.sampling(which)
        source = asked.open(which, progress)
        image = source.image
        stops = () if ignore_eos else image.stop_ids
        texts = [_Text(source, line, source.prompt(line.prompt, chat=chat, system=system),
                       draw if line.seed is None else replace(draw, seed=line.seed & 0xFFFFFFFF),
                       stop, stops) for line in lines]
        progress("weighing drafts")
        drafts = drawing.drafting(draw, image, runner)
        runner.load(source)
        started, written = time.monotonic(), 0
        with Batch(runner, image, parallel=parallel, drafts=drafts, count=True) as batch:
            for text in texts:
                text.running = batch.submit(
                    text.tokens, text.draw, max_new=drawing.max_new or image.context,
                    stop_ids=stops, watch=text.watch)
            while batch.step():
                progress("generating", sum(len(text.events) for text in texts))
                while written < len(texts) and texts[written].ended:
                    texts[written].text.flush()
                    if json_to != "-":
                        show("\n" * bool(written) + ("" if chat else lines[written].prompt)
                             + texts[written].text.text)
                    written += 1
            seconds = max(time.monotonic() - started, 1e-9)
            counters, runs, together = dict(batch.counted or {}), batch.runs, batch.parallel
        if check:
            _check(texts, source, which, drawing.max_new or image.context, stops, progress)
    tokens = sum(len(text.events) for text in texts)
    cycles = counters.get("cycles")
    result: dict[str, Any] = {
        "model": image.name, "board": which.name, "target": target, "parallel": together,
        "texts": [text.result(drawing.max_new) for text in texts],
        "tokens_per_s": tokens / seconds, "cycles_per_token": cycles and cycles / max(tokens, 1),
        "runs": runs, "clock_mhz": which.clock_mhz, "counters": counters}
    wrong = [at for at, text in enumerate(texts, 1)
             if text.verdict is not None and not text.verdict.bit_exact]
    if check:
        result["bit_exact"] = not wrong
    write_json(result, json_to)
    say(f"{len(texts)} texts, {tokens} tokens, {tokens / seconds:.1f} tokens/s here"
        + (f"; {cycles / max(tokens, 1):,.0f} cycles per token, prompts included "
           f"({tokens * which.clock_mhz * 1e6 / cycles:,.1f} tokens/s at {which.clock_mhz:g} MHz)"
           if cycles else ""))
    tell_saturated(counters)
    if not check:
        return 0
    first = texts[wrong[0] - 1].verdict if wrong else None
    say(f"bit-exact with the golden model over {tokens} tokens" if first is None
        else f"NOT bit-exact: prompt {wrong[0]}, {first.first_difference}")
    return DIFFERENT if wrong else 0


def _check(texts: list[_Text], source: Source, board: Board, max_new: int, stops: Sequence[int],
           progress: Progress) -> None:
    """Compare each with the golden model, alone."""
    from ..run.targets import GoldenTarget
    from ..run.targets import check as compare
    golden = GoldenTarget(board, progress=progress)
    golden.load(source)
    for text in texts:
        text.verdict = compare(
            text.events, golden.generate(text.tokens, text.draw, max_new=max_new, stop_ids=stops),
            whole=not text.text.stopped, progress=progress)
