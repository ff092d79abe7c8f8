"""``meadowlark generate --prompts``: many texts at once."""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import read_text
from .options import Asked, Drawing, messages
from .scores import tell_saturated
from .status import DIFFERENT
from .terminal import Progress, say, show, write_json

if TYPE_CHECKING:
    from ..api.together import Text


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
    lines = read_prompts(file)
    with Progress() as progress, asked.on(target, board, progress) as chip:
        draw, _ = chip.check(seed=drawing.seed, stop=stop, draft=drawing.draft, **drawing.how)
        prompts = [chip.encode(messages(line.prompt, system) if chat else line.prompt)
                   for line in lines]
        seeds = [drawing.seed if line.seed is None else line.seed & 0xFFFFFFFF for line in lines]
        chip.drafting(drawing.draft, draw)          # refused before anything runs
        written, more = 0, True
        with chip.together(parallel=parallel, draft=drawing.draft) as together:
            started = time.monotonic()
            texts = [together.begin(ids, seed=seed, stop=stop, ignore_eos=ignore_eos, **drawing.how)
                     for ids, seed in zip(prompts, seeds, strict=True)]
            while more:
                more = together.step()
                progress("generating", sum(text.tokens for text in texts))
                while written < len(texts) and (done := texts[written].done) is not None:
                    if json_to != "-":
                        show("\n" * bool(written) + ("" if chat else lines[written].prompt)
                             + done.text)
                    written += 1
            seconds = max(time.monotonic() - started, 1e-9)
            counters, runs = together.counters, together.runs
        verdicts = [chip.verify(text) for text in texts] if check else []
        which = chip.board
    tokens = sum(text.tokens for text in texts)
    cycles = counters.get("cycles")
    result: dict[str, Any] = {
        "model": chip.image.name, "board": which.name, "target": target,
        "parallel": together.parallel,
        "texts": [_result(text, seed) for text, seed in zip(texts, seeds, strict=True)],
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
