"""What a node hears about its own future, and what a source of such news must offer."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

DETAIL_CHARS = 200  # what a provider said is kept for people, and no more of it than they read


class Grade(enum.Enum):
    """How sure it is. MAY: save at the next step and stay. WILL: drain."""

    MAY = "may be reclaimed"
    WILL = "will be reclaimed"


@dataclass(frozen=True, slots=True)
class Notice:
    """One piece of news. `seconds_left` counts from `heard_s`, on this host's monotonic clock."""

    source: str  # "aws", "gcp", ...
    kind: str  # preempt, rebalance, maintenance, signal, health or manual
    grade: Grade
    seconds_left: float  # never below 0
    heard_s: float
    id: str  # the same id is the same notice, heard again or withdrawn
    withdrawn: bool = False
    detail: str = ""

    @property
    def deadline_s(self) -> float:
        """When this node goes, on its monotonic clock."""
        return self.heard_s + self.seconds_left

    def repeats(self, earlier: Notice) -> bool:
        """Whether it says nothing that `earlier`, of the same id, did not say.

        The same deadline, or the same number of seconds left (a source that does not know the deadline repeats its
        default), within a second, as the clocks of providers go; or no time left after a deadline that has passed.
        """
        if self.withdrawn or earlier.withdrawn:
            return self.withdrawn == earlier.withdrawn
        return self.grade is earlier.grade and (
            abs(self.deadline_s - earlier.deadline_s) <= 1.0
            or abs(self.seconds_left - earlier.seconds_left) <= 1.0
            or (self.seconds_left == 0.0 and earlier.deadline_s <= self.heard_s)
        )


Publish = Callable[[Notice], None]


class Source(Protocol):
    """One place where notices come from. Third parties add theirs by an entry point of the group `spotrun.notices`.

    The entry point is a callable that gets the text after the colon in `--notice=name:text` (or "") and returns one.
    """

    @property
    def name(self) -> str: ...

    def detect(self) -> bool:
        """Whether this machine has it. Takes at most a second and never raises."""
        ...

    def run(self, publish: Publish, stop: threading.Event) -> None:
        """Publish what is heard until `stop` is set. Outlives whatever it asks: nothing is raised out of it."""
        ...

    def safe_to_go(self, notice: Notice) -> None:
        """The state of this node is safe: tell whoever waits for that. Takes at most 2 s and never raises."""
        ...


def bounded(text: str | bytes) -> str:
    """What somebody else said, fit for a log: printable, and short."""
    if isinstance(text, bytes):
        text = text[: 4 * DETAIL_CHARS].decode("utf-8", "replace")
    text = "".join(char if char.isprintable() else " " for char in text[:DETAIL_CHARS])
    return " ".join(text.split())
