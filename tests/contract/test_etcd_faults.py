"""What the etcd client promises when members of etcd die, hang, forget, or their answers get lost."""

# ruff: noqa: F811  (fixtures are imported, and then named as arguments)
from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spotrun.errors import Compacted, EtcdUnavailable
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import Compare, EtcdClient, EtcdConfig, Op
from spotrun.rendezvous.session import Session
from tests.etcd_servers import (  # noqa: F401
    Cluster,
    Proxy,
    Told,
    admin,
    client_of,
    cluster,
    kill,
    private_etcd,
    stopped,
    unused_port,
)
from tests.waiting import until


class Writer:
    """Writes 0, 1, 2, ... to one key until it is told to stop; every number is written, however often it takes."""

    def __init__(self, client: EtcdClient, key: str) -> None:
        self._client, self._key = client, key
        self._stop = threading.Event()
        self.written = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int = 10) -> None:
        """Wait for `count` more writes."""
        goal = self.written + count
        until(f"{count} more writes", lambda: self.written >= goal)

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            try:
                self._client.put(self._key, str(self.written))
            except EtcdUnavailable:
                continue
            self.written += 1


def assert_complete(told: Told, written: int) -> None:
    """A watch of all keys told every number, in order; one that was written twice (see EtcdClient.put) twice."""

    def numbers() -> list[str]:
        return [event.value.decode() for event in told.events if event.key == "key"]

    until("the last event", lambda: str(written - 1) in numbers(), detail=lambda: str(told.errors))
    revisions = [event.mod_revision for event in told.events]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions))), "an event was lost or doubled"
    assert list(dict.fromkeys(numbers())) == [str(number) for number in range(written)]
    assert not told.errors


def test_a_server_that_is_killed_and_restarted_costs_no_event_and_no_lease(private_etcd: EmbeddedEtcd) -> None:
    with client_of(private_etcd) as client, client_of(private_etcd) as writing:
        session = Session(client, 4.0, lambda: None)
        start = client.put("leased", "", session.lease_id)
        told = Told()
        told.watch(client, "", start + 1, prefix=True)
        with Writer(writing, "key") as writer:
            for _ in range(2):
                writer.more()
                kill(private_etcd)
                private_etcd.start()
                writer.more()
        assert_complete(told, writer.written)
        assert not session.lost.wait(5.0)
        assert client.get("leased") is not None
        session.close()


def test_nothing_is_lost_when_the_leader_of_three_is_killed(cluster: Cluster) -> None:
    with client_of(*cluster.members) as client, client_of(*cluster.members) as writing:
        session = Session(client, 4.0, lambda: None)
        start = client.put("leased", "", session.lease_id)
        told = Told()
        told.watch(client, "", start + 1, prefix=True)
        with Writer(writing, "key") as writer:
            writer.more()
            leader = cluster.leader()
            kill(leader)
            writer.more()
            leader.start()
            writer.more()
            kill(cluster.at(client.endpoint))  # by now another one, perhaps
            writer.more()
        assert_complete(told, writer.written)
        assert not session.lost.wait(5.0)
        session.close()


@pytest.mark.parametrize("which", ["leader", "mine"])
def test_a_member_that_hangs_is_left_for_another(cluster: Cluster, which: str) -> None:
    with client_of(*cluster.members) as client, client_of(*cluster.members) as writing:
        session = Session(client, 4.0, lambda: None)
        start = client.put("leased", "", session.lease_id)
        told = Told()
        told.watch(client, "", start + 1, prefix=True)
        with Writer(writing, "key") as writer:
            writer.more()
            with stopped(cluster.leader() if which == "leader" else cluster.at(client.endpoint)):
                writer.more()
                until("events go on", lambda: len(told.events) >= writer.written - 5)
                assert not session.lost.wait(6.0)
                assert client.get("leased") is not None
                writer.more()
            # From here on the lease may be lost all the same: before 3.5.11 a leader that wakes up can revoke leases
            # that its successor has renewed (etcd-io/etcd#15247).
            writer.more()
        assert_complete(told, writer.written)
        session.close()


