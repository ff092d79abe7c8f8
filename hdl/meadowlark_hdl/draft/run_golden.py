"""Golden model of a run with drafts: which passes it takes for its tokens."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from .choice_golden import Choice


class Turn(NamedTuple):
    """The tokens of one pass. position: of the last token before them, which the pass begins with.
    drafts: of the tokens behind it. tokens: what the pass gave, 1..1 + len(drafts)."""
    position: int
    drafts: list[int]
    tokens: list[int]

    @property
    def n(self) -> int:
        """Tokens that the pass takes, but for the first turn, which takes a prompt."""
        return 1 + len(self.drafts)

    @property
    def accepted(self) -> int:
        """Drafts that were right, and the run went on behind them."""
        return len(self.tokens) - 1


def turns(text: Sequence[int], draw: Callable[[int, list[int]], Iterable[int]],
          drafter: Callable[[list[int], int], list[int]], *, most: int, price: int = 0,
          max_new: int, stop_ids: Collection[int] = (), limit: int) -> Iterator[Turn]:
    """A run, from its prompt's last pass on: the tokens that a run without drafts has, and the
    passes that they take.

    Parameters
    ----------
    text : sequence of int
        The token memory up to the prompt's end.
    draw : (position, drafts) -> 1 + len(drafts) tokens
        The model: what is drawn behind the token at ``position``, and behind each draft, had it
        been right. Asked in order, once a pass; first for the prompt's last token, without drafts.
    drafter : (text, k) -> 0..k drafts
        :func:`.drafter_golden.draft`.
    most : int
        Drafts of a pass at most; 0: the drafter is not asked.
    price : int
        See :class:`.choice_golden.Choice`.
    max_new, stop_ids
        As of a run.
    limit : int
        Positions of a run, :func:`..control.sequencer_golden.context_limit`. No draft stands beyond
        it, and none where ``max_new`` wants no token behind it.
    """
    text, choice, drafts = list(text), Choice(price), list[int]()
    while max_new:
        turn, over = Turn(len(text) - 1, drafts, []), False
        for token, draft in zip(draw(turn.position, drafts), [*drafts, None], strict=False):
            max_new -= 1
            text.append(token)
            turn.tokens.append(token)
            over = token in stop_ids or not max_new or len(text) > limit
            if over or token != draft:
                break
            choice.accepted()
        yield turn
        if over:
            return
        k = min(most, max_new - 1, limit - len(text))
        drafts = drafter(text, k) if most and choice.drafts() else []
