#!/usr/bin/env python3
"""Run whole models over a host link that harms frames; every token must still be the right one.

The simulated board and the driver are the real ones. Between them, in both directions, frames are
changed in a bit, lose a byte, are cut short, lost, repeated, or swapped with the next one. Now and
then the image is loaded anew, over the same link. Wrong tokens, errors and runs that do not end are
counted; there must be none.
"""
from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
from meadowlark.link.driver import BoardError, Driver
from meadowlark.link.frames import FrameParser
from meadowlark.quant.golden import GoldenModel
from meadowlark.quant.sampling import sampling
from meadowlark.run.prepare import Source
from meadowlark.run.targets import BoardTarget
from meadowlark.sim import SimBoard, SimTransport
from meadowlark.threads import one_thread
from meadowlark_boards import get_board
from meadowlark_hdl.sampler.sampler_golden import logits_crc
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sim_tests"))
from random_model import random_model

KINDS = ("flip", "lose a byte", "truncate", "drop", "repeat", "reorder")
#: Simulated cycles without a byte after which something counts as lost, on either side: more than
#: any answer or token takes here.
PATIENCE = 1 << 15


class Line:
    """One direction of the link; takes frames, gives bytes."""

    def __init__(self, rate: float, rng: random.Random, counts: Counter) -> None:
        self.rate, self.rng, self.counts = rate, rng, counts
        self._held = b""

    def send(self, frame: bytes) -> bytes:
        """What arrives now."""
        rng, held, self._held = self.rng, self._held, b""
        if rng.random() >= self.rate:
            return frame + held
        kind = rng.choice(KINDS)
        self.counts[kind] += 1
        at = rng.randrange(len(frame))
        if kind == "reorder":
            self._held = frame
            return held
        return {"flip": frame[:at] + bytes((frame[at] ^ 1 << rng.randrange(8),)) + frame[at + 1:],
                "lose a byte": frame[:at] + frame[at + 1:], "truncate": frame[:at], "drop": b"",
                "repeat": frame * 2}[kind] + held


class FaultyTransport:
    """A :class:`meadowlark.link.transport.Transport` with faults in both directions."""

    def __init__(self, inner: SimTransport, rate: float, rng: random.Random) -> None:
        self.inner, self.timeout = inner, PATIENCE / inner.hz
        self.counts: Counter[str] = Counter()
        self._there, self._back = (Line(rate, rng, self.counts) for _ in range(2))
        self._parser, self._out = FrameParser(), bytearray()

    def write(self, data: bytes) -> None:
        self.inner.write(self._there.send(data))

    def read(self, max: int, timeout: float) -> bytes:
        if not self._out:
            for frame in self._parser.feed(self.inner.read(4096, timeout)):
                self._out += self._back.send(frame.encode())
        data = bytes(self._out[:max])
        del self._out[:max]
        return data

    def now(self) -> float:
        return self.inner.now()

    def close(self) -> None:
        self.inner.close()


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--faults", default=10_000, show_default=True, type=click.IntRange(1), metavar="N",
              help="Go on until so many frames were harmed.")
@click.option("--rate", default=0.08, show_default=True, type=click.FloatRange(0, 0.5), metavar="R",
              help="Share of frames that are harmed.")
@click.option("--seed", type=int, help="Repeats a run; drawn and printed by default.")
def main(faults: int, rate: float, seed: int | None) -> None:
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}")
    rng, board = random.Random(seed), get_board("virtual")
    runs = tokens = loads = wrong = 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, SimBoard(board) as sim, one_thread(), Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn()) as progress:
        line = FaultyTransport(SimTransport(sim), rate, rng)
        bar = progress.add_task("faults", total=faults)
        target = BoardTarget("link", Driver(line, retries=100))
        target.driver.write_registers({"resend_cycles": PATIENCE})
        source = golden = None
        while line.counts.total() < faults:
            if source is None or golden is None or rng.random() < 0.05:
                source = Source(str(random_model(Path(folder) / "model", seed=rng.getrandbits(31),
                                                 hidden=64, heads=4, head_dim=16)),
                                board, packing="raw")
                target.load(source)
                golden = GoldenModel(source.quantised, context=source.image.context)
                loads += 1
            prompt = [0, *(rng.randrange(2, 128) for _ in range(rng.randrange(40)))]
            draw = sampling(temperature=rng.choice([0.0, 0.9]), seed=rng.getrandbits(32))
            count = rng.randrange(1, 60)
            golden.forget()
            want = [(token, logits_crc(logits)) for token, logits in golden.generate(
                prompt, draw, max_new=count, stop_ids=(1,))]
            try:
                got = [(event.token, event.crc) for event in target.generate(
                    prompt, draw, max_new=count, stop_ids=(1,))]
            except BoardError as error:
                progress.console.print(f"run {runs}: {error}")
                got = []
            wrong += got != want
            runs, tokens = runs + 1, tokens + len(got)
            progress.update(bar, completed=min(line.counts.total(), faults))
            if not progress.console.is_terminal and runs % 50 == 0:
                click.echo(f"{line.counts.total()} faults, {runs} runs, {wrong} wrong")
    kinds = ", ".join(f"{line.counts[kind]} {kind}" for kind in KINDS)
    click.echo(f"{line.counts.total()} faults ({kinds}) over {runs} runs, {tokens} tokens and "
               f"{loads} loads: {wrong} runs wrong; {time.monotonic() - begun:.0f} s")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