def test_an_idle_watch_notices_that_its_member_hangs(cluster: Cluster) -> None:
    with client_of(*cluster.members) as client:
        told = Told()
        told.watch(client, "key", client.put("key", "before") + 1)
        mine = cluster.at(client.endpoint)
        other = next(member for member in cluster.members if member is not mine)
        with stopped(mine), client_of(other) as writing:
            writing.put("key", "while it hangs")
            until("the event", lambda: told.values == ["while it hangs"])


def test_a_healthy_watch_stays_on_its_stream_while_nothing_happens(
    private_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="spotrun")
    with client_of(private_etcd) as client:
        told = Told()
        told.watch(client, "key", client.put("key", "") + 1)
        threading.Event().wait(7.0)  # twice as long as a silent member gets
        assert "anew" not in caplog.text
        client.put("key", "at last")
        until("the event", lambda: told.values == ["at last"])


def test_a_single_server_that_hangs_makes_calls_fail_in_time_and_then_heals(private_etcd: EmbeddedEtcd) -> None:
    with client_of(private_etcd, timeout_s=1.0) as client:
        told = Told()
        told.watch(client, "key", client.put("key", "0") + 1)
        with stopped(private_etcd), pytest.raises(EtcdUnavailable, match=private_etcd.endpoint):
            client.get("key")
        until("etcd is back", lambda: puts(client))
        until("the event", lambda: told.values[-1:] == ["1"])


def puts(client: EtcdClient) -> bool:
    try:
        client.put("key", "1")
    except EtcdUnavailable:
        return False
    return True


def test_a_watch_that_missed_what_was_compacted_says_so(private_etcd: EmbeddedEtcd) -> None:
    with client_of(private_etcd) as direct, Proxy(private_etcd) as proxy, client_of(proxy) as client:
        told = Told()
        told.watch(client, "key", direct.put("key", "0"))
        until("the first event", lambda: told.values == ["0"])
        with proxy.away():
            for number in range(1, 5):
                last = direct.put("key", str(number))
            admin(private_etcd, "kv/compaction", revision=last)
        error = until("the error", lambda: told.errors)[0]
        assert isinstance(error, Compacted) and error.revision == last
        assert told.values == ["0"]


