"""The transport of a board whose link is a window of registers: see "AXI boards" in docs/boards.md.

Runs on the board's own processor. What a window is made of (a UIO device, ``/dev/mem``, a PYNQ
overlay) is told by the target's name, see :func:`open_registers`.
"""
from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from meadowlark_hdl.link.axi_lite_table import (BASE_BYTES, CONTROL_MEMORY, WINDOW_ADDRESS,
                                                WINDOW_BITS, WINDOW_MAGIC, WINDOW_VERSION)

from .transport import TransportError

WINDOW_BYTES = 1 << WINDOW_BITS
#: Seconds between two looks for bytes when none wait: a token takes milliseconds.
POLL = 100e-6
#: Seconds within which a run ends whose memory is taken away, and what it asked of memory is done.
ENDS = 0.01


class Window(Protocol):
    """Loads and stores of the window; addresses in bytes."""

    def load(self, address: int) -> int:
        """A word of 32 bits."""
        ...

    def store(self, address: int, value: int) -> None:
        """A word of 32 bits, in one access."""
        ...

    def store_byte(self, address: int, value: int) -> None:
        """A byte, in one access."""
        ...

    def close(self) -> None:
        """Give the window back; a second call does nothing."""
        ...


class MappedWindow:
    """A window in the memory of this process.

    Parameters
    ----------
    view : memoryview
        Its bytes; every access to it is one of the bus.
    release : callable
        Called once, by :meth:`close`.
    """

    def __init__(self, view: memoryview, *, release: Callable[[], object]) -> None:
        self._octets, self._release = view.cast("B"), release
        self._words = self._octets.cast("I")
        self._open = True

    def load(self, address: int) -> int:
        return self._words[address >> 2]

    def store(self, address: int, value: int) -> None:
        self._words[address >> 2] = value

    def store_byte(self, address: int, value: int) -> None:
        self._octets[address] = value

    def close(self) -> None:
        if self._open:
            self._open = False
            self._words.release()
            self._octets.release()
            self._release()


class RegisterTransport:
    """The link through the window's ``data``; loads when nothing waits are repeated.

    Parameters
    ----------
    window : Window
        Owned from here on.
    memory : int
        Address of the region that the core takes as its memory, a multiple of 4096.
    now, pause : callables
        The clock of :class:`~.transport.Transport`, and how to wait in it.

    Raises
    ------
    ValueError
        No region begins there.
    TransportError
        There is no Meadowlark, or one of another version.
    """

    def __init__(self, window: Window, memory: int, *, now: Callable[[], float] = time.monotonic,
                 pause: Callable[[float], object] = time.sleep) -> None:
        self.timeout = 0.1
        self._window, self._now, self._pause = window, now, pause
        self._data = WINDOW_ADDRESS["data"]
        self._kept = bytearray()            # of a load that gave more than was asked for
        if memory % BASE_BYTES or not 0 <= memory < 1 << 40:
            raise ValueError("the memory must begin at a multiple of 4096 below 2**40, "
                             f"not {memory:#x}")
        found, version = (window.load(WINDOW_ADDRESS[name]) for name in ("id", "version"))
        if found != WINDOW_MAGIC:
            raise TransportError(f"there is no Meadowlark in this window (its first word is "
                                 f"{found:#010x}); load the bitstream and check the address")
        if version != WINDOW_VERSION:
            raise TransportError(f"the window has version {version}, this program is for "
                                 f"{WINDOW_VERSION}; build the bitstream again with this version")
        self._place(memory)
        window.store(WINDOW_ADDRESS["drop"], 0)     # what an earlier program left

    def _place(self, memory: int) -> None:
        """Tell the core where its memory is, unless it has been told: a run may be under way."""
        window, at = self._window, WINDOW_ADDRESS
        halves = {at["base_low"]: memory & 0xFFFFFFFF, at["base_high"]: memory >> 32}
        control = window.load(at["control"])
        if control & CONTROL_MEMORY:
            if all(window.load(address) == half for address, half in halves.items()):
                return
            window.store(at["control"], control & ~CONTROL_MEMORY)
            self._pause(ENDS)
        for address, half in halves.items():
            window.store(address, half)
        window.store(at["control"], control | CONTROL_MEMORY)

    def read(self, max: int, timeout: float) -> bytes:
        load, data, got = self._window.load, self._data, self._kept
        end = self._now() + timeout
        while True:
            while len(got) < max and (word := load(data)):
                got += word.to_bytes(4, "little")[:word >> 24]
            if got or self._now() >= end:
                self._kept = got[max:]
                return bytes(got[:max])
            self._pause(POLL)

    def now(self) -> float:
        return self._now()

    def write(self, data: bytes) -> None:
        store, address, whole = self._window.store, self._data, len(data) & ~3
        for (value,) in struct.iter_unpack("<I", data[:whole]):
            store(address, value)
        for value in data[whole:]:
            self._window.store_byte(address, value)

    def close(self) -> None:
        self._window.close()


