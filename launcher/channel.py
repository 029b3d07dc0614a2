"""JSON objects, one a line, over a connected Unix socket. Standard library only: the zygote imports this first."""

from __future__ import annotations

import json
import socket
from typing import Any

CHUNK_BYTES = 1 << 16


class Channel:
    """One end. Sending blocks until the peer has room; receiving never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = bytearray()
        self.ended = False  # the peer is gone: nothing will come any more

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Raises OSError when the peer is gone."""
        self._connection.sendall(json.dumps(message).encode("ascii") + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Every whole message that has arrived; `ended` is set once the peer has closed its end or died."""
        while not self.ended:
            try:
                data = self._connection.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:  # reset: the peer died with our bytes unread
                data = b""
            self.ended = not data
            self._rest += data
        end = self._rest.rfind(b"\n") + 1
        lines = bytes(self._rest[:end]).splitlines()
        del self._rest[:end]
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self._connection.close()
