#!/usr/bin/env python3
"""Read a long stream through the SDRAM controller and see what is left of the chip's peak.

The controller alone, with its pad registers, in Verilator, against the strict device model of the
simulated board (simboard/sdram.hpp); refreshes included. Fails if a word is wrong, a datasheet time
is violated, or less than 0.985 of the peak is reached.
"""
from __future__ import annotations

import sys
import time

import click
from meadowlark.errors import UserError
from meadowlark.simboard.stream import stream
from meadowlark_hdl.memory.sdram_part import PARTS

LEAST = 0.985


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("--words", default=10_000_000, show_default=True)
@click.option("--clock", "clocks", multiple=True, type=float, default=(100.0, 133.0),
              show_default=True, metavar="MHZ", help="Repeat for more.")
@click.option("--part", "names", multiple=True, type=click.Choice(list(PARTS)),
              default=tuple(PARTS), help="Repeat for more; all by default.")
def main(words: int, clocks: tuple[float, ...], names: tuple[str, ...]) -> None:
    bad = False
    try:
        for name in names:
            for mhz in clocks:
                begun = time.monotonic()
                found = stream(PARTS[name], mhz, words)
                missed = found.words < words or found.wrong or found.violation
                bad |= bool(missed) or found.share < LEAST
                print(f"{PARTS[name].name} at {mhz:g} MHz: {found.words} words in {found.cycles} "
                      f"cycles, {found.share:.4f} of peak, {found.refreshes} refreshes, "
                      f"{found.wrong} wrong words, violations: {found.violation or 'none'} "
                      f"({time.monotonic() - begun:.0f} s)", flush=True)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(bad)


if __name__ == "__main__":
    main()
