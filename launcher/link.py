"""The agent's end of the channel to its workers: a Unix socket that only this user can reach, JSON lines.

A worker that uses the training API connects and says hello. From the agent it hears

    {"op": "drain", "seconds_left": s, "save": bool, "goes": bool}   a node of the job is to leave; save: nobody would
                                                       be left; goes: it is this one
    {"op": "release", "planned": bool}                 a newer round was formed: stop at the agreed step, or right now
    {"op": "round", ...}                               its place in the next round
    {"op": "save"}                                     take a checkpoint at the next step
    {"op": "where"}                                    no step is made any more: where does it stand?

    {"op": "answer", "yes": bool}                      to a "commit"
    {"op": "segments", "paths": {name: path}}          to a "segment"

and it says

    {"op": "hello", "local_rank": n, "in_place": bool}
    {"op": "entered"}                                  it has met all others of its round
    {"op": "mark", "name": text, "at_s": s, "step": n, "samples": n, "stepped_s": s}    see incident.py
    {"op": "progress", "round": n, "step": n, ...}     see progress.py; at most every 0.2 s
    {"op": "busy", "busy": bool}                       it does something else than stepping, which may take long
    {"op": "where", "step": n, "place": text, "waits": bool}    its last step, and its main thread; see whereabouts.py
    {"op": "ready", "agreed": bool, "in_place": bool}  its process groups are gone; agreed: after the agreed step
    {"op": "segment"[, "name": text, "size_bytes": n]}    where the snapshots in memory lie, with this one; snapshots.py
    {"op": "kept", "url": text, "region": text, "round": n, "saves": n, "size_bytes": n}    see spotrun/kept.py
    {"op": "lost", "step": n, "durable_step": n, "why": text}    a noticed state is in no place that stays
    {"op": "commit", "what": "fence"|"record", "round": n, "step": n, "name": text}    around a checkpoint's publication
    {"op": "commit", "what": "forget", "step": n, "name": text}    it is deleted; there is no answer
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spotrun import events
from spotrun.launcher.incident import Mark
from spotrun.launcher.notices.notice import bounded
from spotrun.launcher.progress import Steps
from spotrun.launcher.snapshots import Snapshots

logger = logging.getLogger("spotrun")

LINE_BYTES = 1 << 16  # a worker that writes longer lines is not ours


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a worker says that it stands."""

    step: int
    place: str
    waits: bool


@dataclass(slots=True, eq=False)
class Connection:
    sock: socket.socket
    data: bytearray = field(default_factory=bytearray)
    local_rank: int | None = None
    in_place: bool = False
    entered: bool = False
    ready: bool = False
    agreed: bool = False
    progress: Steps | None = None
    told_s: float = 0.0  # monotonic: when that came
    where: Whereabouts | None = None


class Link:
    """`fileno` is readable when `poll` has something to do."""

    def __init__(
        self, commit: Callable[[dict[str, Any], Callable[[bool], None]], None], mark: Callable[[Mark], None]
    ) -> None:
        """`commit` is called with each such message and the function that takes its answer, from any thread."""
        self._commit = commit
        self._mark = mark
        self.snapshots = Snapshots()
        self._directory = Path(tempfile.mkdtemp(prefix="spotrun-link-"))
        self.path = self._directory / "agent.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # By way of a descriptor: the address of a socket has room for 107 bytes, and $TMPDIR may be longer.
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{directory}/{self.path.name}")
        finally:
            os.close(directory)
        os.chmod(self.path, 0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._selector = selectors.EpollSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._connections: set[Connection] = set()

    def fileno(self) -> int:
        return self._selector.fileno()

    def poll(self) -> None:
        """Take in what has come. Never blocks."""
        for key, _ in self._selector.select(0):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    sock, _ = self._listener.accept()
                    sock.setblocking(False)
                    connection = Connection(sock)
                    self._connections.add(connection)
                    self._selector.register(sock, selectors.EVENT_READ, connection)
            else:
                self._read(key.data)

    def spoken(self) -> list[Connection]:
        """The workers that said hello, by local rank."""
        known = [connection for connection in self._connections if connection.local_rank is not None]
        return sorted(known, key=lambda connection: connection.local_rank or 0)

    def tell(self, message: dict[str, Any], connection: Connection | None = None) -> None:
        """Send to one worker, or to all that said hello."""
        line = json.dumps(message).encode() + b"\n"
        for one in [connection] if connection is not None else self.spoken():
            try:
                one.sock.sendall(line)  # a few hundred bytes into an empty buffer
            except OSError as error:
                logger.debug("worker %s does not listen: %s", one.local_rank, error)

    def forget(self) -> None:
        """The workers are gone."""
        for connection in list(self._connections):
            self._drop(connection)

    def close(self) -> None:
        self.forget()
        self.snapshots.close()
        self._selector.close()
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.data += data
        if not data or len(connection.data) > LINE_BYTES:
            self._drop(connection)
            return
        *lines, rest = connection.data.split(b"\n")
        connection.data = bytearray(rest)
        for line in lines:
            try:
                self._take(connection, json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                logger.warning("a worker sent what is not a message (%s): %.80r", error, bytes(line))

    def _take(self, connection: Connection, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "hello":
            connection.local_rank = int(message["local_rank"])
            connection.in_place = bool(message["in_place"])
        elif op == "entered":
            connection.entered = True
        elif op == "ready":
            connection.ready, connection.agreed = True, bool(message["agreed"])
            connection.in_place = bool(message["in_place"])
        elif op == "mark":
            name = bounded(str(message["name"]))
            step, samples = int(message["step"]), int(message["samples"])
            self._mark(Mark(name, float(message["at_s"]), step, samples, float(message["stepped_s"])))
        elif op == "progress":
            connection.progress, connection.told_s = Steps.of(message), time.monotonic()
            self.snapshots.tell()  # workers make their segments one after the other: by now they have
        elif op == "busy":
            if connection.progress is not None:
                connection.progress = dataclasses.replace(connection.progress, busy=bool(message["busy"]))
                connection.told_s = time.monotonic()
        elif op == "where":
            place = bounded(str(message["place"]))
            connection.where = Whereabouts(int(message["step"]), place, bool(message["waits"]))
        elif op == "segment":
            if "name" in message:
                try:
                    self.snapshots.make(str(message["name"]), int(message["size_bytes"]))
                except (OSError, ValueError) as error:
                    logger.warning("no memory for a snapshot: %s", error)
            self.tell({"op": "segments", "paths": self.snapshots.paths()}, connection)
        elif op == "kept":
            where: dict[str, Any] = {name: bounded(str(message[name])) for name in ("url", "region")}
            where |= {name: int(message[name]) for name in ("round", "saves", "size_bytes")}
            events.emit("state_kept", level=logging.DEBUG, **where)
        elif op == "lost":
            events.emit(
                "state_lost",
                str(message["why"]) if connection.local_rank == 0 else "",  # one line a node
                level=logging.ERROR,
                step=int(message["step"]),
                durable_step=int(message["durable_step"]),
                why=str(message["why"]),
            )
        elif op == "commit":
            wants_answer = message["what"] != "forget"
            self._commit(message, lambda yes: self._answer(connection, yes) if wants_answer else None)

    def _answer(self, connection: Connection, yes: bool) -> None:
        self.tell({"op": "answer", "yes": yes}, connection)

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()
