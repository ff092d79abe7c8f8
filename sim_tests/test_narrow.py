"""Narrow equals the golden shift and saturation at its latency, one value a cycle."""
import os

import cocotb
import numpy as np
import pytest

from bench import simulate, start
from meadowlark_hdl.lib.narrow import Narrow
from meadowlark_hdl.fixed import rshift, saturate
from pipelines import through

CASES = [dict(width=61, shift_bits=6, bits=34), dict(width=43, shift_bits=5, bits=18),
         dict(width=34, shift_bits=6, bits=16, small=8), dict(width=6, shift_bits=1, bits=4)]


UNIT = Narrow(**CASES[int(os.environ.get("CASE", "0"))])     # the one in the simulator


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def matches_golden(dut):
    unit = UNIT
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    shifts = np.arange(1 << unit.shift_bits)
    low, high = -(1 << unit.width - 1), (1 << unit.width - 1) - 1
    pairs = [(x, s) for s in shifts for x in (low, high, -1, 0, 1)]
    for s in shifts:                    # ties, and either side of both limits
        for base in (0, 1, -1, *(limit for bits in {unit.bits, unit.small_bits or unit.bits}
                                 for limit in ((1 << bits - 1) - 1, -(1 << bits - 1)))):
            for half in (-1, 0, 1):
                pairs.append((((2 * base + 1 << s) >> 1) + half, s))
    pairs = [pair for pair in pairs for _ in range(2)]          # for each width
    x, s = (np.array(v, object) for v in zip(*pairs, strict=True))
    scale = 1 << rng.integers(0, unit.width, 1500).astype(object)
    wide = rng.integers(-2**62, 2**62, 1500).astype(object) % (2 * scale) - scale
    x = np.clip(np.concatenate([x, wide]), low, high).astype(np.int64)
    s = np.concatenate([s, rng.choice(shifts, 1500)]).astype(np.int64)
    small = np.arange(len(x)) % 2 * (unit.small_bits is not None)
    await start(dut)
    got, flags = await through(dut, unit.latency, {"i": x, "shift": s, "small": small},
                               {"o": True, "saturated": False})
    exact = rshift(x, s)
    want = np.where(small, saturate(exact, unit.small_bits or unit.bits),
                    saturate(exact, unit.bits))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(flags, want != exact)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_narrow(case, seed):
    simulate(Narrow(**CASES[case]), __name__, seed=seed, case=case)


@pytest.mark.parametrize("wrong, message", [
    (dict(shift_bits=7), r"^shift_bits must be in 1\.\.6, not 7$"),
    (dict(bits=1), r"^bits must be at least 2, not 1$"),
    (dict(small=16), r"^small must be in 2\.\.bits - 1, not 16$"),
    (dict(width=17), r"^width must be at least bits \+ 2 = 18, not 17$")])
def test_parameters(wrong, message):
    with pytest.raises(ValueError, match=message):
        Narrow(**(dict(width=34, shift_bits=6, bits=16) | wrong))