def test_an_etcd_that_lost_its_data_is_noticed(private_etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    with client_of(private_etcd) as client:
        session = Session(client, 2.0, lambda: None)
        for number in range(50):
            last = client.put("key", str(number), session.lease_id)
        told = Told()
        told.watch(client, "key", last)
        until("the last event", lambda: told.events)
        kill(private_etcd)
        shutil.rmtree(tmp_path / "etcd")
        private_etcd.start()
        assert isinstance(until("the error", lambda: told.errors)[0], Compacted)
        assert session.lost.wait(20)
        revision = client.put("key", "anew")
        told.watch(client, "key", revision)
        until("the new event", lambda: told.values[-1] == "anew")


def test_a_transaction_whose_answer_is_lost_is_not_sent_again(private_etcd: EmbeddedEtcd) -> None:
    with (
        client_of(private_etcd) as direct,
        Proxy(private_etcd) as proxy,
        Proxy(private_etcd) as other,
        client_of(proxy, other) as client,
    ):
        client.get("key")
        proxy.mute()
        other.mute()
        with pytest.raises(EtcdUnavailable, match="may have been carried out"):
            client.txn([], [Op.put("key", "once")])
        proxy.unmute()
        other.unmute()
        until("the write", lambda: version_of(direct) == 1)
        # What a caller does then: the same guarded transaction again finds its own work.
        again = client.txn([Compare.absent("key")], [Op.put("key", "twice")], [Op.get("key")])
        assert not again.succeeded and again.responses[0][0].value == b"once"
        assert version_of(direct) == 1


def test_a_connection_that_breaks_under_a_transaction_does_not_make_it_happen_twice(private_etcd: EmbeddedEtcd) -> None:
    with client_of(private_etcd) as direct, Proxy(private_etcd) as proxy, client_of(proxy) as client:
        for version in range(1, 11):
            client.get("key")  # there is a connection
            proxy.mute()
            with ThreadPoolExecutor(1) as pool:
                outcome = pool.submit(client.txn, [], [Op.put("key", "")])
                until(f"write {version}", functools.partial(has_version, direct, version))
                proxy.unmute()
                with pytest.raises(EtcdUnavailable, match="may have been carried out"):
                    outcome.result()
            assert version_of(direct) == version


def has_version(client: EtcdClient, version: int) -> bool:
    return version_of(client) == version


def version_of(client: EtcdClient) -> int:
    kv = client.get("key")
    return kv.version if kv is not None else 0


def test_threads_that_share_a_client_all_survive_broken_connections(private_etcd: EmbeddedEtcd) -> None:
    with Proxy(private_etcd) as proxy, client_of(proxy) as client, ThreadPoolExecutor(8) as pool:
        stop = threading.Event()

        def work(name: int) -> int:
            done = 0
            while not stop.is_set():
                client.put(f"key/{name}", str(done))
                assert client.get(f"key/{name}")
                done += 1
            return done

        work_done = [pool.submit(work, name) for name in range(8)]
        try:
            for _ in range(20):
                proxy.cut()
                with proxy.away():
                    threading.Event().wait(0.05)
                threading.Event().wait(0.05)
        finally:
            stop.set()
        assert all(one.result() > 0 for one in work_done)


def test_a_read_whose_answer_is_lost_is_sent_again(private_etcd: EmbeddedEtcd) -> None:
    with Proxy(private_etcd) as proxy, Proxy(private_etcd) as other, client_of(proxy, other) as client:
        assert client.get("key") is None
        muted, left = (proxy, other) if client.endpoint == proxy.endpoint else (other, proxy)
        muted.mute()
        assert client.txn([], [Op.get("key")]).responses == ((),)
        assert client.endpoint == left.endpoint


def test_a_transaction_goes_to_the_endpoint_that_exists(private_etcd: EmbeddedEtcd) -> None:
    nobody = f"127.0.0.1:{unused_port()}"
    for number in range(6):  # each client begins with one of the two by chance
        with EtcdClient(EtcdConfig((nobody, private_etcd.endpoint))) as client:
            assert client.txn([Compare.absent(str(number))], [Op.put(str(number), "")]).succeeded


def test_an_etcd_that_is_away_for_a_while_ends_no_lease_on_its_own(private_etcd: EmbeddedEtcd) -> None:
    with Proxy(private_etcd) as proxy, client_of(proxy, timeout_s=1.0) as client, client_of(private_etcd) as direct:
        session = Session(client, 30.0, lambda: None)
        short = Session(client, 2.0, lambda: None)
        start = direct.put("short", "", short.lease_id)
        told = Told()
        told.watch(direct, "short", start + 1)
        with proxy.away():
            until("the short lease ran out", lambda: told.events)
            assert not short.lost.is_set()  # nobody could say so
            with pytest.raises(EtcdUnavailable, match=proxy.endpoint):
                client.put("key", "")
        assert short.lost.wait(20)
        assert not session.lost.is_set()
        session.close()


def test_a_process_that_was_stopped_too_long_learns_that_its_lease_is_gone(private_etcd: EmbeddedEtcd) -> None:
    program = f"""
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.session import Session
with EtcdClient(EtcdConfig(("{private_etcd.endpoint}",))) as client:
    session = Session(client, 2.0, lambda: None)
    client.put("alive", "", session.lease_id)
    print("alive", flush=True)
    session.lost.wait()
    print("lost", flush=True)
"""
    with client_of(private_etcd) as client:
        told = Told()
        told.watch(client, "alive", 1 + client.put("other", ""))
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout and process.stdout.readline() == "alive\n"  # not stopped amid its put
            process.send_signal(signal.SIGSTOP)
            until("the end of its key", lambda: told.events and told.events[-1].kind == "delete")
            process.send_signal(signal.SIGCONT)
            output, _ = process.communicate(timeout=30)
            assert output == "lost\n"
        finally:
            process.kill()
            process.communicate()


def test_calls_on_a_closed_client_say_so(private_etcd: EmbeddedEtcd) -> None:
    client = client_of(private_etcd)
    client.put("key", "")
    client.close()
    client.close()
    with pytest.raises(EtcdUnavailable, match="closed"):
        client.get("key")


def test_closing_does_not_wait_for_a_server_that_hangs(private_etcd: EmbeddedEtcd) -> None:
    client = client_of(private_etcd)
    told = Told()
    told.watch(client, "key", client.put("key", ""))
    until("the event", lambda: told.events)
    with stopped(private_etcd):
        began_s = time.monotonic()
        client.close()
        assert time.monotonic() - began_s < 10  # etcd's own patience with streams is longer
