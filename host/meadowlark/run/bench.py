"""Prefill and decode, measured by the core's own counters, in the manner of llama-bench."""
from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meadowlark_hdl.sampler.sampler_golden import Sampling

from ..errors import UserError

if TYPE_CHECKING:
    from meadowlark_boards import Board

    from ..compile.image import Image
    from ..progress import Progress
    from .targets import Target


@dataclass(frozen=True, kw_only=True)
class Test:
    """What a test runs.

    name: "pp128" or "tg32", of a batch "b8 tg32", at a position behind others "tg32 @ d2000".
    filled: ids whose keys and values the cache holds beforehand. prompt: ids behind them. generate:
    tokens to draw; the first comes from the last pass over the prompt. batch: sequences that each
    do this together, each in a cache of its own; 0: one alone, in a run of its own.
    """
    __test__ = False        # for pytest: not one of its tests

    name: str
    filled: tuple[int, ...] = ()
    prompt: tuple[int, ...]
    generate: int
    batch: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that go through the model: the prompt, and all drawn ones but the last."""
        return (len(self.prompt) + self.generate - 1) * (self.batch or 1)


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """What drafts brought. most, price: see :class:`.drafting.Drafting`. drafted, accepted: drafts.
    passes: those behind the prompts, by drafts accepted, 0..most. tokens_per_pass: of these.
    """
    most: int
    price: int
    drafted: int
    accepted: int
    tokens_per_pass: float
    passes: list[int]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a test is.

    position: of the first token. cycles: of the whole test, from start to its last token. tokens:
    through the model. bytes: useful ones (weights, scales, cache, embedding, tables, each once a
    pass). memory_utilisation: bytes / (time x peak of the memory). mac_utilisation: unmasked
    products / (cycles x W x P). tokens_per_s: at the board's clock.
    """
    position: int
    cycles: int
    tokens: int
    bytes: int
    memory_utilisation: float
    mac_utilisation: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Measured(Speed):
    """Result of a test.

    stalls: cycles in which the array got no beat, by cause. predicted_cycles: by
    :mod:`meadowlark.compile.cycles`, before the run; None for a board of which no times are known.
    drafts: of a test of :mod:`.bench_drafts`, whose cycles and tokens are those behind the prompts'
    own.
    """
    stalls: dict[str, int]
    predicted_cycles: int | None
    counters: dict[str, int]
    drafts: Drafted | None = None


class Size(NamedTuple):
    """How large a test is: its name, its first position, tokens of its prompt, and drawn ones;
    batch: as of :class:`Test`."""
    name: str
    position: int
    prompt: int
    generate: int
    batch: int = 0


def sizes(*, prompts: Sequence[int], generates: Sequence[int], positions: Sequence[int] = (0,),
          batches: Sequence[int] = ()) -> list[Size]:
    """Tests for numbers of tokens, all at each position; batches: numbers of sequences that
    generate together.

    Raises
    ------
    UserError
        There is none.
    """
    if not (prompts or generates):
        raise UserError("nothing to measure; give -p or -n a number above 0")
    found = []
    for position in positions:
        where = f" @ d{position}" if position else ""
        found += [Size(f"pp{n}{where}", position, n, 1) for n in prompts]
        found += [Size(f"tg{n}{where}", position, 1, n) for n in generates]
        found += [Size(f"b{batch} tg{n}{where}", position, 1, n, batch) for batch in batches
                  for n in generates]
    return found


def plan(image: Image, *, prompts: Sequence[int], generates: Sequence[int],
         positions: Sequence[int] = (0,), batches: Sequence[int] = (),
         seed: int = 0) -> list[Test]:
    """Tests of :func:`sizes`.

    They are parts of one text: random ids (the cycles do not depend on them) behind the model's
    bos. Generation starts from the one at its position.

    Raises
    ------
    UserError
        A test does not fit the context, or there is none.
    """
    found = sizes(prompts=prompts, generates=generates, positions=positions, batches=batches)
    text = np.random.default_rng(seed).integers(0, image.shape["vocab"], image.context)
    text[0] = image.bos_id or 0
    for name, position, prompt, generate, _ in found:
        if (need := position + prompt + generate - 1) > image.context:
            raise UserError(f"{name} takes {need} positions and the context holds "
                            f"{image.context}; give fewer tokens"
                            + (" or an earlier --position" if position else ""))
    return [Test(name=name, filled=tuple(text[:position].tolist()), generate=generate,
                 prompt=tuple(text[position:position + prompt].tolist()), batch=batch)
            for name, position, prompt, generate, batch in found]


