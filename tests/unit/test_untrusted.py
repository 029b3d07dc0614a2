"""Who may write to etcd or the storage can write anything there: it is refused or made sense of, never a crash."""

from __future__ import annotations

import contextlib
import json
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spotrun.checkpoint import manifest
from spotrun.errors import CheckpointError
from spotrun.launcher.notices.asked import Unreadable, parse_drain
from spotrun.rendezvous.settings import Settings
from spotrun.rendezvous.state import PROTOCOL, Job, Node, Report, Round, encode
from spotrun.rendezvous.transitions import Live, View, decide
from tests.unit.untrusted import of_type, read

WORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)

ROUND = {**json.loads(encode(Round(1, (), "a", 1, "start", "", 0, "a1"))), "v": PROTOCOL}


@given(of_type(Job), st.lists(of_type(Node), max_size=3), of_type(Round), st.lists(of_type(Report), max_size=3))
@example({"min_nodes": 1, "max_nodes": 1, "max_restarts": 0}, [], ROUND, [])
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
def test_whatever_is_read_from_etcd_can_be_decided_on(
    job: dict[str, Any], nodes: list[dict[str, Any]], current: dict[str, Any], reports: list[dict[str, Any]]
) -> None:
    agreed = read(Job, job)
    if agreed is None:
        return
    live = tuple(Live(node, 0.0) for node in (read(Node, body) for body in nodes) if node is not None)
    heard = tuple((report, 0.0) for report in (read(Report, body) for body in reports) if report is not None)
    for there in (None, read(Round, current)):
        decide(View(agreed, live, there, heard), Settings(), 100.0, "me")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Round, {"members": []}),
        (Round, {"number": 0}),
        (Round, {"members": [{"node_id": "a", "incarnation": "a1", "nproc": 0}]}),
        (Round, {"members": 2 * [{"node_id": "a", "incarnation": "a1", "nproc": 1}]}),
        (Round, {"members": [{"node_id": "../a", "incarnation": "a1", "nproc": 1}]}),
        (Node, {"node_id": "../../etc"}),
        (Node, {"agent_port": 70_000}),
        (Node, {"store_port": -1}),
        (Node, {"nproc": 1 << 40}),
        (Job, {"min_nodes": 0}),
        (Job, {"min_nodes": 3, "max_nodes": 2}),
    ],
)
def test_values_that_no_node_writes_are_refused(kind: Any, changes: dict[str, Any]) -> None:
    whole: dict[Any, dict[str, Any]] = {
        Round: {**ROUND, "members": [{"node_id": "a", "incarnation": "a1", "nproc": 1}]},
        Node: json.loads(encode(Node("a", "a1", "10.0.0.1", 1, 2, 1))),
        Job: json.loads(encode(Job(1, 2, 3))),
    }
    assert read(kind, whole[kind]) is not None
    assert read(kind, {**whole[kind], **changes}) is None


MANIFEST = manifest.Manifest(7, 1, 0, 1, "job", "s", 1, (manifest.FileRecord(".metadata", 1, 2),), "2", "1", 0.0)


def signed(body: dict[str, Any]) -> bytes:
    """A checksum of its own keeps nobody from writing what they like."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**body, "crc32": f"{zlib.crc32(text):08x}"}).encode()


@given(st.data())
def test_a_manifest_of_anything_is_refused_or_read(data: st.DataObject) -> None:
    body = json.loads(manifest.encode(MANIFEST))
    del body["crc32"]
    name = data.draw(st.sampled_from(sorted(body)))
    body[name] = data.draw(WORDS)
    with contextlib.suppress(CheckpointError):
        assert manifest.decode(signed(body), MANIFEST.name).name == MANIFEST.name


def test_a_manifest_that_is_infinite_or_very_deep_is_refused() -> None:
    body = json.loads(manifest.encode(MANIFEST))
    del body["crc32"]
    for data in (signed({**body, "generation": float("inf")}), b"[" * 100_000):
        with pytest.raises(CheckpointError, match="not a manifest"):
            manifest.decode(data, MANIFEST.name)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name: str) -> None:
    body = json.loads(manifest.encode(MANIFEST))
    del body["crc32"]
    body["files"].append({"name": name, "size": 1, "crc32": "0"})
    with pytest.raises(CheckpointError, match="outside its directory"):
        manifest.decode(signed(body), MANIFEST.name)


@given(st.text() | st.from_regex(r"\{.*\}") | WORDS.map(json.dumps))
def test_whatever_asks_for_a_drain_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(Unreadable):
        seconds, reason = parse_drain(text)
        assert 0 <= seconds < float("inf") and isinstance(reason, str)
