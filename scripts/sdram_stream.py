#!/usr/bin/env python3
"""Read a long stream through the SDRAM controller and see what is left of the chip's peak.

The controller with its pad registers, in Verilator, against the strict device model of the
simulated board (sim/sdram.hpp); refreshes included. With --core, through the crossing to a core's
clock. Fails if a word is wrong, a datasheet time is violated, or less than 0.985 is reached of the
peak of the chip, or of the core's port where that is lower.

With --sweep it reads a short stream at every round trip of pads and wires from 0 to 15 ns instead,
and prints those at which all words are right beside what the data sheet allows; fails if they are
others.
"""
from __future__ import annotations

import itertools
import sys
import time

import click
from meadowlark.errors import UserError
from meadowlark.sim.pins import ROUND_TRIP_NS
from meadowlark.sim.stream import Stream, stream
from meadowlark_hdl.memory.sdram_part import PARTS, SdramPart

LEAST = 0.985
#: Of a sweep: words of a stream, ns from one round trip to the next, and the longest.
SWEEP_WORDS, STEP, LONGEST = 2000, 0.1, 15.0


def swept(part: SdramPart, mhz: float, core: float | None, phase: float) -> bool:
    """Print the round trips at which a part is read rightly; whether they are the expected ones."""
    least, most = part.round_trip(mhz, phase)
    steps = [STEP * k for k in range(round(LONGEST / STEP) + 1)]
    held = []
    for ns in steps:
        found = read(part, mhz, core, SWEEP_WORDS, phase=phase, round_trip=ns)
        if found.words == SWEEP_WORDS and not found.wrong and not found.violation:
            held.append(ns)
    same = held == [ns for ns in steps if least - 1e-6 <= ns <= most + 1e-6]
    print(f"{named(part, mhz, core)}: "
          + (f"{held[0]:.1f} to {held[-1]:.1f} ns" if held else "no round trip")
          + f" held, {least:.2f} to {most:.2f} ns by the data sheet", flush=True)
    return same


def read(part: SdramPart, mhz: float, core: float | None, words: int, **more) -> Stream:
    """A stream from a part at its clock to a core at another one, or the same."""
    return stream(part, core or mhz, words, memory_mhz=None if core is None else mhz, **more)


def named(part: SdramPart, mhz: float, core: float | None) -> str:
    return f"{part.name} at {mhz:.4g} MHz" + ("" if core is None else f", core at {core:.4g} MHz")


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--words", default=10_000_000, show_default=True,
              help="Of the chip; two are one of a core with another clock.")
@click.option("--clock", "clocks", multiple=True, type=float, default=(100.0, 400 / 3),
              metavar="MHZ", help="Of the SDRAM; repeat for more.  [default: 100 and 133.33]")
@click.option("--core", "cores", multiple=True, type=float, metavar="MHZ",
              help="Of a core with another clock; repeat for more.")
@click.option("--phase", default=3 / 8, show_default=True,
              help="How much later than the controller's the SDRAM's clock is, in periods.")
@click.option("--round-trip", default=ROUND_TRIP_NS, show_default=True, metavar="NS",
              help="What pads and wires take, out and back.")
@click.option("--sweep", is_flag=True, help="Find the round trips that hold, in steps of 0.1 ns.")
@click.option("--part", "names", multiple=True, type=click.Choice(list(PARTS)),
              default=tuple(PARTS), help="Repeat for more; all by default.")
def main(words: int, clocks: tuple[float, ...], cores: tuple[float, ...], phase: float,
         round_trip: float, sweep: bool, names: tuple[str, ...]) -> None:
    bad = False
    try:
        for name in names:
            for mhz, core in itertools.product(clocks, cores or (None,)):
                part = PARTS[name]
                if sweep:
                    bad |= not swept(part, mhz, core, phase)
                    continue
                begun = time.monotonic()
                wanted = words if core is None else words // 2
                found = read(part, mhz, core, wanted, phase=phase, round_trip=round_trip)
                peak = 1e6 * min(mhz * part.data_bits / 8, (core or mhz) * found.bus_bytes)
                missed = found.words < wanted or found.wrong or found.violation
                bad |= bool(missed) or found.bytes_per_s < LEAST * peak
                print(f"{named(part, mhz, core)}: {found.words} words of {found.bus_bytes} bytes, "
                      f"{found.bytes_per_s / 1e6:.1f} MB/s, "
                      f"{found.bytes_per_s / peak:.4f} of peak, "
                      f"{found.refreshes} refreshes, {found.wrong} wrong words, "
                      f"violations: {found.violation or 'none'} "
                      f"({time.monotonic() - begun:.0f} s)", flush=True)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(bad)


if __name__ == "__main__":
    main()
