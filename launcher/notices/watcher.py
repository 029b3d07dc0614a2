"""All notices of this machine, each once: what the agent uses.

Each source has a thread, which first looks whether the machine has that source at all, so that starting takes no time:
an address that swallows packets delays nobody. A source that fails ends alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from spotrun import events
from spotrun.launcher.notices.notice import Notice, Publish, Source, bounded
from spotrun.launcher.notices.registry import Found, parse_notice, sources_of

STOP_S = 2.0  # the longest step of a source that does not look at `stop` is a connect, of a second


class NoticeWatcher:
    """`publish` is called from the threads of the sources, one call at a time."""

    def __init__(self, names: str | Sequence[str], publish: Publish, *, sources: Sequence[Found] | None = None) -> None:
        """`names` is the value of --notice, or its parts. Raises UsageError."""
        parsed = parse_notice(names if isinstance(names, str) else ",".join(names))
        self._found = list(sources_of(parsed) if sources is None else sources)
        self._publish = publish
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self._last: dict[tuple[str, str], Notice] = {}
        self._running: list[str] = []
        self._undecided = len(self._found)
        self._decided = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Look for the sources and listen to those that are there; returns at once."""
        if not self._found:
            self._decided.set()
        for found in self._found:
            name = f"spotrun-notice-{found.source.name}"
            self._threads.append(threading.Thread(target=self._watch, args=(found,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Nothing is published after this; a source that hangs is left behind as a daemon thread."""
        with self._lock:
            self._stop.set()
        end_s = time.monotonic() + STOP_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end_s - time.monotonic()))

    def running(self, timeout_s: float = 0.0) -> tuple[str, ...]:
        """The names of the sources that were found, once all have been looked for or after `timeout_s`."""
        self._decided.wait(timeout_s)
        with self._lock:
            return tuple(self._running)

    def hear(self, notice: Notice) -> None:
        """Pass on a notice unless it was heard before. Those that are no source, such as signals, come in here, too."""
        with self._lock:
            key = (notice.source, notice.id)
            last = self._last.get(key)
            if self._stop.is_set() or (notice.repeats(last) if last is not None else notice.withdrawn):
                return
            self._last[key] = notice
            events.emit(
                "notice_heard", source=notice.source, notice_kind=notice.kind, grade=notice.grade.name, id=notice.id,
                seconds_left=notice.seconds_left, withdrawn=notice.withdrawn, detail=notice.detail,
            )  # fmt: skip
            self._publish(notice)

    def safe_to_go(self, notice: Notice) -> None:
        """The state is safe: tell the source of the notice. Takes at most 2 s."""
        for found in self._found:
            if found.source.name == notice.source and not notice.withdrawn:
                try:
                    found.source.safe_to_go(notice)
                except Exception as error:  # noqa: BLE001  (a source of a third party must not keep us from leaving)
                    self._broken(found.source, error)

    def _watch(self, found: Found) -> None:
        decided = False
        try:
            there = not found.must_detect or found.source.detect()
            self._decide(found.source, there)
            decided = True
            if there and not self._stop.is_set():
                found.source.run(self.hear, self._stop)
        except Exception as error:  # noqa: BLE001  (an agent does not die of what it watches)
            self._broken(found.source, error)
            if not decided:
                self._decide(found.source, False)

    def _decide(self, source: Source, there: bool) -> None:
        with self._lock:
            if there:
                self._running.append(source.name)
            self._undecided -= 1
            if not self._undecided:
                events.emit("notice_sources", sources=list(self._running))
                self._decided.set()

    def _broken(self, source: Source, error: Exception) -> None:
        text = f"Notices from {source.name} are off: {type(error).__name__}: {bounded(str(error))}"
        events.emit("notice_source_broken", text, level=logging.ERROR, source=source.name, error=repr(error)[:200])
