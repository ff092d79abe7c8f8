"""How many threads NumPy multiplies matrices with: one.

OpenBLAS waits for its threads by spinning, and the matrices here are small: on a machine that also
runs a simulator, two threads were 25 times slower than one.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

T = TypeVar("T")


def one_thread_for_all() -> None:
    """For a process of our own, before it imports NumPy. A value that is set is kept."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@cache
def _libraries() -> ThreadpoolController:
    import numpy  # noqa: F401  (only libraries that are loaded are found)
    from threadpoolctl import ThreadpoolController
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """In somebody else's process: until it is left, and as before afterwards."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


def in_one_thread(items: Iterator[T]) -> Iterator[T]:
    """Each item is made in one thread; who takes it has as many as before."""
    while True:
        with one_thread():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
