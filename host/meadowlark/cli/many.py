"""``meadowlark generate --prompts``: many texts at once."""
from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .options import Asked, Drawing, open_runner
from .scores import tell_saturated
from .status import DIFFERENT
from .terminal import Progress, say, show, write_json

if TYPE_CHECKING:
    from meadowlark_boards import Board
    from meadowlark_hdl.sampler.sampler_golden import Sampling

    from ..api.together import Text
    from ..run.prepare import Source
    from ..run.targets import Check


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


def generate_many(file: str, parallel: int | None, drawing: Drawing, stop: Sequence[str],
                  chat: bool, system: str, ignore_eos: bool, check: bool, asked: Asked, board: str,
                  target: str, json_to: str | None) -> int:
    """Go on with each prompt of a file; -> exit status. Texts are written whole, in the file's
    order."""
    from ..api.chip import Chip
    lines = read_prompts(file)
    with Progress() as progress, closing(open_runner(target, board, asked, progress)) as runner:
        which = runner.board
        draw = drawing.sampling(which)
        source = asked.open(which, progress)
        chip, draft = Chip(runner, source), "auto" if drawing.draft is None else drawing.draft
        prompts = [source.prompt(line.prompt, chat=chat, system=system) for line in lines]
        draws = [draw if line.seed is None else replace(draw, seed=line.seed & 0xFFFFFFFF)
                 for line in lines]
        progress("weighing drafts")
        chip.drafting(draft, draw)          # refused before anything runs
        runner.load(source)
        started, written, more = time.monotonic(), 0, True
        with chip.together(parallel=parallel, draft=draft) as together:
            texts = [together.begin(
                ids, max_tokens=drawing.max_new, ignore_eos=ignore_eos, stop=stop,
                temperature=drawing.temperature, top_k=drawing.top_k, top_p=drawing.top_p,
                seed=own.seed) for ids, own in zip(prompts, draws, strict=True)]
            while more:
                more = together.step()
                progress("generating", sum(len(text.events) for text in texts))
                while written < len(texts) and (done := texts[written].done) is not None:
                    if json_to != "-":
                        show("\n" * bool(written) + ("" if chat else lines[written].prompt)
                             + done.text)
                    written += 1
            seconds = max(time.monotonic() - started, 1e-9)
            counters, runs = together.counters, together.runs
        most, stops = drawing.max_new or chip.image.context, chip.image.stop_ids
        verdicts = [] if not check else list(_checked(
            texts, prompts, draws, source, which, most, () if ignore_eos else stops, progress))
    tokens = sum(len(text.events) for text in texts)
    cycles = counters.get("cycles")
    result: dict[str, Any] = {
        "model": source.image.name, "board": which.name, "target": target,
        "parallel": together.parallel,
        "texts": [_result(text, own.seed) for text, own in zip(texts, draws, strict=True)],
        "tokens_per_s": tokens / seconds, "cycles_per_token": cycles and cycles / max(tokens, 1),
        "runs": runs, "clock_mhz": which.clock_mhz, "counters": counters}
    for found, verdict in zip(result["texts"], verdicts):
        found |= {"bit_exact": verdict.bit_exact, "first_difference": verdict.first_difference}
    wrong = [at for at, verdict in enumerate(verdicts, 1) if not verdict.bit_exact]
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
    first = verdicts[wrong[0] - 1] if wrong else None
    say(f"bit-exact with the golden model over {tokens} tokens" if first is None
        else f"NOT bit-exact: prompt {wrong[0]}, {first.first_difference}")
    return DIFFERENT if wrong else 0


def _result(text: Text, seed: int) -> dict[str, Any]:
    """What ``--json`` says of a text that has ended."""
    done = text.done
    assert done is not None
    return {"seed": seed, "prompt_tokens": done.prompt_tokens,
            "cached_tokens": done.cached_tokens, "tokens": list(done.tokens), "text": done.text,
            "end": done.ended}


def _checked(texts: Sequence[Text], prompts: Sequence[list[int]], draws: Sequence[Sampling],
             source: Source, board: Board, max_new: int, stops: Sequence[int],
             progress: Progress) -> Iterator[Check]:
    """Compare each with the golden model, alone."""
    from ..run.targets import GoldenTarget
    from ..run.targets import check as compare
    golden = GoldenTarget(board, progress=progress)
    golden.load(source)
    for text, ids, draw in zip(texts, prompts, draws, strict=True):
        assert text.done is not None
        alone = golden.generate(ids, draw, max_new=max_new, stop_ids=stops)
        yield compare(text.events, alone, whole=text.done.ended != "stop text", progress=progress)
