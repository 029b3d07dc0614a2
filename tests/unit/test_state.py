"""What comes out of etcd may have been written by anyone."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotrun.errors import BadRecord, UsageError
from spotrun.rendezvous.keys import check_node_id, check_run_id
from spotrun.rendezvous.state import Drain, Failure, Job, Member, Node, Outcome, Progress, Report, Round, decode, encode

FAILURE = Failure(3, -9, "killed", "10.0.0.1", True, "/tmp/e.json")
RECORDS: list[Any] = [
    Job(1, 8, 3),
    Node("a", "1f", "10.0.0.1", 1, 2, 8, 4, {"zone": "eu-1a"}),
    Round(7, (Member("a", "1f", 8), Member("b", "2f", 4)), "h", 1, "lost", "c lost", 1, "1f"),
    Report("a", "1f", 7, "failed", (FAILURE,)),
    Drain("a", 12.5, "aws", "spot"),
    Progress("a", "1f", 7, (12, 13), 3328, 0.5, 2.25, 12, 10),
    Progress("a", "1f", 7, (0,), 0, 0.0, None, 0, 0, busy=True),
    Outcome("failed", "rank 3", "a", (FAILURE,)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_went(record: Any) -> None:
    assert decode(type(record), encode(record)) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_newer_peer_may_add_fields_but_another_protocol_is_named(record: Any) -> None:
    data = json.loads(encode(record))
    assert decode(type(record), json.dumps({**data, "later": 1}).encode()) == record
    with pytest.raises(BadRecord, match="protocol version 2, this spotrun speaks 1"):
        decode(type(record), json.dumps({**data, "v": 2}).encode())


@given(st.sampled_from(RECORDS), st.data())
def test_a_wrong_type_anywhere_is_refused_or_read_never_a_crash(record: Any, data: st.DataObject) -> None:
    fields = json.loads(encode(record))
    name = data.draw(st.sampled_from(sorted(fields)))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    fields[name] = data.draw(st.recursive(scalars, lambda s: st.lists(s) | st.dictionaries(st.text(), s), max_leaves=5))
    with contextlib.suppress(BadRecord):
        assert isinstance(decode(type(record), json.dumps(fields).encode()), type(record))


@given(st.binary(max_size=200))
def test_garbage_is_refused(value: bytes) -> None:
    with pytest.raises(BadRecord):
        decode(Node, value)


def test_a_huge_or_deep_value_is_refused() -> None:
    with pytest.raises(BadRecord, match="larger"):
        decode(Node, b" " * (2 << 20))
    with pytest.raises(BadRecord):
        decode(Node, b"[" * 100_000)


@pytest.mark.parametrize("name", ["a/b", "", "a b", "a\n", "x" * 201])
def test_a_run_id_that_would_break_a_key_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="run id"):
        check_run_id(name)


@pytest.mark.parametrize("name", ["../a", "a/b", "", "-a", "ä", "a" * 129])
def test_a_node_id_that_would_break_a_key_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="node id"):
        check_node_id(name)
