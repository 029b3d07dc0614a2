"""What the sources that ask a server share: what stands, what is new, and a loop that outlives the server.

A question is asked at its pace. Its answer is the whole truth at that time: a notice that was in the last answers and
is in none now was withdrawn. No answer is no truth: what stood still stands.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spotrun import events
from spotrun.launcher.notices.fetch import Unanswered
from spotrun.launcher.notices.notice import Grade, Notice, Publish, bounded

WITHDRAWN_AFTER = 2  # answers without it: one empty answer of a server that is starting up must not undo a drain
TOLD_AFTER = 3  # failures in a row before people hear of it: one lost packet is no news


@dataclass(frozen=True, slots=True)
class Sighting:
    """A notice as one answer shows it."""

    kind: str
    grade: Grade
    id: str
    seconds_left: float | None  # None: the provider does not say; the default counts from the first sighting
    detail: str = ""


@dataclass(slots=True)
class Standing:
    """The notices of one question that stand, so that each is published once, and once more when it is withdrawn."""

    source: str
    default_s: float  # seconds left where the provider does not say
    withdrawn_after: int = WITHDRAWN_AFTER
    _notices: dict[str, Notice] = field(default_factory=dict)
    _missed: dict[str, int] = field(default_factory=dict)

    def update(self, sightings: Sequence[Sighting], now_s: float) -> list[Notice]:
        """What is news after an answer with these sightings."""
        news = []
        for seen in sightings:
            before = self._notices.get(seen.id)
            if seen.seconds_left is not None:
                left_s = max(0.0, seen.seconds_left)
            else:
                left_s = self.default_s if before is None else max(0.0, before.deadline_s - now_s)
            notice = Notice(self.source, seen.kind, seen.grade, left_s, now_s, seen.id, detail=bounded(seen.detail))
            self._missed.pop(seen.id, None)
            if before is None or not notice.repeats(before):
                self._notices[seen.id] = notice
                news.append(notice)
        for gone in self._notices.keys() - {seen.id for seen in sightings}:
            self._missed[gone] = self._missed.get(gone, 0) + 1
            if self._missed[gone] >= self.withdrawn_after:
                del self._missed[gone]
                last = self._notices.pop(gone)
                news.append(
                    Notice(
                        self.source, last.kind, last.grade, max(0.0, last.deadline_s - now_s), now_s, gone,
                        withdrawn=True, detail=last.detail,
                    )
                )  # fmt: skip
        return news


@dataclass(slots=True)
class Question:
    """One thing that is asked again and again."""

    what: str  # for people
    every_s: float
    ask: Callable[[], Sequence[Sighting]]  # raises Unanswered
    standing: Standing
    due_s: float = 0.0
    failures: int = 0


def poll(questions: Sequence[Question], publish: Publish, stop: threading.Event, backoff_max_s: float) -> None:
    """Ask until `stop` is set. A question that fails is asked again later and later, up to `backoff_max_s`."""
    while not stop.is_set():
        for question in questions:
            if question.due_s <= time.monotonic() and not stop.is_set():
                _ask(question, publish, stop, backoff_max_s)
        stop.wait(max(0.0, min(question.due_s for question in questions) - time.monotonic()))


def _ask(question: Question, publish: Publish, stop: threading.Event, backoff_max_s: float) -> None:
    source = question.standing.source
    try:
        sightings = question.ask()
    except Unanswered as error:
        if stop.is_set():
            return
        question.failures += 1
        most_s = max(backoff_max_s, question.every_s)
        question.due_s = time.monotonic() + min(question.every_s * 2.0 ** min(question.failures, 16), most_s)
        if question.failures == TOLD_AFTER:
            text = f"Notices from {source}: {question.what} gives no answer; it is asked again every {most_s:g} s."
            events.emit("notice_source_failing", text, level=logging.WARNING, source=source, error=bounded(str(error)))
        return
    if question.failures >= TOLD_AFTER:
        events.emit("notice_source_back", f"Notices from {source}: {question.what} answers again.", source=source)
    question.failures = 0
    question.due_s = time.monotonic() + question.every_s
    for notice in question.standing.update(sightings, time.monotonic()):
        publish(notice)
