"""Figures of the server in the text format of Prometheus."""
from __future__ import annotations

from .scheduler import Scheduler


def metrics(scheduler: Scheduler) -> str:
    """All of them; names as llama-server has them, where it has them."""
    totals, tickets = scheduler.totals, scheduler.tickets()
    running = sum(ticket.state == "running" for ticket in tickets)
    last = totals.last
    rows: list[tuple[str, str, str, float]] = [
        ("llamacpp:prompt_tokens_total", "counter", "Tokens of prompts.", totals.prompt_tokens),
        ("llamacpp:tokens_predicted_total", "counter", "Tokens generated.", totals.tokens),
        ("llamacpp:requests_processing", "gauge", "Sequences that run.", running),
        ("llamacpp:requests_deferred", "gauge", "Sequences that wait.", len(tickets) - running),
        ("llamacpp:predicted_tokens_seconds", "gauge", "Tokens a second of the latest run.",
         0.0 if last is None else len(last.tokens) / max(totals.last_seconds, 1e-9)),
        ("meadowlark:cached_tokens_total", "counter",
         "Tokens of prompts that the KV cache held already.", totals.cached_tokens),
        ("meadowlark:runs_total", "counter", "Sequences that ran.", totals.jobs),
        ("meadowlark:runs_cancelled_total", "counter", "Sequences whose client went away.",
         totals.cancelled),
        ("meadowlark:runs_failed_total", "counter", "Sequences that ended by a fault.",
         totals.failed),
        ("meadowlark:busy_seconds_total", "counter", "Seconds in which the chip was busy.",
         totals.seconds)]
    counters = {} if last is None else last.counters
    rows += [(f"meadowlark:chip_{name}", "gauge", "Counter of the core for the latest run.", value)
             for name, value in counters.items()]
    return "".join(f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value:.12g}\n"
                   for name, kind, text, value in rows)
