"""Which tokens end an answer."""
from __future__ import annotations

from collections.abc import Callable, Iterable

from meadowlark_hdl.run_table import STOP_IDS

#: Tokens that end an answer wherever a vocabulary has them, those first that chats end with. They
#: are the ones llama.cpp knows by their texts, the older versions of it included.
ENDS = (
    # of a turn
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>", "<end_of_utterance>",
    "<EOT>", "_<EOT>", "[EOT]",
    # of a text
    "</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]", "<｜end▁of▁sentence｜>",
    # of a message to a tool
    "<|eom_id|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>",
    # of code that fills a gap
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
    "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>")
#: Where all of these are, that one ends only a part of an answer.
_PARTS = ((("<|return|>", "<|call|>"), "<|end|>"), (("<|flush|>", "<|calls|>"), "<|end|>"),
          (("<|flush|>", "<|call|>"), "<|end|>"), (("<|tool_response>",), "</s>"))


def end_tokens(find: Callable[[str], int | None]) -> list[int]:
    """Ids of the tokens with a text of :data:`ENDS`.

    Of what type a file says such a token is does not matter (files are often wrong there): it is
    a control token.

    find: text of a token -> its id, or None.
    """
    known = {text: at for text in ENDS if (at := find(text)) is not None}
    for others, part in _PARTS:
        if all(text in known for text in others):
            known.pop(part, None)
    return list(known.values())


def stop_ids(named: Iterable[int | None], ends: Iterable[int]) -> tuple[int, ...]:
    """At most 8 different ids: those a model names (that of training first), then its
    :func:`end_tokens`."""
    found = dict.fromkeys(int(i) for i in (*named, *ends) if i is not None)
    return tuple(found)[:STOP_IDS]
