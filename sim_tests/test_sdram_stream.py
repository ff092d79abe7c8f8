"""A long read through the SDRAM controller alone, against the chip's model in C++."""
import random
from dataclasses import replace

import pytest
from meadowlark.sim.stream import stream
from meadowlark_hdl.memory.sdram_part import PARTS


MEMORY_MHZ = 400 / 3
#: How much later the chip's clock is, as on the ULX3S with two clocks.
PHASE = 3 / 8


@pytest.mark.parametrize("mhz", [100, 133])
@pytest.mark.parametrize("name", list(PARTS))
def test_a_stream_leaves_0_985_of_the_peak(name, mhz):
    """Of 100,000 words, in the middle of a page and beyond several rows of each bank."""
    found = stream(PARTS[name], mhz, 100_000, phase=PHASE, first=12_345 * 8)
    assert (found.words, found.wrong, found.violation) == (100_000, 0, "")
    assert found.bytes_per_s >= 0.985 * 2e6 * mhz
    assert found.refreshes >= 8 + found.ns / 7812.5 - 16


@pytest.mark.parametrize("core", [60, 66.7, 80, 88.9, 100, 120])
def test_a_stream_to_another_clock(core, seed):
    """The same through the crossing, from any phase; a slow core's port moves a word a cycle.

    A row that ends shortly behind, or before, the boundary of a burst leaves a piece too short for
    the next row to be opened beside it: up to 8 cycles for each row of 512.
    """
    rng = random.Random(seed)
    row, anywhere = 256, rng.randrange(1_000_000)           # words of the core
    for first, least in ((anywhere // row * row, 0.985), (anywhere, 0.97),
                         (anywhere // row * row + row - 1, 0.97)):
        found = stream(PARTS["MT48LC16M16A2"], core, 50_000, memory_mhz=MEMORY_MHZ, phase=PHASE,
                       first=first, offset=rng.uniform(0, 20))
        assert (found.words, found.wrong, found.violation) == (50_000, 0, ""), first
        assert found.bytes_per_s >= least * min(2e6 * MEMORY_MHZ, 4e6 * core), first
        assert found.refreshes >= 8 + found.ns / 7812.5 - 16


def test_the_chip_objects():
    """A chip that is slower than the controller was told."""
    part = PARTS["MT48LC16M16A2"]
    for field, slower, says in (("rcd_ns", 31.0, "READ after ACTIVATE: 20.0 ns, 31 ns are needed"),
                                ("rfc_ns", 120.0, "after REFRESH"),
                                ("refresh_ms", 60.0, "a row was refreshed too late")):
        words = 7_000_000 if field == "refresh_ms" else 20_000
        found = stream(part, 100, words, phase=PHASE, chip=replace(part, **{field: slower}))
        assert says in found.violation, (field, found)


@pytest.mark.parametrize("mhz,core,phase", [
    (75, None, 3 / 4), (100, None, 1 / 2), (133, None, 1 / 2), (MEMORY_MHZ, 88.9, PHASE)])
@pytest.mark.parametrize("name", ["MT48LC16M16A2", "AS4C32M16SB"])      # tOH 2.7 and 2.5 ns
def test_the_round_trip_that_is_allowed(name, mhz, core, phase):
    """Of pads and wires: every word is right within the range of the data sheet, none beyond."""
    least, most = PARTS[name].round_trip(mhz, phase)
    assert least < 5 < most                     # of which the ECP5's pads take 5 ns
    for ns, held in ((least - 0.05, False), (least + 0.05, True), (most - 0.05, True),
                     (most + 0.05, False)):
        found = stream(PARTS[name], core or mhz, 2_000, memory_mhz=mhz if core else None,
                       phase=phase, first=700, round_trip=ns)
        assert (found.words, found.violation) == (2_000, "")
        assert found.wrong == 0 if held else found.wrong > 1_900, (ns, found)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="^100 words from 16777200 on do not fit MT48LC16M16A2-75, "
                                         "which has 16777216$"):
        stream(PARTS["MT48LC16M16A2"], 100, 100, phase=PHASE, first=16_777_200)
