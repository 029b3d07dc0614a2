"""The ledger in a real etcd: a ring that many nodes write at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from spotrun import events
from spotrun.launcher import ledger
from spotrun.launcher.ledger import Entry, Ledger
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys
from tests.etcd_servers import etcd, shared_etcd

__all__ = ["etcd", "shared_etcd"]


def test_entries_of_many_nodes_are_all_there_in_one_order(etcd: EmbeddedEtcd) -> None:
    keys = Keys("many")
    with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:

        def write(node: str) -> None:
            for number in range(10):
                ledger.append(client, keys, Entry(f"{node}-{number}", "left", node, 1.0))

        threads = [threading.Thread(target=write, args=(node,)) for node in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found, _ = ledger.of_job(client, keys)
    assert len(found) == 40
    for node in "abcd":
        assert [entry.id for entry in found if entry.node == node] == [f"{node}-{number}" for number in range(10)]


def test_the_newest_stay_when_the_ring_is_full(etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BOUND", 5)
    keys = Keys("full")
    with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        for number in range(12):
            ledger.append(client, keys, Entry(str(number), "left", "a", 1.0))
        found, _ = ledger.of_job(client, keys)
    assert [entry.id for entry in found] == ["7", "8", "9", "10", "11"]


def test_a_node_keeps_all_it_hears_and_tells_the_others_its_own(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    keys = Keys("own")
    file = ledger.file_of(tmp_path / "logs", "own", "a")
    with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        mine = Ledger(client, keys, "i", file)
        with events.to_listener(mine.hear, node="a"):
            events.emit("round_formed", round=1)
            events.emit("notice", source="aws")
            events.emit("workers_started", pids=[1, 2])
            mine.first = True
            events.emit("round_formed", round=2)
        mine.close()
        found, _ = ledger.of_job(client, keys)
    assert [(entry.what, entry.round) for entry in found] == [("notice", 0), ("round_formed", 2)]
    assert [entry.what for entry in ledger.of_file(file)] == [
        "round_formed",
        "notice",
        "workers_started",
        "round_formed",
    ]
    assert {entry.node for entry in found} == {"a"}
