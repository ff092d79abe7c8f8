"""Functions of rows keep within the error that they state, whatever the argument."""
from math import erf

import numpy as np
import pytest
from meadowlark.models.families.decoder import FUNCTION_NAMES
from meadowlark_hdl.functions import ARGUMENT_FRACTION, FUNCTIONS, SHARE_FRACTION, apply, share
from meadowlark_hdl.isa import Fn


def test_every_function_has_an_entry():
    assert set(FUNCTIONS) == set(Fn) - {Fn.NONE}
    # A block RAM of 512 words has all of them.
    assert sum({id(f.table): f.segments for f in FUNCTIONS.values()}.values()) <= 512


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_stated_error(fn):
    """Of all arguments; half of what is stated is too little."""
    function, g = FUNCTIONS[fn], np.arange(-1 << 17, 1 << 17)
    got = apply(fn, g) / 2.0**function.fraction
    worst = np.abs(got - function.exact(g / 2.0**ARGUMENT_FRACTION)).max()
    assert function.error / 2 <= worst <= function.error
    assert np.abs(apply(fn, g)).max() <= 1 << 17
    np.testing.assert_array_equal(share(fn, g[1:]) + share(fn, -g[1:]) - (1 << SHARE_FRACTION),
                                  np.where(g[1:] == 0, share(fn, 0) * 2 - (1 << SHARE_FRACTION), 0))


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_slopes(fn, seed):
    """By differences; floats keep their type."""
    function, h = FUNCTIONS[fn], 1e-5
    x = np.random.default_rng(seed).uniform(-9, 9, 1000)
    x = x[np.abs(x) > h]                # where relu has one
    slope = (function.exact(x + h) - function.exact(x - h)) / (2 * h)
    np.testing.assert_allclose(function.slope(x), slope, atol=1e-7)
    for what in (function.exact, function.slope):
        single = what(x.astype(np.float32))
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, what(x), atol=1e-5)


def test_normal_distribution(seed):
    x = np.random.default_rng(seed).uniform(-10, 10, 1000)
    want = [value * (1 + erf(value / 2**0.5)) / 2 for value in x]
    np.testing.assert_allclose(FUNCTIONS[Fn.GELU].exact(x), want, atol=1e-11)


def test_every_function_has_a_name():
    assert set(FUNCTION_NAMES.values()) == set(FUNCTIONS)
