"""Google Cloud: preemption and host maintenance, by long polls: the server holds a request until the value changes.

As in "Query metadata server for maintenance event notices" and "Spot VMs" of the Compute Engine documentation, and in
Google's guest agent (`wait_for_change`, `last_etag`, `timeout_sec`). A preempted VM gets up to 30 s by best effort;
where the instance was made with a longer --preemption-notice-duration, say so in SPOTRUN_GCP_NOTICE_S, as the
metadata does not. Maintenance is announced an hour ahead to VMs with GPUs, which cannot migrate, and a minute ahead
to others.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from spotrun.launcher.notices.deadlines import MAINTENANCE_NEAR_S
from spotrun.launcher.notices.fetch import Answer, Limits, Unanswered, fetch
from spotrun.launcher.notices.machine import SYS_VENDOR
from spotrun.launcher.notices.metadata import MetadataSource, Pace, Where, named
from spotrun.launcher.notices.notice import Grade, Publish
from spotrun.launcher.notices.polling import Question, Sighting, Standing, poll
from spotrun.launcher.notices.signals import seconds_in

NOTICE_S = 30.0
NOTICE_ENV = "SPOTRUN_GCP_NOTICE_S"
MAINTENANCE_GPU_S, MAINTENANCE_S = 3600.0, 60.0
PAUSE_S = 0.2  # between two long polls, should a server not hold them; the etag sees to it that nothing is missed
ZONE = "/computeMetadata/v1/instance/zone"
HEADERS = {"Metadata-Flavor": "Google"}
GPU = Path("/dev/nvidiactl")


class LongPoll:
    """The values of one key, each as soon as it is there."""

    def __init__(self, url: str, limits: Limits, hold_s: float) -> None:
        self._url = url
        self._limits = Limits(hold_s + limits.timeout_s, limits.limit_bytes, limits.stop)
        self._hold_s = hold_s
        self._etag = "0"

    def next(self) -> str:
        """The value after a change, or the same once more after `hold_s`. Raises Unanswered."""
        query = f"?wait_for_change=true&last_etag={self._etag}&timeout_sec={max(1, round(self._hold_s))}"
        try:
            answer = checked(fetch(self._url + query, self._limits, headers=HEADERS))
        except Unanswered:
            self._etag = "0"  # the next answer comes at once: a server that was away may have other etags
            raise
        etag = answer.headers.get("etag", "0")
        self._etag = etag if etag.isalnum() else "0"
        return answer.text


class GcpSource(MetadataSource):
    name = "gcp"
    url_env = "SPOTRUN_GCP_METADATA_URL"
    default_url = "http://169.254.169.254"  # metadata.google.internal, without a DNS that could hang

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        pace: Pace | None = None,
        sys_vendor: Path = SYS_VENDOR,
        has_gpu: bool | None = None,
    ) -> None:
        super().__init__(environ, pace, sys_vendor)
        self._notice_s = seconds_in(environ, NOTICE_ENV, NOTICE_S)
        self._maintenance_s = MAINTENANCE_GPU_S if (GPU.exists() if has_gpu is None else has_gpu) else MAINTENANCE_S
        self._maintenance_since_s: float | None = None

    def run(self, publish: Publish, stop: threading.Event) -> None:
        limits = self._limits(stop)
        instance = f"{self._url}/computeMetadata/v1/instance"
        preempted = LongPoll(f"{instance}/preempted", limits, self._pace.long_poll_s)
        maintained = LongPoll(f"{instance}/maintenance-event", limits, self._pace.long_poll_s)
        questions = [
            Question("preempted", PAUSE_S, lambda: preemption(preempted.next()), Standing(self.name, self._notice_s)),
            Question("maintenance-event", PAUSE_S, lambda: self._maintenance(maintained.next()),
                     Standing(self.name, self._maintenance_s)),
        ]  # fmt: skip
        threads = [  # one each: both requests hang
            threading.Thread(target=poll, args=([question], publish, stop, self._pace.backoff_max_s), daemon=True,
                             name=f"spotrun-notice-gcp-{question.what}")
            for question in questions
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _answers(self, limits: Limits) -> bool:
        answer = fetch(f"{self._url}/computeMetadata/v1/instance/id", limits, headers=HEADERS)
        return checked(answer).status == 200

    def where(self) -> Where:
        """From `projects/NUMBER/zones/ZONE`; a zone is its region and a letter."""
        answer = fetch(f"{self._url}{ZONE}", Limits(self._pace.timeout_s), headers=HEADERS)
        zone = dataclasses.replace(checked(answer), body=answer.body.rpartition(b"/")[2])
        return Where(named(zone, ZONE).rpartition("-")[0], named(zone, ZONE))

    def _maintenance(self, value: str) -> Sequence[Sighting]:
        now_s = time.monotonic()
        if value == "NONE":
            self._maintenance_since_s = None
            return ()
        if self._maintenance_since_s is None:
            self._maintenance_since_s = now_s
        return maintenance(value, self._maintenance_since_s + self._maintenance_s - now_s)


def checked(answer: Answer) -> Answer:
    """It is from Google's server, and holds a value."""
    if answer.headers.get("metadata-flavor") != "Google" or answer.status != 200:
        raise Unanswered(f"status {answer.status}, Metadata-Flavor {answer.headers.get('metadata-flavor')}")
    return answer


def preemption(value: str) -> Sequence[Sighting]:
    if value == "FALSE":
        return ()
    if value != "TRUE":
        raise Unanswered(f"preempted is neither TRUE nor FALSE: {value[:60]!r}")
    return (Sighting("preempt", Grade.WILL, "preempted", None, "preempted"),)


def maintenance(value: str, left_s: float) -> Sequence[Sighting]:
    if value == "MIGRATE_ON_HOST_MAINTENANCE":  # the VM stands still for seconds, and lives on
        return (Sighting("maintenance", Grade.MAY, "maintenance", max(0.0, left_s), value),)
    if value != "TERMINATE_ON_HOST_MAINTENANCE":
        raise Unanswered(f"unknown maintenance-event: {value[:60]!r}")
    grade = Grade.WILL if left_s <= MAINTENANCE_NEAR_S else Grade.MAY
    return (Sighting("maintenance", grade, "maintenance", max(0.0, left_s), value),)
