"""Byte transports between host and board."""
from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from typing import Any, Protocol

from meadowlark_hdl.link.protocol import CREDITS, MAX_FRAME

from ..errors import brief


class TransportError(OSError):
    """The transport cannot be opened, or went away; the message says what to do."""


class Transport(Protocol):
    """A byte pipe to a board.

    All times are seconds of the transport's own time, which for a simulated board is the time of
    the simulation: ``read`` returns empty only after ``timeout`` of *that* time without a byte, and
    ``now`` tells it, so that a slow simulation never looks like a lost frame.

    Attributes
    ----------
    timeout : float
        Silence after which an answer counts as lost.
    """
    timeout: float

    def read(self, max: int, timeout: float) -> bytes:
        """1..``max`` bytes as soon as there are some; ``b""`` after ``timeout`` without any."""
        ...

    def write(self, data: bytes) -> None:
        """All of ``data``, in order."""
        ...

    def now(self) -> float:
        """Its own time, from wherever it counts."""
        ...

    def close(self) -> None:
        """Frees the device; a second call does nothing."""
        ...


class SerialTransport:
    """A UART without flow control, for this process alone.

    Parameters
    ----------
    port : str
        Device, such as ``/dev/ttyUSB0``.
    baud : int
        Bits a second.
    """

    def __init__(self, port: str, *, baud: int = 2_000_000) -> None:
        import serial
        if baud < 1200:
            raise ValueError(f"baud must be at least 1200, not {baud!r}")
        # A frame leaves in so long; where it does not, nobody takes it.
        patience = 1 + 2 * MAX_FRAME * 10 / baud
        try:
            self._port = serial.Serial(port, baud, timeout=0, write_timeout=patience,
                                       exclusive=True)
        except serial.SerialException as error:
            raise TransportError(_why_not(port, error)) from error
        _exclude(self._port, True)
        self._lost = (serial.SerialException, OSError)
        self._name = port
        # A window there and back, and what USB adapters and the operating system add.
        self.timeout = 0.1 + 2 * CREDITS * MAX_FRAME * 10 / baud

    def read(self, max: int, timeout: float) -> bytes:
        try:
            self._port.timeout = timeout
            first = self._port.read(1)
            if not first or max == 1:
                return first
            self._port.timeout = 0
            return first + self._port.read(min(max - 1, self._port.in_waiting))
        except self._lost as error:
            raise self._gone(error) from error

    def write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except self._lost as error:
            raise self._gone(error) from error

    def now(self) -> float:
        return time.monotonic()

    def _gone(self, error) -> TransportError:
        import serial
        if isinstance(error, serial.SerialTimeoutException):
            return TransportError(f"{self._name} takes no bytes; check that it is the port of a "
                                  "board")
        return TransportError(f"{self._name} went away ({error}); plug the board in and try again")

    def close(self) -> None:
        if self._port.is_open:
            _exclude(self._port, False)
        self._port.close()


def _why_not(port: str, error: Exception) -> str:
    """Why a port cannot be opened, and what to do."""
    number, denied = getattr(error, "errno", None), "PermissionError" in str(error)     # Windows
    if number in (errno.EBUSY, errno.EAGAIN) or denied and os.name == "nt":
        return f"the port {port} is in use by another program; end that one, then try again"
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV) or "FileNotFoundError" in str(error):
        return f"there is no port {port}; check that the board is plugged in, and its name"
    if number in (errno.EACCES, errno.EPERM):
        return (f"you may not open the port {port}; join the group that owns it (often dialout), "
                "or change its rights")
    return f"cannot open {port}: {brief(error)}; check that it is a serial port"


def _exclude(port: Any, exclude: bool) -> None:
    """Whether programs that ask for no lock can open the port too; where systems can say so."""
    try:
        import fcntl
        import termios
        fcntl.ioctl(port.fileno(), termios.TIOCEXCL if exclude else termios.TIOCNXCL)
    except (ImportError, AttributeError, OSError):
        pass


class FileTransport:
    """An open file descriptor that is read and written: a pty, or one end of a socket pair.

    Parameters
    ----------
    fd : int
        Owned from here on: closed by :meth:`close`.
    timeout : float
        See :class:`Transport`.
    """

    def __init__(self, fd: int, *, timeout: float = 1.0) -> None:
        self._fd = fd
        self.timeout = timeout

    def read(self, max: int, timeout: float) -> bytes:
        if not select.select([self._fd], [], [], timeout)[0]:
            return b""
        try:
            data = os.read(self._fd, max)
        except OSError as error:            # a pty whose other end closed reports EIO
            raise TransportError(f"the board closed the connection ({error})") from error
        if not data:
            raise TransportError("the board closed the connection")
        return data

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view):]
            except OSError as error:
                raise TransportError(f"the board closed the connection ({error})") from error

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SocketTransport(FileTransport):
    """A TCP connection, for a board served by another computer or process.

    Parameters
    ----------
    host, port : str, int
        Where it listens.
    timeout : float
        See :class:`Transport`.
    """

    def __init__(self, host: str, port: int, *, timeout: float = 1.0) -> None:
        try:
            connection = socket.create_connection((host, port), timeout=4)
        except OSError as error:
            raise TransportError(f"cannot reach {host}:{port}: {error}. Check that the board is "
                                 "served there") from error
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(connection.detach(), timeout=timeout)


class LoopbackTransport:
    """Gives back what is written: for tests of everything above bytes. Time passes in reads that
    find nothing."""

    def __init__(self) -> None:
        self.timeout = 0.01
        self._bytes: deque[int] = deque()
        self._time = 0.0

    def now(self) -> float:
        return self._time

    def read(self, max: int, timeout: float) -> bytes:
        self._time += 0 if self._bytes else timeout
        return bytes(self._bytes.popleft() for _ in range(min(max, len(self._bytes))))

    def write(self, data: bytes) -> None:
        self._bytes.extend(data)

    def close(self) -> None:
        self._bytes.clear()
