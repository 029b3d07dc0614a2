"""Where the notices of all sources arrive for the agent's loop."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from spotrun.launcher.notices.notice import Notice
from spotrun.launcher.notices.watcher import NoticeWatcher
from spotrun.launcher.wakeup import Wakeup


class NoticeBoard:
    """`take` on the loop's thread, after a wake-up; everything else on any."""

    def __init__(self, names: Sequence[str], wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._heard: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._watcher = NoticeWatcher(names, self._publish)

    def start(self) -> None:
        self._watcher.start()

    def stop(self) -> None:
        self._watcher.stop()

    def hear(self, notice: Notice) -> None:
        """A notice that no source brings: a signal."""
        self._watcher.hear(notice)

    def take(self) -> list[Notice]:
        """The notices since the last call."""
        heard = []
        while not self._heard.empty():
            heard.append(self._heard.get())
        return heard

    def safe_to_go(self, notice: Notice) -> None:
        """The state of this node is safe."""
        self._watcher.safe_to_go(notice)

    def _publish(self, notice: Notice) -> None:
        self._heard.put(notice)
        self._wakeup.wake()
