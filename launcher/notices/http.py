"""A drain asked for over HTTP, on loopback only.

    POST /drain {"seconds_left": 30, "reason": "kernel update"}     -> 202
    DELETE /drain                                                    -> 200, or 404 where none was asked for

`--notice=http:PORT` listens on that port, for every user of this machine. `--notice=http` takes a free port and
writes address and a token to a file that only this user can read (SPOTRUN_NOTICE_ADDRESS_FILE); a request must then
show the token as `Authorization: Bearer TOKEN`. Requests that a web page could cause are refused: by the Host header
(a name that was made to resolve to 127.0.0.1) and by the Origin header.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import secrets
import socketserver
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spotrun import events
from spotrun.launcher.notices.asked import Unreadable, parse_drain
from spotrun.launcher.notices.notice import Grade, Notice, Publish, bounded

ADDRESS_ENV = "SPOTRUN_NOTICE_ADDRESS_FILE"
LIMIT_BYTES = 4096
CLIENT_S = 5.0  # a client that says nothing for so long is let go
STOP_CHECK_S = 0.1
LOOPBACK = ("127.0.0.1", "localhost")


class HttpSource:
    name = "http"

    def __init__(self, port: str = "", environ: Mapping[str, str] = os.environ) -> None:
        self._port = int(port) if port else 0
        self._token = "" if port else secrets.token_urlsafe(16)
        default = Path(tempfile.gettempdir()) / f"spotrun-notice-{os.getuid()}-{os.getpid()}.json"
        self._address = Path(environ.get(ADDRESS_ENV) or default)
        self._lock = threading.Lock()
        self._last: Notice | None = None
        self._publish: Publish = lambda notice: None

    def detect(self) -> bool:
        """Only for those who name it: a job does not open ports that nobody asked for."""
        return False

    def safe_to_go(self, notice: Notice) -> None:
        """Nobody waits for it."""

    def run(self, publish: Publish, stop: threading.Event) -> None:
        self._publish = publish
        try:
            server = _Server(("127.0.0.1", self._port), self)
        except OSError as error:
            text = f"Notices over HTTP are off: port {self._port} of 127.0.0.1 cannot be had ({error.strerror})."
            events.emit("notice_source_failing", text, level=logging.WARNING, source=self.name, error=str(error))
            return
        with server:
            self._announce(server.server_address[1])
            thread = threading.Thread(target=server.serve_forever, args=(STOP_CHECK_S,), daemon=True)
            thread.start()
            try:
                stop.wait()
            finally:
                server.shutdown()
                thread.join()
                if self._token:
                    self._address.unlink(missing_ok=True)

    def _announce(self, port: int) -> None:
        """Say where we listen; with a token, in a file that only this user can read, written whole or not at all."""
        url = f"http://127.0.0.1:{port}/drain"
        where = f"; the token is in {self._address}" if self._token else ""
        events.emit("notice_listening", f"A drain can be asked for at {url}{where}.", url=url)
        if not self._token:
            return
        text = json.dumps({"v": 1, "url": url, "token": self._token})
        partial = self._address.with_name(f".{self._address.name}-{secrets.token_hex(4)}")
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(text)
            os.replace(partial, self._address)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            text = f"Notices over HTTP: nobody can learn the port, as {self._address} cannot be written ({error})."
            events.emit("notice_source_failing", text, level=logging.WARNING, source=self.name, error=str(error))

    def refusal(self, host: str, origin: str | None, authorization: str) -> str:
        """Why a request with these headers is refused; "" if it is not."""
        if host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
            return "the Host header must be 127.0.0.1 or localhost"
        if origin is not None:
            return "not for web pages"
        if self._token and not secrets.compare_digest(authorization.encode(), f"Bearer {self._token}".encode()):
            return "the token is in the file that SPOTRUN_NOTICE_ADDRESS_FILE names"
        return ""

    def drain(self, text: str) -> None:
        """Raises Unreadable."""
        seconds, reason = parse_drain(text)
        with self._lock:
            id = self._last.id if self._last else secrets.token_hex(8)
            notice = Notice(self.name, "manual", Grade.WILL, seconds, time.monotonic(), id, detail=bounded(reason))
            self._last = notice
            self._publish(notice)

    def withdraw(self) -> bool:
        with self._lock:
            if self._last is None:
                return False
            last, now_s, self._last = self._last, time.monotonic(), None
            left_s = max(0.0, last.deadline_s - now_s)
            self._publish(Notice(self.name, last.kind, last.grade, left_s, now_s, last.id, True, last.detail))
            return True


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], source: HttpSource) -> None:
        self.source = source
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_S
    server_version, sys_version = "spotrun", ""

    def do_POST(self) -> None:
        text = self._checked()
        if text is not None:
            try:
                self.server.source.drain(text)
            except Unreadable as error:
                self._answer(400, {"error": str(error)})
            else:
                self._answer(202, {"drain": True})

    def do_DELETE(self) -> None:
        if self._checked() is not None:
            gone = self.server.source.withdraw()
            self._answer(200 if gone else 404, {"drain": False})

    def _checked(self) -> str | None:
        """The body; None where the request was refused, which is then said already."""
        length = self.headers.get("Content-Length", "0")
        if why := self.server.source.refusal(
            self.headers.get("Host", ""), self.headers.get("Origin"), self.headers.get("Authorization", "")
        ):
            self._answer(403, {"error": why})
        elif self.path != "/drain":
            self._answer(404, {"error": "there is only /drain"})
        elif "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            self._answer(411, {"error": "send a Content-Length"})
        elif len(length) > 9 or int(length) > LIMIT_BYTES:
            self._answer(413, {"error": f"more than {LIMIT_BYTES} bytes"})
        else:
            return self.rfile.read(int(length)).decode("utf-8", "replace")
        return None

    def _answer(self, status: int, record: dict[str, Any]) -> None:
        body = json.dumps(record).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The notice itself is logged, by whoever gets it."""
