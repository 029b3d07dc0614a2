"""Snapshots for nodes that stand by: whoever has the key of this agent may fetch what its workers keep in memory.

A connection carries one request and one answer, each begun by a line of JSON:

    {"key": text, "round": r, "step": s}          what is newer than that?
    {"parts": [[local rank, header ...], ...]}    the newest that is whole on this node; then each one's contents

The key lies in etcd, in the record of the node. Workers go on writing meanwhile, so that the parts are copied first, in
the kernel; a part of which the header has changed by then was overwritten, and is not sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import logging
import os
import secrets
import socket
import threading

from spotrun.launcher.snapshots import Snapshots
from spotrun.launcher.vitals import memory
from spotrun.rendezvous.liveness import listen
from spotrun.segment import PAGE, RESERVE, Header, read_header

logger = logging.getLogger("spotrun")

TIMEOUT_S = 10.0  # for each piece that goes either way
REQUEST_BYTES = 4096
MAX_COPY = 1 << 30  # in one call


class SnapshotServer:
    """One thread, which serves one node after the other."""

    def __init__(self, address: str, snapshots: Snapshots, nproc: int) -> None:
        """`nproc`: how many workers' parts make up what a node has."""
        self.key = secrets.token_hex(16)
        self._snapshots = snapshots
        self._nproc = nproc
        self._listener = listen(address)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, name="spotrun-snapshots", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                try:
                    self._serve(sock)
                except (
                    OSError,
                    ValueError,
                    LookupError,
                    TypeError,
                    RecursionError,
                ) as error:  # a stranger's words, too
                    logger.debug("a snapshot was not sent: %s", error)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT_S)
        with sock.makefile("rb") as lines:
            request = json.loads(lines.readline(REQUEST_BYTES))
        if not hmac.compare_digest(str(request["key"]).encode(), self.key.encode()):
            return
        parts = self._copies((int(request["round"]), int(request["step"])))
        try:
            told = [[local_rank, *dataclasses.astuple(header)] for local_rank, header, _ in parts]
            sock.sendall(json.dumps({"parts": told}).encode() + b"\n")
            for _, header, fd in parts:
                with open(fd, "rb", closefd=False) as file:
                    sock.sendfile(file, PAGE, header.used_bytes - PAGE)
        finally:
            for _, _, fd in parts:
                os.close(fd)

    def _copies(self, newer_than: tuple[int, int]) -> list[tuple[int, Header, int]]:
        """Copies of this node's newest parts, by local rank; none where there is nothing newer, or no memory."""
        opened = self._snapshots.open("own")
        try:
            found: dict[tuple[int, int], dict[int, tuple[Header, int]]] = {}
            for name, fd in opened.items():
                header = _header(fd)
                if header is not None:
                    of_step = found.setdefault((header.round, header.step), {})
                    of_step[int(name.split(".")[0])] = header, fd
            whole = [at for at, parts in found.items() if len(parts) == self._nproc and at > newer_than]
            if not whole:
                return []
            parts = found[max(whole)]
            needed = sum(header.used_bytes for header, _ in parts.values())
            if needed > memory().free_bytes * (1 - RESERVE):
                logger.debug("no memory to copy %d bytes for a node that stands by", needed)
                return []
            made = []
            with contextlib.ExitStack() as copies:
                for local_rank, (header, fd) in sorted(parts.items()):
                    made.append((local_rank, header, _copy(fd, header.used_bytes)))
                    copies.callback(os.close, made[-1][2])
                if any(_header(fd) != header for header, fd in parts.values()):
                    return []
                copies.pop_all()  # the caller closes them
            return made
        finally:
            for fd in opened.values():
                os.close(fd)


def _header(fd: int) -> Header | None:
    start = os.pread(fd, PAGE, 0)
    return read_header(start, os.fstat(fd).st_size) if len(start) == PAGE else None


def _copy(fd: int, size_bytes: int) -> int:
    """A file in memory with the first bytes of that one."""
    copied = os.memfd_create("spotrun-copy", os.MFD_CLOEXEC)
    try:
        os.fchmod(copied, 0o600)
        at = 0
        while at < size_bytes:
            at += os.sendfile(copied, fd, at, min(size_bytes - at, MAX_COPY))
    except OSError:
        os.close(copied)
        raise
    return copied
