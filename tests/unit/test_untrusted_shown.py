"""Whatever lies in etcd can be shown by `spotrun status`, `events` and `report`, and does nothing to the terminal."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from spotrun.cli.events import line
from spotrun.cli.status_view import WIDTH, view
from spotrun.launcher.job_status import Found, latest, status_of
from spotrun.launcher.ledger import Entry, of_values
from spotrun.rendezvous.state import PROTOCOL, Drain, Job, Node, Outcome, Progress, Quarantine, Round, Vitals
from spotrun.report.history import of
from spotrun.report.page import Prices, page
from tests.unit.untrusted import of_type, read

RECORDS = (Job, Round, Outcome, Node, Drain, Progress, Vitals, Quarantine)
NOTHING = Found("llm", None, (), None, None, {}, {}, {}, (), (), None, 1)
SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=200)


def harmless(text: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in text), ascii(text)
    text.encode()


def told(bodies: list[Any]) -> list[Entry]:
    return of_values(json.dumps({**body, "v": PROTOCOL}).encode() for body in bodies)


def shown(found: Found) -> str:
    out = io.StringIO()
    Console(width=WIDTH, highlight=False, file=out).print(view(status_of(found, 1e9)))
    return out.getvalue()


@given(st.fixed_dictionaries({kind: of_type(kind) for kind in RECORDS}), st.lists(of_type(Entry), max_size=3))
@SLOW
def test_a_job_of_any_records_has_a_status(bodies: dict[Any, Any], entries: list[Any]) -> None:
    job, current, outcome, node, drain, progress, vitals, quarantine = (read(kind, bodies[kind]) for kind in RECORDS)
    name = node.node_id if node is not None else "a"
    found = dataclasses.replace(
        NOTHING,
        job=job,
        nodes=(node,) if node is not None else (),
        round=current,
        outcome=outcome,
        drains={name: drain} if drain is not None else {},
        progress={name: progress} if progress is not None else {},
        vitals={name: vitals} if vitals is not None else {},
        quarantine=(quarantine,) if quarantine is not None else (),
        ledger=tuple(told(entries)),
    )
    harmless(shown(found))
    harmless(status_of(found, 1e9).to_json())
    assert all(isinstance(entry, Entry) for entry in latest(found, 1e9))


def test_a_label_is_text_and_no_markup() -> None:
    node = Node("a", "a1", "10.0.0.1", 1, 2, 1, labels={"zone": "[/b]"})
    assert "[/b]" in shown(dataclasses.replace(NOTHING, nodes=(node,)))


ENTRY = {"id": "1", "what": "incident", "node": "a", "wall_s": 1.0}


@given(st.lists(of_type(Entry), min_size=1, max_size=4))
@example([{**ENTRY, "wall_s": float("inf")}])
@example([{**ENTRY, "node": "\x1b[2J", "message": "\ud800"}])
@SLOW
def test_any_ledger_can_be_told_and_reported(bodies: list[Any]) -> None:
    entries = told(bodies)
    for entry in entries:
        harmless(line(entry))
    if entries:
        text = page("llm", of(entries), Prices(None, None))
        text.encode()
        assert "<script" not in text and "\x1b" not in text
