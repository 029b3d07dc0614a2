"""Azure: Scheduled Events, which also carry spot evictions.

As in "Azure Metadata Service: Scheduled Events for Linux VMs". Events of a whole scale set reach each of its VMs, so
only those that name this VM count. Azure waits for an approval or for NotBefore; the approval is given once the state
is safe, and only for an event that is about this VM alone: it lets the event go ahead for all VMs that the event
names.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spotrun import events
from spotrun.launcher.notices.deadlines import MAINTENANCE_NEAR_S, seconds_until
from spotrun.launcher.notices.fetch import Answer, Limits, Unanswered, fetch
from spotrun.launcher.notices.machine import SYS_VENDOR
from spotrun.launcher.notices.metadata import MetadataSource, Pace, Where, named, parsed, present, text_of
from spotrun.launcher.notices.notice import Grade, Notice, Publish, bounded
from spotrun.launcher.notices.polling import Question, Sighting, Standing, poll

DOCUMENT = "/metadata/scheduledevents?api-version=2020-07-01"
VM_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
LOCATION = "/metadata/instance/compute/location?api-version=2021-02-01&format=text"
ZONE = "/metadata/instance/compute/zone?api-version=2021-02-01&format=text"
HEADERS = {"Metadata": "true"}
POLL_S = 1.0  # what Azure recommends: a spot VM may have no more than 30 s
PREEMPT_S = 30.0  # the least notice of a Preempt
FIRST_S = 120.0  # the first request switches the service on, and its answer may take two minutes
NAME = re.compile(r"[\w.-]{1,100}")
KINDS = {"Preempt": "preempt", "Terminate": "preempt", "Reboot": "maintenance", "Redeploy": "maintenance",
         "Freeze": "maintenance"}  # fmt: skip


class AzureSource(MetadataSource):
    name = "azure"
    url_env = "SPOTRUN_AZURE_METADATA_URL"
    default_url = "http://169.254.169.254"

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        pace: Pace | None = None,
        sys_vendor: Path = SYS_VENDOR,
        first_s: float = FIRST_S,
    ) -> None:
        super().__init__(environ, pace, sys_vendor)
        self._first_s = first_s
        self._vm = ""
        self._answered = False
        self._alone: frozenset[str] = frozenset()  # the events that name no other VM

    def run(self, publish: Publish, stop: threading.Event) -> None:
        limits = self._limits(stop)
        every_s = min(POLL_S, self._pace.poll_s)
        question = Question("the scheduled events", every_s, lambda: self._ask(limits), Standing(self.name, PREEMPT_S))
        poll([question], publish, stop, self._pace.backoff_max_s)

    def safe_to_go(self, notice: Notice) -> None:
        """Approve the event, so that Azure need not wait any longer."""
        if notice.id not in self._alone or notice.grade is not Grade.WILL:
            return
        body = json.dumps({"StartRequests": [{"EventId": notice.id}]}).encode()
        try:
            limits = Limits(timeout_s=self._pace.timeout_s)
            answer = fetch(self._url + DOCUMENT, limits, method="POST", headers=HEADERS, body=body)
            if answer.status != 200:
                raise Unanswered(f"status {answer.status}")
        except Unanswered as error:  # Azure goes ahead at NotBefore by itself
            events.emit("notice_not_approved", level=logging.WARNING, source=self.name, error=bounded(str(error)))

    def _answers(self, limits: Limits) -> bool:
        return present(fetch(self._url + VM_NAME, limits, headers=HEADERS), VM_NAME)

    def where(self) -> Where:
        limits = Limits(self._pace.timeout_s)
        region, zone = (named(fetch(self._url + path, limits, headers=HEADERS), path) for path in (LOCATION, ZONE))
        return Where(region, f"{region}-{zone}" if zone else "")

    def _ask(self, limits: Limits) -> Sequence[Sighting]:
        if not self._vm:
            name = fetch(self._url + VM_NAME, limits, headers=HEADERS)
            if not present(name, VM_NAME) or not NAME.fullmatch(name.text):  # without it, no event is known to be ours
                raise Unanswered(f"{VM_NAME}: not the name of a VM: {name.text[:60]!r}")
            self._vm = name.text
        if not self._answered:
            limits = Limits(max(self._first_s, limits.timeout_s), limits.limit_bytes, limits.stop)
        answer = fetch(self._url + DOCUMENT, limits, headers=HEADERS)
        if answer.status != 200:
            raise Unanswered(f"{DOCUMENT}: status {answer.status}")
        ours = events_of(self._vm, answer)
        self._answered = True
        self._alone = frozenset(event["EventId"] for event in ours if len(event["Resources"]) == 1)
        return [sighting for event in ours if (sighting := seen(event, answer)) is not None]


def events_of(vm: str, answer: Answer) -> list[dict[str, Any]]:
    """The events in an answer that name the VM `vm`. Raises Unanswered."""
    listed = parsed(answer, dict, DOCUMENT).get("Events")
    if not isinstance(listed, list):
        raise Unanswered(f"{DOCUMENT}: no Events in it")
    ours = []
    for event in listed:
        text_of(event, "EventId", DOCUMENT)
        named = event.get("Resources")
        if not isinstance(named, list):
            raise Unanswered(f"{DOCUMENT}: an event without Resources")
        if vm.lower() in {str(resource).lower() for resource in named}:  # names of Azure have no case
            ours.append(event)
    return ours


def seen(event: dict[str, Any], answer: Answer) -> Sighting | None:
    """What an event means for the VM that it names; None for one without an effect."""
    what, status = text_of(event, "EventType", DOCUMENT), text_of(event, "EventStatus", DOCUMENT)
    if event.get("DurationInSeconds") == 0:
        return None
    moment = event.get("NotBefore") or ""
    # NotBefore is blank once the event has started, and a failed host goes there at once.
    left_s = 0.0 if status == "Started" or not moment else seconds_until(str(moment), answer)
    kind = KINDS.get(what, "maintenance")
    # Frozen, a VM stands still for seconds and loses nothing; a planned event far off is no reason to leave yet.
    near = kind == "preempt" or left_s <= MAINTENANCE_NEAR_S
    grade = Grade.WILL if near and what != "Freeze" else Grade.MAY
    about = f"{what} {status}, not before {moment or 'now'}: {event.get('Description') or ''}"
    return Sighting(kind, grade, event["EventId"], left_s, about)
