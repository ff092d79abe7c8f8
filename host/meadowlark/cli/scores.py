"""What a user is told about attention scores that were saturated."""
from __future__ import annotations

from collections.abc import Mapping

from .terminal import say


def tell_saturated(counters: Mapping[str, int | float]) -> None:
    """A line on stderr if scores were saturated.

    ``counters["score_saturations"]``: how many (int), or which share of them (float).
    """
    found = counters.get("score_saturations", 0)
    if found:
        amount = f"{found:,}" if isinstance(found, int) else f"{found:.2g} of all"
        say(f"attention scores beyond +-128 log2 units or 4 soft caps, saturated: {amount}. The "
            "model asks for more than its scores can hold, so the text may differ from that of "
            "float32; `meadowlark eval` says by how much")
