"""The sources of notices at work, and what they are tested with: used by all tests of notices."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spotrun.launcher.notices.alibaba import AlibabaSource
from spotrun.launcher.notices.aws import AwsSource
from spotrun.launcher.notices.azure import AzureSource
from spotrun.launcher.notices.gcp import GcpSource
from spotrun.launcher.notices.metadata import MetadataSource, Pace
from spotrun.launcher.notices.notice import Notice, Source
from tests.fakes.clouds import AlibabaServer, AwsServer, AzureServer, GcpServer
from tests.fakes.metadata import MetadataServer
from tests.waiting import DEADLINE_S

# Quick, but with a time-out that a busy machine meets: only the tests of a server that hangs wait for it.
QUICK = Pace(poll_s=0.02, timeout_s=2.0, backoff_max_s=0.05, planned_poll_s=0.02, long_poll_s=1.0)
HASTY = Pace(poll_s=0.02, timeout_s=0.3, backoff_max_s=0.05, planned_poll_s=0.02, long_poll_s=1.0)
NOWHERE = Path("/nonexistent")  # a firmware that says nothing


class Heard:
    """What a source has published, for tests to wait on."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self._changed = threading.Condition()

    def __call__(self, notice: Notice) -> None:
        with self._changed:
            self.notices.append(notice)
            self._changed.notify_all()

    def wait(self, count: int) -> list[Notice]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.notices) >= count, DEADLINE_S), self.notices
            return list(self.notices)


@contextlib.contextmanager
def running(source: Source) -> Iterator[Heard]:
    """A source at work; it must end soon after it is told to."""
    heard, stop = Heard(), threading.Event()
    thread = threading.Thread(target=source.run, args=(heard, stop))
    thread.start()
    try:
        yield heard
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@dataclass
class Cloud:
    """One provider: its server, its source, and how it gives and takes back the notice of a preemption."""

    server: MetadataServer
    make: Callable[[dict[str, str], Pace], MetadataSource]
    url_env: str
    give: Callable[[], None]
    withdraw: Callable[[], None]
    lead_s: float  # that `give` gives
    path: str  # where the notice is

    def source(self, pace: Pace = QUICK, url: str = "") -> MetadataSource:
        return self.make({self.url_env: url or self.server.url}, pace)


def aws() -> Cloud:
    server = AwsServer()
    return Cloud(
        server, lambda environ, pace: AwsSource(environ, pace, NOWHERE), AwsSource.url_env,
        lambda: server.spot(100.0), server.withdraw_spot, 100.0, "spot/instance-action",
    )  # fmt: skip


def alibaba() -> Cloud:
    server = AlibabaServer()
    return Cloud(
        server, lambda environ, pace: AlibabaSource(environ, pace, NOWHERE), AlibabaSource.url_env,
        lambda: server.spot(100.0), server.withdraw_spot, 100.0, "termination-time",
    )  # fmt: skip


def gcp() -> Cloud:
    server = GcpServer()
    return Cloud(
        server, lambda environ, pace: GcpSource(environ, pace, NOWHERE, has_gpu=True), GcpSource.url_env,
        lambda: server.change(preempted="TRUE"), lambda: server.change(preempted="FALSE"), 30.0, "preempted"
    )  # fmt: skip


def azure() -> Cloud:
    server = AzureServer()
    return Cloud(
        server, lambda environ, pace: AzureSource(environ, pace, NOWHERE, first_s=pace.timeout_s), AzureSource.url_env,
        lambda: server.event("Preempt", 100.0), server.clear, 100.0, "scheduledevents",
    )  # fmt: skip


def about(seconds: float) -> object:
    """Of a clock with seconds, on a busy machine."""
    return pytest.approx(seconds, abs=5.0)
