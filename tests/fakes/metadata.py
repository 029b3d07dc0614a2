"""What a metadata server is whatever the cloud: real HTTP on 127.0.0.1, a clock, the requests so far, and bad days.

The four clouds are in `clouds.py`.
"""

from __future__ import annotations

import enum
import http.server
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import formatdate
from types import MappingProxyType, TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from typing_extensions import Self

from tests.waiting import DEADLINE_S


class Fault(enum.Enum):
    """What a server does to every request on a bad day."""

    NOT_FOUND = 404
    UNAUTHORIZED = 401
    SERVER_ERROR = 500
    UNAVAILABLE = 503
    HANG = "takes the request and says nothing"
    DRIP = "sends a byte now and then"
    CLOSE = "closes the connection without an answer"
    GARBAGE = "200, and no sense in it"
    WRONG_SHAPE = "200 and JSON, but not the documented one"
    TRUNCATED = "200, and half of the body"
    HUGE = "200, and no end of it"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # by lower-case name
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def text(body: str) -> Reply:
    return Reply(200, body.encode(), {"Content-Type": "text/plain"})


def record(value: Any) -> Reply:
    return Reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


class MetadataServer(ABC):
    """The part that all have: the port, the clock, the requests so far, the faults."""

    always: Mapping[str, str] = MappingProxyType({})  # headers of every answer

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.fault_paths = ""  # the fault concerns only paths with this in them
        self.skew_s = 0.0  # of the server's clock, against ours
        self.tells_date = True
        self.changed = threading.Condition()
        self._requests: list[Request] = []
        self._closing = threading.Event()
        self._port = 0
        self._http: _Http | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        self._closing.clear()
        self._http = _Http(("127.0.0.1", self._port), self)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody listens any more, and those who wait for an answer get none."""
        self._closing.set()
        with self.changed:
            self.changed.notify_all()
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
        self._http = self._thread = None

    def requests(self, path: str = "") -> list[Request]:
        """Those so far whose path holds `path`."""
        with self.changed:
            return [request for request in self._requests if path in request.path]

    def wait_for_requests(self, more: int, path: str = "") -> None:
        """Until `more` further requests have come in."""
        wanted = len(self.requests(path)) + more
        self.wait_until(lambda: len(self.requests(path)) >= wanted, f"{more} more requests for {path or 'anything'}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S), f"not within {DEADLINE_S:g} s: {what}"

    def now_s(self) -> float:
        return time.time() + self.skew_s

    def iso(self, in_s: float) -> str:
        """A moment on the server's clock, as 2020-04-24T17:11:44Z."""
        return datetime.fromtimestamp(self.now_s() + in_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    @abstractmethod
    def answer(self, request: Request) -> Reply | None:
        """What the provider says; None for a connection that just ends."""

    def note(self, request: Request) -> None:
        with self.changed:
            self._requests.append(request)
            self.changed.notify_all()

    def fault_for(self, request: Request) -> Fault | None:
        return self.fault if self.fault_paths in request.path else None

    def hang(self) -> None:
        """Until the server ends."""
        self._closing.wait(DEADLINE_S)

    def pause(self, seconds: float) -> bool:
        """True if the server ends meanwhile."""
        return self._closing.wait(seconds)

    def hold(self, until: Callable[[], bool], at_most_s: float) -> None:
        """A long poll: until something changed, the server ends, or the time is over."""
        with self.changed:
            self.changed.wait_for(lambda: until() or self._closing.is_set(), at_most_s)

    def change(self, **values: Any) -> None:
        """Set attributes; requests that are held look again."""
        with self.changed:
            for name, value in values.items():
                setattr(self, name, value)
            self.changed.notify_all()


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], cloud: MetadataServer) -> None:
        self.cloud = cloud
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        cloud = self.server.cloud
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, query, headers, body)
        fault = cloud.fault_for(request)
        cloud.note(request)
        if fault is not None:
            return self._misbehave(fault)
        reply = cloud.answer(request)
        if reply is None:
            self.close_connection = True
        else:
            self._send(reply.status, reply.body, reply.headers, len(reply.body))

    do_PUT = do_POST = do_GET

    def _misbehave(self, fault: Fault) -> None:
        cloud = self.server.cloud
        self.close_connection = True
        if isinstance(fault.value, int):
            self._send(fault.value, b"no", {}, 2)
        elif fault is Fault.HANG:
            cloud.hang()
        elif fault is Fault.DRIP:
            self._send(200, b"", {}, 1000)
            while not cloud.pause(0.05):
                self.wfile.write(b"{")
        elif fault is Fault.GARBAGE:
            self._send(200, b"\xff\xfe\x00{{{ <html>", {}, 13)
        elif fault is Fault.WRONG_SHAPE:
            self._send(200, b'[{"Events": 7}]', {}, 15)
        elif fault is Fault.TRUNCATED:
            self._send(200, b'{"action": "termi', {}, 60)
        elif fault is Fault.HUGE:
            self._send(200, b"", {}, 1 << 40)
            while not cloud.pause(0):
                self.wfile.write(b" " * 65536)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**self.server.cloud.always, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Date" or self.server.cloud.tells_date:
            super().send_header(keyword, value)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(self.server.cloud.now_s(), usegmt=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests ask `requests`."""