def mapped(path: str, offset: int) -> MappedWindow:
    """The window at an offset of a file that can be mapped.

    Raises
    ------
    TransportError
        It cannot be.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_SYNC)
        try:
            memory = mmap.mmap(fd, WINDOW_BYTES, offset=offset)
        finally:
            os.close(fd)
    except (OSError, ValueError, OverflowError) as error:
        raise TransportError(
            f"cannot map the registers in {path} ({getattr(error, 'strerror', None) or error}); "
            "check that the bitstream and its device tree are loaded and that you may (root)"
        ) from error
    return MappedWindow(memoryview(memory), release=memory.close)


def overlay(path: str) -> tuple[MappedWindow, int]:
    """Load a bitstream with PYNQ; its window and the address of a buffer for the memory.

    Raises
    ------
    TransportError
        PYNQ is not installed, cannot load the file, or finds no Meadowlark in it.
    """
    try:
        import pynq  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise TransportError("PYNQ is not installed: run this on the board in PYNQ's environment, "
                             "or give uio:/dev/uio0@ADDRESS") from None

    # PYNQ raises whatever its parts do, and none of it is for the person at the keyboard.
    def attempt(what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            raise TransportError(f"PYNQ cannot {what}: {error}") from error
    if not Path(path).is_file():
        raise TransportError(f"there is no {path}: copy the .bit and .hwh files that Vivado made")
    loaded = attempt(f"load {path}", lambda: pynq.Overlay(path))
    facts = loaded.ip_dict.get("meadowlark")
    if facts is None:
        raise TransportError(f"{path} holds no Meadowlark, only {', '.join(loaded.ip_dict)}; "
                             "check that its .hwh file is of the same build")
    registers = pynq.MMIO(facts["phys_addr"], WINDOW_BYTES)
    size = registers.read(WINDOW_ADDRESS["memory_kib"]) << 10
    buffer = attempt(f"reserve {size >> 20} MiB for the core",
                     lambda: pynq.allocate(shape=(size,), dtype="u1"))
    buffer.flush()          # nothing of it may come out of a cache later

    def release() -> None:
        # The core may not write any more when the buffer is somebody else's.
        registers.write(WINDOW_ADDRESS["control"], 0)
        time.sleep(ENDS)
        buffer.freebuffer()
    return MappedWindow(memoryview(registers.array), release=release), buffer.device_address


def open_registers(target: str) -> RegisterTransport:
    """A window by name.

    ``uio:/dev/uioN@memory``: a UIO device whose first map is the window. ``mem:window@memory``:
    ``/dev/mem`` at the address ``window``. ``pynq:file.bit``: loads the bitstream. ``memory`` is
    where the region begins that Linux leaves to the core. Addresses as 0x60000000.

    Raises ValueError for another form, TransportError if there is nothing.
    """
    kind, _, rest = target.partition(":")
    if kind == "pynq":
        if not rest:
            raise ValueError(f"target must be pynq:file.bit, not {target!r}")
        window, memory = overlay(rest)
    else:
        place, _, base = rest.rpartition("@")
        memory = int(base, 0) if place else -1
        if kind == "uio" and place.startswith("/"):
            window = mapped(place, 0)
        elif kind == "mem" and place:
            window = mapped("/dev/mem", int(place, 0))
        else:
            raise ValueError("target must be uio:/dev/uioN@memory or mem:window@memory, "
                             f"not {target!r}")
    try:
        return RegisterTransport(window, memory)
    except BaseException:
        window.close()
        raise
