"""A TCP relay that stops in the middle, so that a test knows how much of a message has arrived."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Relay:
    """Relays connections to a server, but no more than so many bytes of each in the direction of the server.

    full: set when a connection has reached that limit. go_on: set it to let the rest through.
    When the client's side ends, so does the server's, at once.
    """

    def __init__(self, target: str, limit_bytes: int) -> None:
        self.full = threading.Event()
        self.go_on = threading.Event()
        self._target = target.rsplit(":", 1)
        self._limit_bytes = limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        try:
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._target[0], int(self._target[1])))
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client), daemon=True).start()
        except OSError:
            pass  # closed

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        left = self._limit_bytes
        try:
            while left and (data := client.recv(min(left, 65_536))):
                server.sendall(data)
                left -= len(data)
            if not left:
                self.full.set()
                self._hold_back(client, server)
        except OSError:
            pass  # the client is gone, and not in order
        finally:
            _close(client, server)

    def _hold_back(self, client: socket.socket, server: socket.socket) -> None:
        """Read, so that the client's end is seen at once, and pass on what was read when told to go on."""
        held = bytearray()
        client.settimeout(0.05)
        while True:
            with contextlib.suppress(TimeoutError):
                data = client.recv(65_536)
                if not data:
                    return
                held += data
            if self.go_on.is_set():
                server.sendall(held)
                held.clear()

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65_536):
                client.sendall(data)
        except OSError:
            pass
        finally:
            _close(client, server)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # ends what still waits for it
        end.close()
