"""A pool against a real etcd: what it records, who may act, and what it tells its provider."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotrun.pool.decide import Ask, Place, Settings
from spotrun.pool.pool import Pool
from spotrun.pool.providers import Exec
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import Op
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import Node, Outcome, decode, encode
from tests.etcd_servers import admin, client_of, etcd, shared_etcd
from tests.waiting import until

__all__ = ["etcd", "shared_etcd"]
PROGRAM = Path(__file__).parents[1] / "scripts" / "machines.py"


class Site:
    """A job, the provider's machines, and the pools that run."""

    def __init__(self, etcd: EmbeddedEtcd, run_id: str, directory: Path, stack: contextlib.ExitStack) -> None:
        self.etcd = etcd
        self.keys = Keys(run_id)
        self.directory = directory
        self.stack = stack
        self.client = stack.enter_context(client_of(etcd))
        self.leases: dict[str, int] = {}

    def start(self, want: int, most: int, places: tuple[Place, ...] = (Place("a"),)) -> threading.Thread:
        client = self.stack.enter_context(client_of(self.etcd))
        provider = Exec((sys.executable, str(PROGRAM), str(self.directory)), ("--nnodes=1:4", "train.py"))
        pool = Pool(client, self.keys, Settings(want, most, places), provider)
        thread = threading.Thread(target=pool.run, daemon=True)
        thread.start()
        return thread

    @property
    def machines(self) -> list[str]:
        folder = self.directory / "machines"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    @property
    def calls(self) -> list[list[str]]:
        file = self.directory / "calls"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def asks(self) -> list[Ask]:
        return [decode(Ask, kv.value) for kv in self.client.get_prefix(self.keys.asks)[0]]

    def join(self, name: str) -> None:
        self.leases[name] = self.client.grant(60)
        node = Node(name, f"of-{name}", "127.0.0.1", 1, 1, 1)
        self.client.put(self.keys.node(name), encode(node), self.leases[name])

    def die(self, name: str) -> None:
        (self.directory / "machines" / name).unlink(missing_ok=True)
        self.client.revoke(self.leases[name])

    def until_machines(self, count: int) -> list[str]:
        until(f"{count} machines", lambda: len(self.machines) == count, detail=lambda: str(self.calls))
        return self.machines

    def end(self, *pools: threading.Thread) -> None:
        self.client.put(self.keys.outcome, encode(Outcome("succeeded", "all done", "a")))
        for node in list(self.leases):
            self.client.revoke(self.leases[node])
        for pool in pools:
            pool.join(30)
            assert not pool.is_alive()
        assert self.machines == [], "all is given back"
        assert self.asks == []
        assert self.client.get(self.keys.pool) is None


