"""NumPy multiplies matrices in one thread where we do it, and an import changes nothing."""
import os
import subprocess
import sys

import numpy as np
import pytest
from meadowlark.threads import in_one_thread, one_thread
from threadpoolctl import threadpool_info


def threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


@pytest.fixture
def many():
    """Two threads, as a program of somebody else may have."""
    from threadpoolctl import threadpool_limits
    assert (np.ones((2, 2)) @ np.ones((2, 2))).sum() == 8      # the library is loaded
    with threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("this NumPy has no library whose threads can be set")
        yield


def test_as_before_afterwards(many):
    with one_thread():
        assert threads() == {1}
    assert threads() == {2}


def test_items(many):
    """Whoever takes the items has as many threads as before, between them too."""
    def made():
        for k in range(3):
            yield k, threads()
    for k, (item, inside) in enumerate(in_one_thread(made())):
        assert (item, inside) == (k, {1})
        assert threads() == {2}
    assert threads() == {2}


def test_after_an_error(many):
    def broken():
        yield 1
        raise KeyError("x")
    with pytest.raises(KeyError):
        list(in_one_thread(broken()))
    assert threads() == {2}


def test_an_import_sets_nothing():
    code = "import os; before = dict(os.environ); import meadowlark as ml; ml.load; " \
           "assert dict(os.environ) == before"
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
