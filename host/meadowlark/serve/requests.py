"""What clients ask for: JSON of OpenAI's interface -> a question that makes sense, or a refusal."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import brief

#: Most choices of an answer, texts that end one, prompts of a request, and likely tokens shown.
MOST_CHOICES, MOST_STOPS, MOST_PROMPTS, MOST_LIKELY = 16, 16, 16, 20


class Bad(Exception):
    """A request that cannot be answered. status: of HTTP. param: what of it, or None. code: for
    programs. headers: of the answer."""

    def __init__(self, sentence: str, *, status: int = 400, param: str | None = None,
                 code: str = "invalid_request_error",
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def as_json(self) -> dict:
        """As OpenAI's clients read it."""
        return {"error": {"message": str(self), "type": self.code, "param": self.param,
                          "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question. prompts: each a text, ids or messages. options: of
    :meth:`meadowlark.api.chip.Chip.steps`, as far as they were given. choices: answers of each
    prompt. stream: in pieces. usage: pieces end with how many tokens it took. likely: tokens shown
    beside each drawn one, with their logarithms of probability; None: not even its own."""
    model: str | None
    prompts: Sequence[Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: int = 1
    stream: bool = False
    usage: bool = False
    likely: int | None = None


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises :class:`Bad`."""
    try:
        found = json.loads(raw.decode(), parse_constant=_no_number)
        json.dumps(found, ensure_ascii=False).encode()      # no halves of characters
    except (ValueError, RecursionError) as error:
        raise Bad(f"the body is not JSON ({brief(error)})") from error
    if not isinstance(found, dict):
        raise Bad("the body must be a JSON object such as {\"prompt\": \"Once upon a time\"}")
    return {name: value for name, value in found.items() if value is not None}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


# ---- Fields: each takes a value and its name, and returns it or raises Bad

Field = Callable[[Any, str], Any]


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise Bad(f"{name} must be true or false, not {_shown(value)}", param=name)
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Bad(f"{name} must be a text, not {_shown(value)}", param=name)
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        raise Bad(f"{name} must be a number, not {_shown(value)}", param=name)
    return float(value)


def _whole(low: int, high: int) -> Field:
    def check(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Bad(f"{name} must be a whole number from {low} to {high}, not {_shown(value)}",
                      param=name)
        return value
    return check


def _stops(value: Any, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MOST_STOPS or not all(
            isinstance(text, str) and text for text in texts):
        raise Bad(f"{name} must be a text or a list of at most {MOST_STOPS} texts, none of them "
                  "empty", param=name)
    return texts


def _usage(value: Any, name: str) -> bool:
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise Bad(f"{name} must be an object with include_usage", param=name)
    return _flag(value.get("include_usage", False), f"{name}.include_usage")


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise Bad(f"{name} must be a list of messages such as "
                  '{"role": "user", "content": "Hello"}', param=name)
    return [_message(one, f"{name}[{at}]") for at, one in enumerate(value)]


def _message(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Bad(f"{name} must be an object with a role and a content", param=name)
    role = _text(value.get("role"), f"{name}.role")
    if role not in ("system", "developer", "user", "assistant"):
        raise Bad(f"{name}.role must be system, user or assistant, not {_shown(role)}", param=name)
    if extra := {key for key, x in value.items() if x} - {"role", "content", "name"}:
        raise Bad(f"{name} has {_shown(min(extra))}, and this model answers text alone; leave it "
                  "out", param=name)
    content = value.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise Bad(f"{name}.content has a part that is no text; leave it out", param=name)
            parts.append(_text(part.get("text"), f"{name}.content"))
        content = "".join(parts)
    return {"role": "system" if role == "developer" else role,
            "content": _text(content, f"{name}.content")}


def _prompts(value: Any, name: str) -> list[Any]:
    """A text, ids, or a list of either."""
    def is_ids(x: Any) -> bool:
        return isinstance(x, list) and bool(x) and all(
            isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 32 for i in x)
    prompts = [value] if isinstance(value, str) or is_ids(value) else value
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= MOST_PROMPTS or not all(
            isinstance(one, str) or is_ids(one) for one in prompts):
        raise Bad(f"{name} must be a text, a list of token ids, or a list of at most "
                  f"{MOST_PROMPTS} of these", param=name)
    return prompts


def _shown(value: Any) -> str:
    """A value in a sentence."""
    return brief(json.dumps(value)[:60])


#: Taken by the chip, under its own names.
_OPTIONS: dict[str, Field] = {
    "max_tokens": _whole(1, 1 << 32), "temperature": _number, "top_p": _number,
    "top_k": _whole(0, 1 << 16), "seed": _whole(0, (1 << 32) - 1), "stop": _stops,
    "ignore_eos": _flag}
_COMMON: dict[str, Field] = _OPTIONS | {
    "model": _text, "n": _whole(1, MOST_CHOICES), "stream": _flag, "stream_options": _usage}
_CHAT: dict[str, Field] = _COMMON | {
    "messages": _messages, "max_completion_tokens": _whole(1, 1 << 32), "logprobs": _flag,
    "top_logprobs": _whole(0, MOST_LIKELY)}
_TEXT: dict[str, Field] = _COMMON | {"prompt": _prompts, "logprobs": _whole(0, MOST_LIKELY)}
#: What changes no answer of ours.
_IGNORED = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key",
            "safety_identifier", "cache_prompt"}
#: What is not there, and the values of it that ask for nothing.
_NEUTRAL: dict[str, tuple] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],),
    "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "echo": (False,),
    "suffix": ("",), "best_of": (1,)}


def read(body: Mapping[str, Any], *, chat: bool) -> Asked:
    """A question from the body of a request. chat: of ``/v1/chat/completions``.

    Raises
    ------
    Bad
        A field is missing, no field of ours, or out of its range.
    """
    known, values = _CHAT if chat else _TEXT, dict[str, Any]()
    for name, value in body.items():
        if name in known:
            values[name] = known[name](value, name)
        elif name in _NEUTRAL:
            if not any(value == one for one in _NEUTRAL[name]):
                raise Bad(f"{brief(name)} is not supported; leave it out", param=name)
        elif name not in _IGNORED:
            raise Bad(f"there is no parameter {_shown(name)}; leave it out", param=brief(name))
    what = "messages" if chat else "prompt"
    if what not in values:
        raise Bad(f"{what} is missing", param=what)
    options = {name: values[name] for name in _OPTIONS if name in values}
    if chat and "max_completion_tokens" in values:
        options["max_tokens"] = values["max_completion_tokens"]
    likely = values.get("logprobs")
    if chat:
        if "top_logprobs" in values and not likely:
            raise Bad("top_logprobs needs logprobs to be true", param="top_logprobs")
        likely = values.get("top_logprobs", 0) if likely else None
    return Asked(
        model=values.get("model"), prompts=[values[what]] if chat else values[what],
        options=options, choices=values.get("n", 1), stream=values.get("stream", False),
        usage=values.get("stream_options", False), likely=likely)
