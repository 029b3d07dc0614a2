"""One record for everything that happened, and what of it every node may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotrun.errors import BadRecord
from spotrun.launcher.ledger import Cost, Entry, Phase, entries, entry_of, of_file
from spotrun.rendezvous.etcd import KeyValue
from spotrun.rendezvous.state import decode, encode

INCIDENT = Entry(
    "a1-7",
    "incident",
    "a",
    1_700_000_000.5,
    round=3,
    step=120,
    message="c lost",
    phases=(Phase("lost", 0.02), Phase("first step", 0.3)),
    cost=Cost(0.32, 2, 40, 1.5, None),
    detail={"cause": "lost"},
)


def kv(entry: Entry, revision: int = 1) -> KeyValue:
    return KeyValue("k", encode(entry), revision, revision, 1, 0)


def test_an_entry_comes_back_as_it_was() -> None:
    assert decode(Entry, encode(INCIDENT)) == INCIDENT


def test_an_entry_of_another_version_is_refused() -> None:
    with pytest.raises(BadRecord):
        decode(Entry, encode(INCIDENT).replace(b'"v":1', b'"v":9'))


def test_an_event_becomes_an_entry_with_its_own_fields_as_text() -> None:
    event = {
        "v": 1,
        "kind": "round_formed",
        "node": "a",
        "wall_s": 5.0,
        "mono_s": 1.0,
        "round": 2,
        "message": "x" * 5000,
        "nodes": ["a", "b"],
        "world_size": 4,
    }
    entry = entry_of(event, "i-1")
    assert (entry.what, entry.node, entry.round, entry.wall_s) == ("round_formed", "a", 2, 5.0)
    assert entry.detail == {"nodes": "a,b", "world_size": "4"}
    assert decode(Entry, encode(entry)) == entry, "however long its message is"


def test_an_entry_that_was_written_twice_is_one_and_what_is_none_is_left_out() -> None:
    other = entry_of({"kind": "left", "wall_s": 1.0}, "b1-1")
    broken = KeyValue("k", b"{", 1, 1, 1, 0)
    assert entries([kv(INCIDENT), broken, kv(other), kv(INCIDENT, 3)]) == [INCIDENT, other]


def test_a_file_whose_last_line_is_being_written_gives_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "job-a.ledger.jsonl"
    path.write_bytes(encode(INCIDENT) + b"\n" + encode(INCIDENT)[:20])
    assert of_file(path) == [INCIDENT]
