"""A real S3 server (moto) in a process of its own, and a proxy before it that fails on command."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
KEY = {"key": "test", "secret": "test"}


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint URL of an empty server."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class FaultyProxy:
    """Passes requests on, except those that `fails` picks: they get a 500, or hang until `release`."""

    def __init__(self, endpoint: str) -> None:
        self.fail: tuple[str, str] | None = None  # method, part of the path
        self.hang: tuple[str, str] | None = None
        self.failed = 0
        self.hung = 0
        self._released = threading.Event()
        upstream = endpoint.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self._body()
                if proxy.hang is not None and self.command == proxy.hang[0] and proxy.hang[1] in self.path:
                    proxy.hung += 1
                    proxy._released.wait()
                    self.close_connection = True
                    return
                if proxy.fail is not None and self.command == proxy.fail[0] and proxy.fail[1] in self.path:
                    proxy.failed += 1
                    self._answer(500, [], b"<Error><Code>InternalError</Code><Message>injected</Message></Error>")
                    return
                connection = http.client.HTTPConnection(upstream)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
                    connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
                    response = connection.getresponse()
                    self._answer(response.status, response.getheaders(), response.read())
                finally:
                    connection.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def _body(self) -> bytes:
                if self.headers.get("Expect", "").lower() == "100-continue":
                    pass  # BaseHTTPRequestHandler has answered it
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return body

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                length = str(len(body))
                for name, value in headers:
                    if name.lower() == "content-length":
                        length = value if self.command == "HEAD" else length
                    elif name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the client gave up, as it should

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Whatever hangs loses its connection, and nothing hangs any more."""
        self.hang = None
        self._released.set()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
