"""Products of logits, and scaled ones, equal the golden model, a value a cycle."""
import cocotb
import numpy as np
from bench import simulate, start
from pipelines import through

from meadowlark_hdl.sampler.logit_scale import LogitScale
from meadowlark_hdl.sampler.sampler_golden import Sampling, scaled

EDGES = [0, 1, -1, 2**31 - 1, -2**31, 2**30, -2**30, 2**16, -2**16, 2**16 - 1]


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def equals_the_golden_model(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    for shift in range(32):
        mant = int(rng.choice([1, 2**15, 2**16 - 1, rng.integers(1, 2**16)]))
        # As many that are saturated as not, and ties.
        value = np.concatenate([EDGES, np.arange(-20, 20), np.clip(
            2.0**shift * 2**29 / mant * rng.uniform(-2, 2, 50), -2**31, 2**31 - 1).astype(np.int64),
            rng.integers(-2**31, 2**31, 20)])
        await start(dut, shift=shift, factor=mant)
        got, = await through(dut, LogitScale.LATENCY, {"value": value}, {"scaled": True})
        np.testing.assert_array_equal(got, scaled(value, Sampling(mant, shift)))
        got, = await through(dut, LogitScale.PRODUCT, {"value": value}, {"product": True})
        np.testing.assert_array_equal(got, value * mant)


def test_logit_scale(seed):
    simulate(LogitScale(), __name__, seed=seed)