@pytest.fixture
def site(etcd: EmbeddedEtcd, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(etcd, request.node.name, tmp_path, stack)


def test_missing_nodes_are_asked_for_lost_ones_replaced_and_all_given_back_at_the_end(site: Site) -> None:
    pool = site.start(want=2, most=3)
    first, second = site.until_machines(2)
    assert {ask.name for ask in site.asks} == {first, second}
    assert site.calls[0] == ["ask", site.calls[0][1], "a", "--nnodes=1:4", "train.py"]
    for name in (first, second):
        site.join(name)
    site.die(first)
    until("another one", lambda: len([call for call in site.calls if call[0] == "ask"]) == 3)
    assert len(site.until_machines(2)) == 2 and second in site.machines
    assert first not in {ask.name for ask in site.asks}
    site.end(pool)


def test_where_one_place_has_no_machine_the_next_one_is_asked(site: Site) -> None:
    (site.directory / "full").write_text("a")
    pool = site.start(want=1, most=1, places=(Place("a"), Place("b")))
    site.until_machines(1)
    assert [call[2] for call in site.calls if call[0] == "ask"] == ["a", "b"]
    assert [ask.place for ask in site.asks] == ["b"]
    site.end(pool)


def test_too_many_nodes_are_told_to_leave_and_their_machines_are_given_back(site: Site) -> None:
    pool = site.start(want=2, most=2)
    names = site.until_machines(2)
    for name in names:
        site.join(name)
    site.join("not-of-the-pool")
    drains = until("one is drained", lambda: site.client.get_prefix(site.keys.drains)[0])
    leaver = Keys.name(drains[0].key)
    assert leaver in names
    site.client.revoke(site.leases[leaver])  # it has left; its machine idles
    (site.directory / "machines" / leaver).unlink()
    until("it is forgotten", lambda: leaver not in {ask.name for ask in site.asks})
    assert len([call for call in site.calls if call[0] == "ask"]) == 2, "and not replaced"
    site.end(pool)


def test_of_two_pools_one_acts_and_the_other_takes_over_without_asking_twice(site: Site) -> None:
    first = site.start(want=2, most=2)
    site.until_machines(2)
    second = site.start(want=2, most=2)
    before = site.client.get(site.keys.pool)
    assert before is not None
    site.client.revoke(before.lease)  # as when it was cut off for too long

    def taken_over() -> bool:
        now = site.client.get(site.keys.pool)
        return now is not None and now.create_revision != before.create_revision

    until("a pool is active again", taken_over)
    assert len(site.asks) == len(site.machines) == 2
    site.end(first, second)
    assert [call[0] for call in site.calls].count("ask") == 2


def test_a_pool_that_waits_outlives_the_loss_of_its_lease(site: Site) -> None:
    def leases() -> set[int]:
        return {int(lease["ID"]) for lease in admin(site.etcd, "lease/leases").get("leases", [])}

    before = leases()
    first = site.start(want=0, most=0)
    active = until("a pool is active", lambda: site.client.get(site.keys.pool))
    assert active is not None
    second = site.start(want=0, most=0)
    waiting = until("the other one waits", lambda: leases() - before - {active.lease})
    site.client.revoke(waiting.pop())
    site.client.txn([], [Op.delete(site.keys.pool)])  # now it would take over
    until("a pool is active again", lambda: site.client.get(site.keys.pool))
    site.end(first, second)


def test_what_had_joined_and_is_gone_when_another_pool_takes_over_is_replaced_at_once(site: Site) -> None:
    first = site.start(want=1, most=1)
    (name,) = site.until_machines(1)
    site.join(name)
    until("that is recorded", lambda: site.asks[0].joined)
    site.end(first)
    site.client.txn([], [Op.delete(site.keys.outcome), Op.put(site.keys.ask(name), encode(Ask(name, "a", 0.0, True)))])
    second = site.start(want=1, most=1, places=(Place("a"), Place("b")))
    until("another one", lambda: len(site.machines) == 1, 10.0, detail=lambda: str(site.calls))
    assert [ask.place for ask in site.asks] == ["a"], "which is not to blame"
    site.end(second)


def test_what_was_recorded_but_never_asked_for_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool died in between; the next one must not wait for that machine."""
    monkeypatch.setattr("spotrun.pool.decide.LAG_S", 0.0)
    name = Pool(site.client, site.keys, Settings(1, 1, (Place("a"),)), Exec(("true",), ())).prefix + "dead"
    site.client.put(site.keys.ask(name), encode(Ask(name, "a")))
    pool = site.start(want=1, most=1, places=(Place("a"), Place("b")))
    site.until_machines(1)
    assert name not in site.machines
    assert {ask.name for ask in site.asks} == set(site.machines)
    site.end(pool)


def test_machines_are_kept_whose_records_and_nodes_etcd_has_lost(site: Site) -> None:
    """All that is left of them is what the provider lists; their nodes are back in a moment."""
    pool = site.start(want=2, most=2)
    names = site.until_machines(2)
    lost = [kv.key for kv in site.client.get_prefix(site.keys.root)[0]]
    site.client.txn([], [Op.delete(key) for key in lost])
    until("a pool is active again", lambda: site.client.get(site.keys.pool))
    for name in names:
        site.join(name)
    spare = "not-of-the-pool"
    site.join(spare)
    until("one is drained: it is known again", lambda: site.client.get_prefix(site.keys.drains)[0])
    assert [call[0] for call in site.calls] == ["ask", "ask"]
    site.end(pool)


def test_a_machine_that_nobody_has_recorded_is_given_back(
    site: Site, etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spotrun.pool.decide.REJOIN_S", 0.0)
    with client_of(etcd) as client:
        stray = Pool(client, site.keys, Settings(0, 0, (Place("a"),)), Exec(("true",), ())).prefix + "stray"
    (site.directory / "machines").mkdir()
    (site.directory / "machines" / stray).touch()
    pool = site.start(want=0, most=0)
    until("it is given back", lambda: site.machines == [])
    site.end(pool)
