"""Generation with drafts, measured on given texts: test ``sg`` of ``bench``."""
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from meadowlark_hdl.draft.drafter_golden import draft
from meadowlark_hdl.draft.run_golden import Turn, turns
from meadowlark_hdl.sampler.sampler_golden import Sampling

from ..compile.cycles import predict
from ..errors import UserError
from .bench import Drafted, Measured
from .drafting import drafting
from .targets import OFF, Drafting, Target

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..progress import Progress
    from .prepare import Source

#: Tokens of a line that are the prompt, for a model that answers no questions.
PROMPT = 16


def prompts(source: Source, lines: Sequence[str], generate: int) -> list[list[int]]:
    """Ids for each line that is not empty: a question where the model has a chat template, else
    the beginning of a text.

    Raises
    ------
    UserError
        There is none, or the context does not hold one with ``generate`` tokens behind it.
    """
    chat = (source.image if source.is_image else source.outline).chat is not None
    found = [source.prompt(line, chat=chat) for line in lines if line.strip()]
    found = found if chat else [ids[:PROMPT] for ids in found]
    if not found:
        raise UserError("there are no texts to go on with; give a file with one a line")
    longest = max(map(len, found))
    if longest + generate - 1 > source.image.context:
        raise UserError(f"a prompt of {longest} tokens and {generate} behind it do not fit the "
                        f"context of {source.image.context}; give shorter lines, or a smaller -n")
    return found


def replay(image: Image, prompt: Sequence[int], tokens: Sequence[int], drafts: Drafting,
           max_new: int, stop_ids: Collection[int]) -> list[Turn]:
    """The passes of a run whose tokens are known: drafts depend on them alone."""
    text = [*prompt, *tokens]
    drafter = partial(draft, table=image.draft_entries, least=image.draft_least)
    return list(turns(prompt, lambda position, _: text[position + 1:], drafter, most=drafts.most,
                      price=drafts.price, max_new=max_new, stop_ids=stop_ids,
                      limit=image.context))


def worst(image: Image, board: Board, drafts: Drafting, *, position: int, generate: int,
          seed: int = 1) -> float:
    """Share of the speed without drafts that is left where none is right, by the cycle model.

    Text and drafts are random, and each draft is wrong.

    Parameters
    ----------
    drafts : Drafting
        Of :func:`.drafting.drafting`.
    position : int, 1..
        Of the first generated token, which is no part of it.
    generate : int, 2..
        Tokens; ``position + generate - 1`` of them fit the context.
    """
    rng, vocab = np.random.default_rng(seed), image.model_regs["vocab"]

    def drawn(_: int, guesses: list[int]) -> list[int]:
        return [*((guess + 1) % vocab for guess in guesses), int(rng.integers(vocab))]
    found = list(turns([0] * position, drawn, lambda _, k: rng.integers(vocab, size=k).tolist(),
                       most=drafts.most, price=drafts.price, max_new=generate,
                       limit=image.context))
    off, on = (predict(image, board, prompt=1, generate=generate, start_pos=position - 1,
                       turns=way).decode_cycles for way in (None, found))
    return off / on


def run(target: Target, image: Image, board: Board, begun: Sequence[list[int]], generate: int, *,
        progress: Progress | None = None) -> dict[str, Measured]:
    """Go on with prompts greedily, with drafts (``sg32``) and without (``sg32 off``).

    Each is measured from its first token to its last: the prompt is no part of it.

    Raises
    ------
    UserError
        The board checks no drafts; or, with drafts, another text came, or other drafts were
        counted than its tokens stand for.
    """
    drafts = drafting(None, Sampling(), image, target)
    if not drafts.most:
        raise UserError(f"drafts bring nothing on the board {board.name}; leave --text out")
    name, out, texts = f"sg{generate}", {}, list[list[int]]()
    for suffix, way in (("", drafts), (" off", OFF)):
        runs, counters = [], Counter[str]()
        for number, prompt in enumerate(begun):
            if progress:
                progress(f"running {name}{suffix}", number, len(begun))
            with closing(target.generate(prompt, Sampling(), max_new=generate, drafts=way,
                                         stop_ids=image.stop_ids)) as events:
                tokens = [event.token for event in events]
            counted = target.counters()
            counters.update(counted)
            found = replay(image, prompt, tokens, way, generate, image.stop_ids)
            runs.append((prompt, tokens, found))
            for what, want in (("drafted", sum(len(turn.drafts) for turn in found)),
                               ("accepted", sum(turn.accepted for turn in found))):
                if counted[what] != want:
                    raise UserError(f"prompt {number} of {name}{suffix} counts {counted[what]} "
                                    f"drafts {what}, and its text stands for {want}; compare it "
                                    "with the golden model by generate --check")
        out[name + suffix] = _measured(image, board, runs, counters, way)
        if texts and texts != [tokens for _, tokens, _ in runs]:
            raise UserError(f"{name} has another text with drafts than without; compare it with "
                            "the golden model by generate --check")
        texts = [tokens for _, tokens, _ in runs]
    return out


def _measured(image: Image, board: Board, runs: Sequence[tuple[list[int], list[int], list[Turn]]],
              counters: Counter[str], way: Drafting) -> Measured:
    from meadowlark_boards import BOARDS

    cycles = counters["cycles"] - counters["cycles_first_token"]
    behind = [turn for *_, found in runs for turn in found[1:]]
    tokens, config = sum(len(turn.tokens) for turn in behind), board.config
    bytes_, macs = (sum(of(pos0=turn.position, n=turn.n, final=True) for turn in behind)
                    for of in (image.useful_bytes, image.useful_macs))
    expected = sum(predict(image, board, prompt=len(prompt), generate=len(found),
                           turns=found).decode_cycles for prompt, _, found in runs)
    by_accepted = Counter(turn.accepted for turn in behind)
    return Measured(
        position=0, cycles=cycles, tokens=tokens, bytes=bytes_,
        memory_utilisation=bytes_ / (max(cycles, 1) * board.bytes_per_cycle),
        mac_utilisation=macs / (max(cycles, 1) * config.W * config.P),
        stalls={k.removeprefix("stall_"): v for k, v in counters.items() if k.startswith("stall_")},
        tokens_per_s=tokens * board.clock_mhz * 1e6 / max(cycles, 1),
        predicted_cycles=expected if board.name in BOARDS else None,
        counters=dict(counters), drafts=Drafted(
            most=way.most, price=way.price, drafted=counters["drafted"],
            accepted=counters["accepted"], tokens_per_pass=tokens / max(len(behind), 1),
            passes=[by_accepted[n] for n in range(way.most + 1)]))