def run(target: Target, image: Image, board: Board, tests: Sequence[Test], *,
        record: Callable[[str], AbstractContextManager] = nullcontext,
        progress: Progress | None = None) -> dict[str, Measured]:
    """Run tests on a target that holds the image; results by name, in order. Behind one of a batch
    the caches hold anything.

    record: given a test's name, makes the context that it runs in. The target of a test with a
    filled cache has a back door, see :meth:`.targets.Target.fill`.

    Raises
    ------
    UserError
        The target has no counters.
    """
    from meadowlark_boards import BOARDS

    from ..compile.cycles import predict, predict_batch
    from .batch import check_together
    config, out = board.config, {}
    for test in tests:
        check_together(image, board, test.batch)
    for test in tests:
        many, position = test.batch or 1, len(test.filled)
        if test.filled:
            target.fill(test.filled, many)
        if progress:
            progress(f"running {test.name}", 0, test.generate)
        got, want = 0, many * test.generate
        with record(test.name), closing(target.run_together(
                test.prompt * many, [(k, position) for k in range(many)], [Sampling()] * many,
                max_new=test.generate, stop_ids=()) if test.batch else target.generate(
                test.filled + test.prompt, Sampling(), max_new=test.generate, stop_ids=(),
                reuse=bool(test.filled))) as events:
            for _ in events:
                got += 1
                if progress:
                    progress(f"running {test.name}", got, want)
        if got != want:
            raise UserError(f"{test.name} gave {got} tokens, not {want}; load the image again")
        counters = target.counters()
        if "cycles" not in counters:
            raise UserError(f"the target {target.name} counts no cycles; use --target sim or a "
                            "serial port")
        expected = predict_batch(
            image, board, sequences=many, position=position, passes=test.generate,
        ) if test.batch else predict(image, board, prompt=len(test.prompt), generate=test.generate,
                                     start_pos=position)
        cycles = counters["cycles"]
        out[test.name] = Measured(
            position=position, cycles=cycles, tokens=test.tokens, bytes=expected.useful_bytes,
            memory_utilisation=expected.useful_bytes / (cycles * board.bytes_per_cycle),
            mac_utilisation=expected.useful_macs / (cycles * config.W * config.P),
            stalls={k.removeprefix("stall_"): v for k, v in counters.items()
                    if k.startswith("stall_")},
            tokens_per_s=test.tokens * board.clock_mhz * 1e6 / cycles,
            predicted_cycles=expected.cycles if board.name in BOARDS else None, counters=counters)
    return out


def as_json(results: dict[str, Measured], image: Image, board: Board) -> dict:
    """What ``--json`` gives. speedup: of the tests that have a twin, raw or without drafts, by
    cycles."""
    speedup = {name: results[twin].cycles / m.cycles for name, m in results.items()
               for twin in (f"{name} raw", f"{name} off") if twin in results}
    return {"model": image.name, "board": board.name, "clock_mhz": board.clock_mhz,
            "tests": {name: asdict(m) for name, m in results.items()},
            **({"speedup": speedup} if speedup else {})}


_COLUMNS = ("model", "size", "params", "board", "clock", "test", "t/s", "cycles", "predicted",
            "memory", "MACs")


def _rows(results: dict[str, Measured], image: Image, board: Board) -> list[tuple[str, ...]]:
    # The image's size says nothing of a raw twin.
    return [(image.name, "" if name.endswith(" raw") else f"{len(image.memory) / 2**20:.2f} MiB",
             f"{image.parameters / 1e6:.2f} M", board.name, f"{board.clock_mhz:g} MHz", name,
             f"{m.tokens_per_s:.2f}", f"{m.cycles:,}",
             "-" if m.predicted_cycles is None else f"{m.predicted_cycles:,}",
             f"{m.memory_utilisation:.1%}", f"{m.mac_utilisation:.1%}")
            for name, m in results.items()]


def as_table(results: dict[str, Measured], image: Image, board: Board, *, form: str) -> str:
    """Results as text: ``form`` is "md" (llama-bench's columns, then ours), "csv" or "json"."""
    if form == "json":
        return json.dumps(as_json(results, image, board), indent=1)
    if form == "csv":
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        fields = ("position", "cycles", "tokens", "bytes", "memory_utilisation", "mac_utilisation",
                  "tokens_per_s", "predicted_cycles")
        stalls = next(iter(results.values())).stalls
        table.writerow(["model", "parameters", "board", "clock_mhz", "test", *fields,
                        *(f"stall_{x}" for x in stalls)])
        for name, m in results.items():
            table.writerow([image.name, image.parameters, board.name, board.clock_mhz, name,
                            *(getattr(m, f) for f in fields), *m.stalls.values()])
        return text.getvalue().rstrip("\n")
    if form != "md":
        raise ValueError(f"form must be md, csv or json, not {form!r}")
    return "\n\n".join([markdown([_COLUMNS, *_rows(results, image, board)], left={0, 3, 5}),
                        *drafts_tables(results)])


def drafts_tables(results: dict[str, Measured]) -> list[str]:
    """Of each test with drafts, how many of them were right."""
    tables = []
    for name, m in results.items():
        if m.drafts is not None and m.drafts.most:
            off, total = results[f"{name} off"], max(sum(m.drafts.passes), 1)
            tables.append(
                f"{name}: {m.drafts.tokens_per_pass:.2f} tokens per pass, "
                f"{off.cycles / max(m.cycles, 1):.2f} times as many tokens/s as without drafts\n\n"
                + markdown([("accepted", "passes", "share"), *(
                    (str(n), f"{passes:,}", f"{passes / total:.1%}")
                    for n, passes in enumerate(m.drafts.passes))], left=()))
    return tables


def markdown(rows: Sequence[tuple[str, ...]], *, left: Collection[int]) -> str:
    """A table whose columns are aligned in plain text too. left: columns of text; numbers go to the
    right. The first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(v.ljust(w) if i in left else v.rjust(w)
                               for i, (v, w) in enumerate(zip(r, widths))) + " |" for r in rows]
    rule = "| " + " | ".join("-" * w if i in left else "-" * (w - 1) + ":"
                             for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
