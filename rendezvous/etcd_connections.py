"""Connections to etcd: one channel to one endpoint at a time, another when it fails, and who we are on it.

A connection is used only after its endpoint has answered a first harmless request. So nothing that writes is ever sent
to a member that is hung, unreachable or no etcd, and trying another one is safe up to then.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from spotrun.errors import EtcdError, EtcdUnavailable, UsageError
from spotrun.rendezvous import etcd_messages as messages
from spotrun.rendezvous.etcd_failures import code_of, details_of, judge
from spotrun.rendezvous.etcd_messages import Method

ATTEMPT_S = 0.7  # a member that takes longer is left for another one: about half of an election
LONE_ATTEMPT_S = 2.0  # with one endpoint there is nowhere else to go, and a slow disk is waited for
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 0.5
# A member without a leader says so at once instead of keeping the request (as Go's clientv3.WithRequireLeader).
REQUIRE_LEADER = ("hasleader", "true")

_OPTIONS = [
    # Otherwise all channels of the process to one address share one reconnect backoff: a new one could fail at once.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", int(BACKOFF_MAX_S * 1000)),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # etcd is inside the cluster; a proxy for the web would cut watches
]


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """How etcd is reached. TLS is used if any of the three files is given."""

    endpoints: tuple[str, ...]  # "host:port"
    ca_cert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 5.0  # of one operation, all attempts and endpoints included

    @property
    def tls(self) -> bool:
        return any((self.ca_cert, self.cert, self.key))


class Retired(Exception):
    """Raised on beginning to use a connection that somebody else has just given up: take the next one."""


def _silence_grpc() -> None:
    """It writes warnings of its own to stderr, about forks above all. It reads this variable once, at its first use."""
    if "GRPC_VERBOSITY" not in os.environ:
        os.environ["GRPC_VERBOSITY"] = "NONE"
        try:
            grpc.insecure_channel("localhost:0").close()
        finally:
            del os.environ["GRPC_VERBOSITY"]  # workers have their own opinion on it


_silence_grpc()


class Connection:
    """One channel to one endpoint. It closes when it is retired and the last user is done: closing cancels requests."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        self.heard_s = time.monotonic()  # when the endpoint last answered anything
        self._channel = (
            grpc.insecure_channel(endpoint, options=_OPTIONS)
            if credentials is None
            else grpc.secure_channel(endpoint, credentials, options=_OPTIONS)
        )
        self._methods: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    def unary(self, method: Method, request: Any, timeout_s: float, token: str | None) -> Any:
        """One request, one attempt. Raises grpc.RpcError, Retired, and ValueError once the client has been closed."""
        with self.used():
            reply = self._method(self._channel.unary_unary, method)(
                request, timeout=timeout_s, metadata=_metadata(token)
            )
        self.heard_s = time.monotonic()
        return reply

    def stream(self, method: Method, requests: Iterator[Any], token: str | None) -> Any:
        """An open stream: iterate for its replies. The caller holds `used` for as long."""
        return self._method(self._channel.stream_stream, method)(requests, metadata=_metadata(token))

    def hello(self, timeout_s: float) -> grpc.RpcError | None:
        """Why the endpoint does not answer; None if it does, be it with a refusal."""
        try:
            self.unary(messages.STATUS, messages.StatusRequest(), timeout_s, None)
        except grpc.RpcError as error:
            return error if code_of(error) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) else None
        return None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """While within, the channel stays open unless the client itself closes. Raises Retired."""
        with self._lock:
            if self._retired:
                raise Retired
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
            self._close_if_done()

    def retire(self, *, at_once: bool = False) -> None:
        with self._lock:
            self._retired = True
        if at_once:
            self._channel.close()
        else:
            self._close_if_done()

    def _close_if_done(self) -> None:
        with self._lock:
            done = self._retired and not self._users
        if done:
            self._channel.close()  # twice does no harm

    def _method(self, factory: Any, method: Method) -> Any:
        if method.path not in self._methods:
            self._methods[method.path] = factory(
                method.path,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=method.reply.FromString,
            )
        return self._methods[method.path]


