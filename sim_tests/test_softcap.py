"""SoftCap equals its golden model, one value a cycle; and that is near what it stands for."""
import cocotb
import numpy as np
import pytest

from bench import simulate, start
from meadowlark_hdl.compute.softcap import SoftCap
from meadowlark_hdl.compute.softcap_golden import TANH_TABLE, factor, softcap
from pipelines import through

LATENCY = SoftCap().latency


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def matches_golden(dut):
    """Around every entry of the table, both ends, and factors that change from value to value."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    entries = (np.arange(0, 513)[:, None] * 256 + [-1, 0, 1]).ravel()
    x = np.concatenate([entries, -entries, [2**17 - 1, -2**17, -2**17 + 1],
                        rng.integers(-2**17, 2**17, 3000), rng.integers(-300, 300, 300)])
    x = rng.permutation(np.clip(x, -2**17, 2**17 - 1))
    by = rng.choice([0, 1, 2, 36933, 61440, 65535, *rng.integers(1, 65536, 4)], len(x))
    await start(dut)
    got, = await through(dut, LATENCY, {"x": x, "factor": by}, {"o": True})
    np.testing.assert_array_equal(got, softcap(x, by))


def test_softcap(sim, seed):
    simulate(SoftCap(), __name__, seed=seed, sim=sim)


@pytest.mark.parametrize("by", [1, 700, 36933, 61440, 65535])
def test_golden_against_float(by):
    """All arguments: within 2**-16 of the cap and half a unit, odd but for ties, monotonic, and
    never what stands for a hidden key."""
    x = np.arange(-2**17, 2**17)
    got, want = softcap(x, by), 2 * by * np.tanh(np.maximum(x, -2**17 + 1) / 2**15)
    assert np.abs(got - want).max() <= 2 * by * 2.0**-16 + 0.5
    assert (np.diff(got) >= 0).all() and (got[1:] + got[:0:-1] <= 1).all()
    assert (got[1:] + got[:0:-1] >= 0).all()
    assert got.min() > -2**17 and got[2**17] == 0
    assert softcap(x[0] - 5, by) == got[0] and softcap(2**40, by) == got[-1]


def test_golden_slope():
    """What is small stays as it is; beyond the format a cap hardly grows."""
    assert softcap(np.array([8, -8, 512]), 1 << 14).tolist() == [8, -8, 512]
    assert TANH_TABLE[-1] / 2**17 > 0.9993


def test_factor():
    """Half the cap; those that the format has not are refused."""
    assert [factor(cap) for cap in (2, 3.1, 122880, 131070)] == [1, 2, 61440, 65535]
    for cap in (0, 0.9, -30, 131072):
        with pytest.raises(ValueError, match="a soft cap is from 1 to 131070 units"):
            factor(cap)
