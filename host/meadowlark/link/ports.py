"""Opens the transport that a name stands for."""
from __future__ import annotations

from .registers import open_registers
from .transport import SerialTransport, SocketTransport, Transport


def open_transport(target: str) -> Transport:
    """``/dev/...[@baud]`` or ``COMn[@baud]``: serial; ``tcp:host:port``: a socket; ``uio:``,
    ``mem:`` and ``pynq:``: see :func:`~.registers.open_registers`.

    Raises ValueError for another form, TransportError if it cannot be opened.
    """
    if target.startswith("tcp:"):
        host, _, port = target[4:].rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"target must be tcp:host:port, not {target!r}")
        return SocketTransport(host, int(port))
    if target.startswith(("uio:", "mem:", "pynq:")):
        return open_registers(target)
    name, _, baud = target.partition("@")
    if not name.startswith("/") and not name.upper().startswith("COM"):
        raise ValueError(f"target must be a serial port or tcp:host:port, not {target!r}")
    if not baud:
        return SerialTransport(name)
    if not baud.isdigit():
        raise ValueError(f"baud must be a number, not {baud!r}")
    return SerialTransport(name, baud=int(baud))
