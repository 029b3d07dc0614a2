"""What the sources of the four clouds share: where the metadata server is, how often it is asked, and detection."""

from __future__ import annotations

import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spotrun.launcher.notices.fetch import Answer, Limits, Unanswered
from spotrun.launcher.notices.machine import SYS_VENDOR, cloud_by_firmware
from spotrun.launcher.notices.notice import Notice, Publish

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DETECT_S = 0.45  # of one request; detection makes at most two of them in its second


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how patiently a server is asked."""

    poll_s: float = 2.0  # AWS asks for 5 s or less, its own node termination handler takes 2 s
    timeout_s: float = 2.0
    backoff_max_s: float = 5.0  # the shortest lead of the clouds is 30 s: most of it must be left after an outage
    planned_poll_s: float = 60.0  # of maintenance that is announced hours ahead
    long_poll_s: float = 10.0  # a server holds a request for so long; a connection that died unseen costs no more


@dataclass(frozen=True, slots=True)
class Where:
    """A machine's region and zone, as its cloud names them; "": not known."""

    region: str
    zone: str = ""


class MetadataSource(ABC):
    """The base of a source that asks a cloud's metadata server; a subclass says what to ask."""

    name: str
    url_env: str
    default_url: str

    def __init__(
        self, environ: Mapping[str, str] = os.environ, pace: Pace | None = None, sys_vendor: Path = SYS_VENDOR
    ) -> None:
        self._url_given = environ.get(self.url_env, "")
        self._url = (self._url_given or self.default_url).rstrip("/")
        self._pace = pace or Pace()
        self._sys_vendor = sys_vendor

    def detect(self) -> bool:
        """The firmware's word where it has one, else whether the server is there. An address that was given decides."""
        cloud = "" if self._url_given else cloud_by_firmware(self._sys_vendor)
        if cloud:
            return cloud == self.name
        try:
            return self._answers(Limits(timeout_s=min(DETECT_S, self._pace.timeout_s)))
        except Unanswered:
            return False

    @abstractmethod
    def run(self, publish: Publish, stop: threading.Event) -> None: ...

    def safe_to_go(self, notice: Notice) -> None:  # noqa: B027  (nobody waits for it, unless a subclass says so)
        pass

    @abstractmethod
    def where(self) -> Where:
        """Raises Unanswered."""

    @abstractmethod
    def _answers(self, limits: Limits) -> bool:
        """Whether the server is this cloud's. May raise Unanswered."""

    def _limits(self, stop: threading.Event) -> Limits:
        return Limits(timeout_s=self._pace.timeout_s, stop=stop)


def present(answer: Answer, what: str) -> bool:
    """Whether there is something: 404 means no. Raises Unanswered for every other status but 200."""
    if answer.status == 404:
        return False
    if answer.status != 200:
        raise Unanswered(f"{what}: status {answer.status}")
    return True


def named(answer: Answer, what: str) -> str:
    """The name of a place in an answer, "" where there is none. Raises Unanswered."""
    if not present(answer, what):
        return ""
    name = answer.text.strip()
    if not NAME.fullmatch(name):
        raise Unanswered(f"{what}: not the name of a place: {name[:60]!r}")
    return name


def parsed(answer: Answer, kind: type[Any], what: str) -> Any:
    """The JSON of an answer, which must be of the type `kind`. Raises Unanswered."""
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise Unanswered(f"{what}: not JSON: {answer.text[:60]!r}") from error
    if not isinstance(value, kind):
        raise Unanswered(f"{what}: not a JSON {kind.__name__}: {answer.text[:60]!r}")
    return value


def text_of(record: Any, name: str, what: str) -> str:
    """The string `name` of a JSON object. Raises Unanswered."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise Unanswered(f"{what}: no {name} in it")
    return value
