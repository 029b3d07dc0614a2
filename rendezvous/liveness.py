"""Process death noticed at once: each agent keeps a port open, and those who watch it keep a connection to it.

When an agent dies, its kernel closes the connection within milliseconds. The watcher then connects again: refused means
that nobody listens there any more, so the agent is dead; anything else is only a suspicion, which the node's lease in
etcd decides. A refusal is believed only from an address that has accepted before, because a firewall may refuse too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

State = Literal["alive", "suspect", "dead"]
RETRY_S = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)  # a suspect is asked again after these times, then every 2 s
CONNECT_S = 2.0
MAX_ACCEPTED = 4096


def listen(address: str) -> socket.socket:
    """A listening socket on a free port that `address` reaches: on loopback alone where `address` is loopback."""
    family = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
    host = socket.getaddrinfo(address, None, family, socket.SOCK_STREAM)[0][4][0]
    bound = str(host) if str(host) == "::1" or str(host).startswith("127.") else ""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((bound, 0))
    sock.listen(1024)
    return sock


@dataclass(slots=True, eq=False)
class Target:
    """One agent that is watched."""

    address: str
    port: int
    tell: Callable[[State], None]
    sock: socket.socket | None = None
    connected: bool = False
    accepted_before: bool = False
    told: State | None = None
    tries: int = 0
    due_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False


class Liveness:
    """One thread that accepts, connects and notices. `tell` is called on that thread and must not block."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_r, selectors.EVENT_READ, None)
        self._lock = threading.Lock()
        self._new: list[Target | socket.socket] = []
        self._waiting: set[Target] = set()  # those with a due time
        self._accepted: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="spotrun-liveness", daemon=True)
        self._thread.start()

    def serve(self, listener: socket.socket) -> None:
        """Accept, and hold, what connects to `listener`; it is closed with this object or when it is closed."""
        listener.setblocking(False)
        self._add(listener)

    def watch(self, address: str, port: int, tell: Callable[[State], None]) -> Target:
        target = Target(address, port, tell)
        self._add(target)
        return target

    def cancel(self, target: Target) -> None:
        target.cancelled = True
        self._add(target)

    def close(self) -> None:
        self._closed = True
        self._wake()
        self._thread.join()

    def _add(self, item: Target | socket.socket) -> None:
        with self._lock:
            self._new.append(item)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it is gone
            os.write(self._wake_w, b"x")

    def _run(self) -> None:
        while not self._closed:
            due_s = min((target.due_s for target in self._waiting), default=None)
            timeout_s = None if due_s is None else max(0.0, due_s - time.monotonic())
            for key, _ in self._selector.select(timeout_s):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_r, 4096)
                elif isinstance(key.data, Target):
                    self._progress(key.data)
                elif key.fileobj in self._accepted:
                    self._hang_up(key.data)
                else:
                    self._accept(key.data)
            with self._lock:
                new, self._new = self._new, []
            for item in new:
                if isinstance(item, socket.socket):
                    self._selector.register(item, selectors.EVENT_READ, item)
                elif item.cancelled:
                    self._drop(item)
                    self._waiting.discard(item)
                else:
                    self._waiting.add(item)
            now_s = time.monotonic()
            for target in [target for target in self._waiting if target.due_s <= now_s]:
                self._waiting.discard(target)
                self._due(target)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Target):
                self._drop(key.data)
            elif isinstance(key.data, socket.socket):
                key.data.close()
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if len(self._accepted) >= MAX_ACCEPTED:
            sock.close()
            return
        sock.setblocking(False)
        self._accepted.add(sock)
        self._selector.register(sock, selectors.EVENT_READ, sock)

    def _hang_up(self, sock: socket.socket) -> None:
        """The watcher went away (or sent something, which none does)."""
        self._selector.unregister(sock)
        self._accepted.discard(sock)
        sock.close()

    def _due(self, target: Target) -> None:
        if target.sock is not None:  # a connection attempt that nobody answered
            self._drop(target)
            self._failed(target, errno.ETIMEDOUT)
            return
        try:
            found = socket.getaddrinfo(target.address, target.port, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(found[0], socket.SOCK_STREAM)
            sock.setblocking(False)
            code = sock.connect_ex(found[4])
        except (OSError, ValueError, OverflowError):  # not an address: it is another node that wrote it
            self._failed(target, errno.EHOSTUNREACH)
            return
        if code not in (0, errno.EINPROGRESS):  # no route, say; the socket itself would not tell it again
            sock.close()
            self._failed(target, code)
            return
        target.sock = sock
        self._selector.register(sock, selectors.EVENT_WRITE, target)
        target.due_s = time.monotonic() + CONNECT_S
        self._waiting.add(target)

    def _progress(self, target: Target) -> None:
        if target.sock is None:
            return
        if target.connected:  # readable: closed, or reset
            self._drop(target)
            self._say(target, "suspect")
            self._again(target)
            return
        code = target.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._waiting.discard(target)
        if code:
            self._drop(target)
            self._failed(target, code)
            return
        target.connected = target.accepted_before = True
        target.tries = 0
        self._selector.modify(target.sock, selectors.EVENT_READ, target)
        self._say(target, "alive")

    def _failed(self, target: Target, code: int) -> None:
        dead = code == errno.ECONNREFUSED and target.accepted_before
        self._say(target, "dead" if dead else "suspect")
        if not dead:
            self._again(target)

    def _again(self, target: Target) -> None:
        target.due_s = time.monotonic() + RETRY_S[min(target.tries, len(RETRY_S) - 1)]
        target.tries += 1
        self._waiting.add(target)

    def _say(self, target: Target, state: State) -> None:
        if not target.cancelled and target.told != state:
            target.told = state
            target.tell(state)

    def _drop(self, target: Target) -> None:
        if target.sock is not None:
            self._selector.unregister(target.sock)
            target.sock.close()
            target.sock = None
        target.connected = False
