"""The agent's log: one record an event, for people or for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from spotrun import events
from spotrun.cli.logs import CLEAR, Handler, JsonFormatter

logger = logging.getLogger("spotrun")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    before = logger.level
    logger.setLevel(logging.INFO)  # and not the attribute alone: what is enabled is kept in a cache
    yield io.StringIO()
    logger.setLevel(before)


def log_to(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, formatter: logging.Formatter, in_place: bool) -> None:
    handler = Handler(stream, in_place=in_place)
    handler.setFormatter(formatter)
    monkeypatch.setattr(logger, "handlers", [handler])


def test_an_event_is_one_object_with_its_fields(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    log_to(monkeypatch, stream, JsonFormatter(), in_place=False)
    events.emit("left", "this node left", level=logging.WARNING, round=3, source="aws")
    events.emit("workers_started", pids=[1])
    logger.info("a plain record")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["kind"], first["round"], first["source"], first["level"]) == ("left", 3, "aws", "WARNING")
    assert first["message"] == "this node left"
    assert second["message"] == "a plain record"


def test_what_is_below_the_level_is_not_logged(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    log_to(monkeypatch, stream, JsonFormatter(), in_place=False)
    events.emit("incident", "for rank 0 alone", level=logging.DEBUG)
    assert stream.getvalue() == ""


def test_progress_is_written_over_and_stays_below_what_is_logged(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    log_to(monkeypatch, stream, logging.Formatter("spotrun: %(message)s"), in_place=True)
    events.emit("progress", "step 1")
    events.emit("progress", "step 2")
    events.emit("notice", "this node goes")
    events.emit("left", "left")
    shown = f"{CLEAR}spotrun: step 1{CLEAR}spotrun: step 2{CLEAR}spotrun: this node goes\nspotrun: step 2"
    shown += f"{CLEAR}spotrun: left\n"
    assert stream.getvalue() == shown
