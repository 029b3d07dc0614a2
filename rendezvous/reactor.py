"""One thread that hands its parts their events in order and lets each take its next step.

A part never waits on another; what takes time is a request to etcd, and where etcd is away the step is tried again.
Production has one part a process; the scale benchmark has hundreds.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any, Protocol

from spotrun.errors import EtcdError

logger = logging.getLogger("spotrun")

RETRY_S = 0.5  # etcd is away: half of the shortest lease's slack, so that a lease outlives its return
STOP = object()


class Part(Protocol):
    def handle(self, event: Any) -> None:
        """Take in what happened; quick, and without requests."""

    def step(self, now_s: float) -> float | None:
        """Do what is to be done now; when to be called again without an event, in monotonic seconds.

        Raises EtcdError to be called again soon.
        """

    def broken(self, error: Exception) -> None:
        """The part failed in a way that it does not know; it gets no more steps."""


class Reactor:
    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Part, Any]] = queue.SimpleQueue()
        self._due: dict[Part, float] = {}
        self._away = False
        self._thread = threading.Thread(target=self._run, name="spotrun-rendezvous", daemon=True)
        self._thread.start()

    def post(self, part: Part, event: Any) -> None:
        """Give `part` an event, from any thread."""
        self._queue.put((part, event))

    def close(self) -> None:
        self._queue.put((STOP, None))  # type: ignore[arg-type]
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            touched: dict[Part, None] = {}
            due_s = min(self._due.values(), default=None)
            try:
                item = self._queue.get(timeout=None if due_s is None else max(0.0, due_s - time.monotonic()))
                while True:
                    part, event = item
                    if part is STOP:
                        return
                    if self._handle(part, event):
                        touched[part] = None
                    item = self._queue.get_nowait()
            except queue.Empty:
                pass
            now_s = time.monotonic()
            touched.update(dict.fromkeys(part for part, at_s in self._due.items() if at_s <= now_s))
            for part in touched:
                self._step(part)

    def _handle(self, part: Part, event: Any) -> bool:
        try:
            part.handle(event)
        except Exception as error:  # see _step
            logger.exception("the rendezvous broke down")
            part.broken(error)
            return False
        return True

    def _step(self, part: Part) -> None:
        self._due.pop(part, None)
        try:
            due_s = part.step(time.monotonic())
            if self._away:
                self._away = False
                logger.warning("etcd is back")
        except EtcdError as error:
            if not self._away:
                self._away = True
                logger.warning("%s Running workers go on; membership changes wait.", error)
            due_s = time.monotonic() + RETRY_S
        except Exception as error:  # the agent must hear of it: a silent thread would wait for ever
            logger.exception("the rendezvous broke down")
            part.broken(error)
            return
        if due_s is not None:
            self._due[part] = due_s
