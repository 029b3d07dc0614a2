"""A stand-in of AWS's instance metadata service, for machines that are none of AWS's: what announces a spot reclaim.

Each node has a base URL of its own, as each instance has a service of its own. Tokens, paths and bodies are those of
the EC2 user guide (IMDSv2; spot instance interruption notices).
"""

from __future__ import annotations

import http.server
import json
import secrets
import threading
from datetime import datetime, timedelta, timezone
from types import TracebackType

LEAD_S = 120.0  # what AWS gives
TOKEN_HEADER = "X-aws-ec2-metadata-token"
TOKEN_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
INSTANCE = "/latest/meta-data/instance-id"
SPOT = "/latest/meta-data/spot/instance-action"


class Metadata:
    """The services of all nodes, on one port of 127.0.0.1."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Metadata:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, node: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{node}"

    def reclaim(self, node: str) -> None:
        """From now on, AWS says that it takes this instance back in two minutes."""
        end = datetime.now(timezone.utc) + timedelta(seconds=LEAD_S)
        self._server.notices[node] = json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.notices: dict[str, str] = {}  # by node
        self.token = secrets.token_urlsafe(16)

    def handle_error(self, request: object, client_address: object) -> None:
        """A node that was killed in the middle of a request is part of the demo."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_PUT(self) -> None:
        if self.path.endswith("/latest/api/token") and TOKEN_TTL_HEADER in self.headers:
            self._answer(200, self.server.token, {TOKEN_TTL_HEADER: self.headers[TOKEN_TTL_HEADER]})
        else:
            self._answer(400)

    def do_GET(self) -> None:
        node, _, rest = self.path.removeprefix("/").partition("/")
        if self.headers[TOKEN_HEADER] != self.server.token:
            self._answer(401)
        elif f"/{rest}" == INSTANCE:
            self._answer(200, "i-" + node.encode().hex())
        elif f"/{rest}" == SPOT and node in self.server.notices:
            self._answer(200, self.server.notices[node])
        else:
            self._answer(404)

    def _answer(self, status: int, body: str = "", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """The terminal is the view's."""
