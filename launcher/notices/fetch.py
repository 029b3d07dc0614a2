"""One small HTTP request to a metadata server: no proxy, no redirect, no DNS for our own addresses, everything bounded.

Metadata servers are next door and answer in milliseconds, or not at all. So the whole exchange has one deadline (a
server that sends a byte a second meets it, too), the body has a limit, and every way to fail is one error.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

CONNECT_S = 1.0  # off-cloud, 169.254.169.254 often swallows packets instead of refusing
LIMIT_BYTES = 256 * 1024  # Azure's document for a whole scale set is tens of kB; nothing else comes near
STOP_CHECK_S = 0.2  # a long poll is left within this time: a blocked read cannot wait on an Event, too


class Unanswered(Exception):
    """Raised by `fetch` when no usable answer came, and by those who ask when the answer makes no sense.

    It never leaves a source: what is not known is asked again, and neither published nor withdrawn.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]  # by lower-case name
    wall_s: float  # our wall clock when it came

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one exchange may take, and what ends it early."""

    timeout_s: float = 2.0
    limit_bytes: int = LIMIT_BYTES
    stop: threading.Event = field(default_factory=threading.Event)


class _BoundedSocket(socket.socket):
    """Reads with one deadline for all of them together. http.client's own timeout starts anew with each read."""

    end_s: float = 0.0
    stop: threading.Event

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        while not self.stop.is_set():
            left_s = self.end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("no answer in time")
            self.settimeout(min(left_s, STOP_CHECK_S))
            try:
                return super().recv_into(*args, **kwargs)
            except TimeoutError:
                continue
        raise TimeoutError("stopped")


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, limits: Limits) -> None:
        super().__init__(host, port, timeout=min(CONNECT_S, limits.timeout_s))
        self._end_s = time.monotonic() + limits.timeout_s
        self._limits = limits

    def connect(self) -> None:
        super().connect()
        bounded = _BoundedSocket(fileno=self.sock.detach())
        bounded.settimeout(max(0.001, self._end_s - time.monotonic()))  # for sending
        bounded.end_s, bounded.stop = self._end_s, self._limits.stop
        self.sock = bounded


def fetch(
    url: str,
    limits: Limits,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """The answer, whatever its status. Raises Unanswered, and nothing else."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise Unanswered(f"{url} is no http:// address")
        connection = _Connection(parts.hostname, parts.port or 80, limits)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request(method, target, body=body, headers={"Connection": "close", **(headers or {})})
            response = connection.getresponse()
            content = response.read(limits.limit_bytes + 1)
            if len(content) > limits.limit_bytes:
                raise Unanswered(f"{url} answered more than {limits.limit_bytes} bytes")
            if response.length:  # what is still missing of the announced length
                raise Unanswered(f"{url} stopped in the middle of its answer")
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, content, named, time.time())
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unanswered(f"{url}: {error or type(error).__name__}") from error
