"""What happened, as records: one event, one record, the same for people and machines.

A process gets its sinks by `to_file` and `to_listener`; every part then calls `emit`. The JSONL form is one object a
line:
{"v": 1, "kind": "round_formed", "wall_s": 1700000000.0, "mono_s": 12.3, "node": "a", "round": 3, ...detail fields}.
`mono_s` is the host's monotonic clock (seconds), to subtract times of one host; wall clocks of two hosts are never
compared.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger("spotrun")

_lock = threading.Lock()
_files: dict[Path, int] = {}
_listeners: list[Callable[[dict[str, Any]], None]] = []
_common: dict[str, Any] = {}


def to_file(path: Path, **common: Any) -> None:
    """Also append every later event of this process to `path`, with the fields `common` in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock:
        if path not in _files:
            _files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _common.update(common)


@contextmanager
def to_listener(listener: Callable[[dict[str, Any]], None], **common: Any) -> Iterator[None]:
    """Meanwhile also tell `listener` of every event, in the thread that emits it, with the fields `common` in each."""
    with _lock:
        _listeners.append(listener)
        _common.update(common)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)


def emit(kind: str, message: str = "", *, level: int = logging.INFO, **fields: Any) -> None:
    """Record one event; `message` is the line for people, and no line is logged without one. Never raises."""
    with _lock:
        record = {"v": 1, "kind": kind, "wall_s": time.time(), "mono_s": time.monotonic(), **_common, **fields}
        if message:
            record["message"] = message
        listeners = list(_listeners)
        if _files:
            _append((json.dumps(record, default=plain) + "\n").encode())
    if message:
        logger.log(level, message, extra={"event": record})
    for listener in listeners:
        listener(record)


def _append(line: bytes) -> None:
    for path, fd in list(_files.items()):
        try:
            os.write(fd, line)  # one write: lines of several processes do not mix
        except OSError as error:  # a full disk must not stop the job
            logger.warning("events are no longer written to %s: %s", path, error)
            os.close(fd)
            del _files[path]


def plain(value: Any) -> Any:
    """The JSON form of what json does not know: records as objects, all else as text."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole events in a JSONL file; a last line that is still being written is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