class Connections:
    """The connection of a client, and its login. Thread-safe."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self.attempt_s = ATTEMPT_S if len(config.endpoints) > 1 else LONE_ATTEMPT_S
        self.names = ", ".join(config.endpoints)
        self._credentials = _credentials(config)
        self._next = random.randrange(len(config.endpoints))  # the clients spread over the members
        self._current: Connection | None = None
        self._lock = threading.Lock()
        self._dialling = threading.Lock()
        self._login = threading.Lock()
        self._closed = threading.Event()
        self._token: str | None = None
        self._without_login = config.user is None

    @property
    def endpoint(self) -> str | None:
        """The endpoint in use."""
        current = self._current
        return current.endpoint if current is not None else None

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def ready(self, end_s: float) -> Connection:
        """A connection whose endpoint has answered. Raises EtcdUnavailable at `end_s` (monotonic)."""
        current = self._current
        if current is not None:
            return current
        if not self._dialling.acquire(timeout=max(0.0, end_s - time.monotonic())):
            raise self.unavailable("no endpoint answered")
        try:
            return self._current or self._dial(end_s)
        finally:
            self._dialling.release()

    def _dial(self, end_s: float) -> Connection:
        tries = 0
        while True:
            self.raise_if_closed()
            endpoint = self.config.endpoints[self._next]
            connection = Connection(endpoint, self._credentials)
            why = connection.hello(max(0.01, min(self.attempt_s, end_s - time.monotonic())))
            if why is None:
                with self._lock:
                    if not self.closed:
                        self._current = connection
                        return connection
            connection.retire(at_once=True)
            self._next = (self._next + 1) % len(self.config.endpoints)
            tries += 1
            left_s = end_s - time.monotonic()
            if why is not None and left_s <= 0:
                raise self.unavailable(f"{endpoint}: {code_of(why).name}, {details_of(why)}")
            if tries % len(self.config.endpoints) == 0:
                self._closed.wait(min(left_s, backoff_s(tries // len(self.config.endpoints))))

    def failed(self, connection: Connection) -> None:
        """`connection` is no good: the next `ready` turns to the next endpoint. Who still uses it is not disturbed."""
        with self._lock:
            if self._current is not connection:
                return
            self._current = None
            self._next = (self._next + 1) % len(self.config.endpoints)
        connection.retire()

    def token(self, connection: Connection, end_s: float) -> str | None:
        """The token to send; logs in if need be. Raises grpc.RpcError, EtcdError (wrong user or password)."""
        with self._login:
            if self._token is None and not self._without_login:
                self._token = self._authenticate(connection, end_s)
            return self._token

    def _authenticate(self, connection: Connection, end_s: float) -> str | None:
        request = messages.AuthenticateRequest(name=self.config.user, password=self.config.password or "")
        timeout_s = max(0.01, min(self.attempt_s, end_s - time.monotonic()))
        try:
            return str(connection.unary(messages.AUTHENTICATE, request, timeout_s, None).token)
        except grpc.RpcError as error:
            if "authentication is not enabled" in details_of(error):  # as Go's client: then nobody needs one
                self._without_login = True
                return None
            verdict = judge(error, connection.endpoint, messages.AUTHENTICATE.does)
            if isinstance(verdict, EtcdError):
                raise verdict from None
            raise

    def token_expired(self, token: str | None) -> None:
        """etcd no longer takes `token`: the next use logs in again."""
        with self._login:
            if self._token == token:
                self._token = None

    def wait(self, seconds: float) -> None:
        """Wait before another attempt; cut short by `close`."""
        self._closed.wait(seconds)

    def raise_if_closed(self) -> None:
        if self.closed:
            raise EtcdUnavailable("This connection to etcd has been closed.")

    def unavailable(self, why: str) -> EtcdUnavailable:
        return EtcdUnavailable(f"etcd does not answer at {self.names} ({why}): check that it runs and can be reached.")

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            current, self._current = self._current, None
        if current is not None:
            current.retire(at_once=True)


def backoff_s(tries: int) -> float:
    """How long to wait after `tries` failures in a row."""
    return min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(tries, 10))


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    # As plain metadata: gRPC's own call credentials are refused on a channel without TLS.
    return (REQUIRE_LEADER,) if token is None else (REQUIRE_LEADER, ("token", token))


def _credentials(config: EtcdConfig) -> grpc.ChannelCredentials | None:
    if not config.endpoints:
        raise UsageError("No etcd endpoint was given: name one as host:port.")
    if not config.tls:
        return None
    if (config.cert is None) != (config.key is None):
        raise UsageError("A client certificate and its key belong together: give both, or neither.")
    return grpc.ssl_channel_credentials(*(_read(path) for path in (config.ca_cert, config.key, config.cert)))


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the TLS file {path}: {error.strerror}.") from None
