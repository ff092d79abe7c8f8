"""A socket with the server behind it, in a thread of its own."""
from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading

import uvicorn
from starlette.applications import Starlette

from ..errors import UserError

#: Connections at once, at most; further ones are refused.
MOST_CONNECTIONS = 1000


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. port: 0 takes a free one.

    Raises
    ------
    UserError
        There is no such address here, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(128)
        except BaseException:
            made.close()
            raise
        return made
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on port {port} of {host}: {reason}; give another --port or "
                        "--host") from error


def is_local(host: str) -> bool:
    """Only programs on this computer reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server:
    """Runs an application until :meth:`stop`. A context manager; leaving it stops and waits.

    patience: seconds that answers may take once it stops.
    """

    def __init__(self, app: Starlette, sock: socket.socket, *, patience: float) -> None:
        self.sock = sock
        self._server = uvicorn.Server(uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", server_header=False,
            limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=int(patience) + 1))
        self._thread = threading.Thread(target=self._serve, name="server")

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.sock.getsockname()[1]

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self.sock]))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.stop()
        self._thread.join()
        self.sock.close()

    def wait(self) -> None:
        """Until it has stopped. A signal ends the waiting."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def stop(self) -> None:
        """Take no more connections, and end when what runs has been answered."""
        self._server.should_exit = True
