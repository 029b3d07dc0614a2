"""One stream of requests and replies to etcd that is opened anew, on whichever member answers, as long as it is wanted.

Watches and keepalives each have one a client. A reader thread hands the replies to the stream's user; a second thread
lets the user keep time (send what is due, give up a member that has gone silent), for the reader blocks in gRPC.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from typing import Any, Protocol

import grpc

from spotrun.errors import EtcdError, EtcdUnavailable
from spotrun.rendezvous.etcd_connections import Connection, Connections, Retired, backoff_s
from spotrun.rendezvous.etcd_failures import Verdict, code_of, judge
from spotrun.rendezvous.etcd_messages import Method

logger = logging.getLogger("spotrun")

DIAL_S = 5.0  # one round of looking for a member; another follows
PAUSED_S = 1.0  # the clock thread is this late: the whole process was stopped ...
CATCH_UP_S = 0.2  # ... so what waits in the socket is read before a member is called silent
NEVER_S = 3600.0


class StreamUser(Protocol):
    """What a stream carries. The clock thread calls `tick`, the reader all others."""

    def wanted(self) -> bool:
        """Whether there is anything to have a stream for."""

    def opened(self) -> None:
        """A new stream is open and knows nothing: send it what it must know."""

    def received(self, reply: Any) -> None: ...

    def broken(self) -> None:
        """The stream has ended; a new one follows if it is wanted."""

    def refused(self, error: EtcdError) -> None:
        """etcd does not want such a stream; it is tried again if it is still wanted."""

    def tick(self, now_s: float) -> float:
        """Do what is due; when to be called again at the latest, in monotonic seconds."""


class Stream:
    """Thread-safe. `user` may call `send`, `cut` and `expired` from within its methods."""

    def __init__(self, connections: Connections, method: Method, name: str, user: StreamUser) -> None:
        self._connections = connections
        self._method = method
        self._name = name
        self._user = user
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._due_s = 0.0  # when to call `tick` next
        self._call: Any = None
        self._requests: queue.SimpleQueue[Any] | None = None
        self._connection: Connection | None = None
        self._token: str | None = None
        self._heard_s = 0.0

    def wake(self, due_s: float = 0.0) -> None:
        """The user wants something: open the stream if it is not, and call `tick` at `due_s` at the latest."""
        with self._changed:
            if not self._threads and not self._closed:
                for name, work in (("", self._read), ("-clock", self._keep_time)):
                    thread = threading.Thread(target=work, name=f"spotrun-{self._name}{name}", daemon=True)
                    self._threads.append(thread)
                    thread.start()
            if due_s < self._due_s or self._call is None:  # a thousand joins must not wake both threads each
                self._due_s = min(due_s, self._due_s)
                self._changed.notify_all()

    def send(self, request: Any) -> None:
        """Send `request` on the open stream; lost where there is none, since `opened` tells all that matters."""
        requests = self._requests
        if requests is not None:
            requests.put(request)

    def silent_s(self, now_s: float) -> float | None:
        """For how long the member has said nothing on this stream nor to other requests; None without a stream."""
        connection = self._connection
        return None if connection is None else now_s - max(self._heard_s, connection.heard_s)

    def cut(self, why: str, *, leave_member: bool) -> None:
        """End the stream, so that a new one opens; on another member if this one is no good."""
        call, connection = self._call, self._connection
        if call is None or connection is None:
            return
        logger.debug("the %s stream to %s is opened anew: %s", self._name, connection.endpoint, why)
        if leave_member:
            self._connections.failed(connection)
        call.cancel()

    def expired(self) -> bool:
        """etcd seems to have forgotten the login: log in again on a new stream. False where there is no login."""
        if self._token is None:
            return False
        self._connections.token_expired(self._token)
        self.cut("the login has expired", leave_member=False)
        return True

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            call = self._call
        if call is not None:
            call.cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _read(self) -> None:
        failures = 0
        while self._wait_until_wanted():
            opened_s = time.monotonic()
            try:
                self._run_once()
            except Retired:
                continue
            except EtcdUnavailable as error:
                logger.debug("the %s stream waits: %s", self._name, error)
            except EtcdError as error:
                self._user.refused(error)
            except Exception:  # a bug must not end all watches or leases of this process without a word
                logger.exception("the %s stream failed and is opened anew", self._name)
            failures = 0 if time.monotonic() - opened_s > DIAL_S else failures + 1
            if failures > 1:
                self._connections.wait(backoff_s(failures - 2))

    def _wait_until_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._user.wanted())
            return not self._closed and not self._connections.closed

    def _run_once(self) -> None:
        """Open the stream and read it to its end. Raises EtcdError."""
        end_s = time.monotonic() + DIAL_S
        connection = self._connections.ready(end_s)
        with connection.used():
            requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            token = None
            try:
                token = self._connections.token(connection, end_s)
                call = connection.stream(self._method, iter(requests.get, None), token)
                with self._changed:
                    if self._closed:
                        call.cancel()
                        return
                    self._call, self._requests, self._connection, self._token = call, requests, connection, token
                    self._heard_s = time.monotonic()
                self._user.opened()
                self.wake()
                for reply in call:
                    self._heard_s = connection.heard_s = time.monotonic()
                    self._user.received(reply)
                self._connections.failed(connection)  # the member ended the stream: it is shutting down
            except grpc.RpcError as error:
                self._judge(error, connection, token)
            except ValueError:
                self._connections.raise_if_closed()  # gRPC's way to say that the channel was closed meanwhile
                raise
            finally:
                requests.put(None)  # lets gRPC's thread end that takes the requests
                with self._changed:
                    if self._call is not None:
                        self._call.cancel()
                    self._call = self._requests = self._connection = None
                self._user.broken()

    def _judge(self, error: grpc.RpcError, connection: Connection, token: str | None) -> None:
        if code_of(error) is grpc.StatusCode.CANCELLED:
            return  # by `cut` or `close`
        verdict = judge(error, connection.endpoint, self._method.does)
        if isinstance(verdict, EtcdError):
            raise verdict from None
        if verdict is Verdict.LOGIN:
            self._connections.token_expired(token)
        else:
            logger.debug("the %s stream to %s broke: %s", self._name, connection.endpoint, error)
            self._connections.failed(connection)

    def _keep_time(self) -> None:
        planned_s = time.monotonic()
        while True:
            with self._changed:
                while not self._closed and (left_s := self._due_s - time.monotonic()) > 0:
                    self._changed.wait(left_s)
                if self._closed:
                    return
                self._due_s = math.inf
            if time.monotonic() - planned_s > PAUSED_S:
                self._connections.wait(CATCH_UP_S)
            try:
                planned_s = min(self._user.tick(time.monotonic()), time.monotonic() + NEVER_S)
            except Exception:  # see _read
                logger.exception("the clock of the %s stream failed", self._name)
                planned_s = time.monotonic() + 1.0
            with self._changed:
                self._due_s = min(self._due_s, planned_s)  # somebody may have woken this meanwhile
