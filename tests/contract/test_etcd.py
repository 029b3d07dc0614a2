"""What the etcd client promises on one healthy server."""

# ruff: noqa: F811  (fixtures are imported, and then named as arguments)
from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from spotrun.errors import Compacted, EtcdRefused, LeaseLost
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import Compare, EtcdClient, KeyValue, Op
from spotrun.rendezvous.session import Session
from tests.etcd_servers import Told, admin, client_of, etcd, etcd_client, private_etcd, shared_etcd  # noqa: F401
from tests.waiting import until

_numbers = itertools.count()


@pytest.fixture
def root(etcd_client: EtcdClient) -> Iterator[str]:
    """A prefix of the test's own."""
    prefix = f"/test-etcd/{next(_numbers)}/"
    yield prefix
    etcd_client.delete_prefix(prefix)


def test_what_was_put_is_found_until_it_is_deleted(etcd_client: EtcdClient, root: str) -> None:
    key = root + "key"
    assert etcd_client.get(key) is None
    first = etcd_client.put(key, "one")
    second = etcd_client.put(key, b"two")
    assert etcd_client.get(key) == KeyValue(key, b"two", first, second, 2, 0)
    assert etcd_client.delete(key)
    assert not etcd_client.delete(key)
    assert etcd_client.get(key) is None


def test_a_prefix_is_read_in_order_and_tells_where_to_watch_from(etcd_client: EtcdClient, root: str) -> None:
    for name in ("b", "a", "c"):
        last = etcd_client.put(root + name, name)
    etcd_client.put(root[:-1] + "0", "the first key after the prefix")
    found, revision = etcd_client.get_prefix(root)
    assert [kv.value for kv in found] == [b"a", b"b", b"c"]
    assert revision == last + 1
    keys, _ = etcd_client.get_prefix(root, keys_only=True)
    assert [(kv.key, kv.value) for kv in keys] == [(root + name, b"") for name in "abc"]
    assert etcd_client.delete_prefix(root) == 3
    assert etcd_client.delete(root[:-1] + "0")


def test_the_predecessor_is_the_last_key_created_before(etcd_client: EtcdClient, root: str) -> None:
    revisions = [etcd_client.put(root + name, name) for name in ("z", "m", "a")]
    etcd_client.put(root + "z", "changed later, created first")

    def before(revision: int) -> str | None:
        found, read_at = etcd_client.predecessor(root, revision)
        assert read_at >= min(revision, revisions[-1])
        return None if found is None else found.key[len(root) :]

    assert [before(revision) for revision in revisions] == [None, "z", "m"]
    assert before(revisions[-1] + 100) == "a"
    assert before(1) is None


def test_a_transaction_takes_one_branch_and_reads_what_it_wrote(etcd_client: EtcdClient, root: str) -> None:
    key = root + "key"
    made = etcd_client.txn([Compare.absent(key)], [Op.put(key, "1"), Op.get(key)])
    assert made.succeeded
    assert made.responses == ((), (KeyValue(key, b"1", made.revision, made.revision, 1, 0),))
    again = etcd_client.txn([Compare.absent(key)], [Op.put(key, "2")], [Op.get_prefix(root)])
    assert not again.succeeded
    assert [kv.value for kv in again.responses[0]] == [b"1"]


def test_each_condition_holds_exactly_when_it_should(etcd_client: EtcdClient, root: str) -> None:
    key, none = root + "key", root + "none"
    created = etcd_client.put(key, "1")
    modified = etcd_client.put(key, "2")

    def holds(compare: Compare) -> bool:
        return etcd_client.txn([compare], []).succeeded

    assert holds(Compare.exists(key)) and not holds(Compare.exists(none))
    assert holds(Compare.absent(none)) and not holds(Compare.absent(key))
    assert holds(Compare.created(key, created)) and not holds(Compare.created(key, modified))
    assert holds(Compare.modified(key, modified)) and not holds(Compare.modified(key, created))
    assert holds(Compare.value(key, b"2")) and not holds(Compare.value(key, b"1"))
    assert not holds(Compare.value(none, b""))


def test_a_transaction_deletes_keys_and_prefixes(etcd_client: EtcdClient, root: str) -> None:
    for name in ("a", "b/1", "b/2", "c"):
        etcd_client.put(root + name, "")
    etcd_client.txn([], [Op.delete(root + "a"), Op.delete_prefix(root + "b/")])
    assert [kv.key for kv in etcd_client.get_prefix(root)[0]] == [root + "c"]


def test_a_watch_tells_all_from_its_revision_on(etcd_client: EtcdClient, root: str) -> None:
    etcd_client.put(root + "a", "0")
    start = etcd_client.put(root + "a", "1")
    told = Told()
    watch = told.watch(etcd_client, root, start, prefix=True)
    etcd_client.txn([], [Op.put(root + "b", "2"), Op.put(root + "c", "3")])
    etcd_client.delete(root + "a")
    until("four events", lambda: len(told.events) == 4)
    assert [(event.kind, event.key[len(root) :], event.value) for event in told.events] == [
        ("put", "a", b"1"),
        ("put", "b", b"2"),
        ("put", "c", b"3"),
        ("delete", "a", b""),
    ]
    assert not told.errors
    watch.cancel()


def test_a_cancelled_watch_tells_nothing_more(etcd_client: EtcdClient, root: str) -> None:
    told, others = Told(), Told()
    start = etcd_client.put(root + "a", "1")
    watch = told.watch(etcd_client, root + "a", start)
    others.watch(etcd_client, root + "a", start)
    until("the first event", lambda: told.events and others.events)
    watch.cancel()
    watch.cancel()
    etcd_client.put(root + "a", "2")
    until("the second event", lambda: len(others.events) == 2)
    assert told.values == ["1"]


def test_a_failing_callback_ends_neither_its_watch_nor_others(
    etcd_client: EtcdClient, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    failed = threading.Event()

    def fail(event: object) -> None:
        failed.set()
        raise RuntimeError("the caller's bug")

    start = etcd_client.put(root + "a", "1")
    etcd_client.watch(root + "a", start_revision=start, on_event=fail, on_error=told.errors.append)
    told.watch(etcd_client, root + "a", start)
    assert failed.wait(10)
    failed.clear()
    etcd_client.put(root + "a", "2")
    assert failed.wait(10)
    until("both events", lambda: told.values == ["1", "2"])
    assert "the caller's bug" in caplog.text


def test_a_thousand_watches_share_one_stream(etcd_client: EtcdClient, root: str) -> None:
    start = etcd_client.put(root + "x", "1")
    threads = threading.active_count()
    told = Told()
    for number in range(1000):
        told.watch(etcd_client, f"{root}{number}", start)
    for number in range(1000):
        etcd_client.put(f"{root}{number}", str(number))
    until("all events", lambda: len(told.events) == 1000)
    assert sorted(told.values, key=int) == [str(number) for number in range(1000)]
    assert threading.active_count() - threads < 10


def test_a_watch_from_a_compacted_revision_says_where_history_begins(private_etcd: EmbeddedEtcd) -> None:
    with client_of(private_etcd) as client:
        for number in range(5):
            last = client.put("key", str(number))
        admin(private_etcd, "kv/compaction", revision=last)
        told, later = Told(), Told()
        told.watch(client, "key", last - 3)
        error = until("the error", lambda: told.errors)[0]
        assert isinstance(error, Compacted) and error.revision == last
        later.watch(client, "key", last)
        until("what is left", lambda: later.values == ["4"])


def test_a_session_keeps_its_lease_until_it_is_closed(etcd_client: EtcdClient, root: str) -> None:
    session = Session(etcd_client, 2.0, lambda: pytest.fail("lost"))
    etcd_client.txn([Compare.absent(root + "key")], [Op.put(root + "key", "", session.lease_id)])
    assert not session.lost.wait(4.5)  # more than two lives of the lease
    assert etcd_client.get(root + "key") is not None
    session.close()
    session.close()
    assert etcd_client.get(root + "key") is None
    assert not session.lost.is_set()


def test_a_session_learns_that_its_lease_is_gone_and_tells_it_once(etcd_client: EtcdClient, root: str) -> None:
    told: list[str] = []
    session, other = Session(etcd_client, 2.0, lambda: told.append("lost")), Session(etcd_client, 2.0, lambda: None)
    etcd_client.revoke(session.lease_id)
    assert session.lost.wait(10)
    assert not other.lost.wait(2.5)
    assert told == ["lost"]
    with pytest.raises(LeaseLost):
        etcd_client.put(root + "key", "", session.lease_id)
    with pytest.raises(LeaseLost):
        etcd_client.txn([], [Op.put(root + "key", "", session.lease_id)])
    session.close()
    other.close()


def test_a_lease_that_is_no_longer_kept_alive_runs_out(etcd_client: EtcdClient, root: str) -> None:
    lease = etcd_client.grant(2)
    kept = etcd_client.keep_alive(lease, 2.0, lambda: None)
    start = etcd_client.put(root + "key", "", lease)
    told = Told()
    told.watch(etcd_client, root + "key", start + 1)
    kept.cancel()
    assert until("the end of the key", lambda: told.events)[0].kind == "delete"


def test_revoking_what_is_gone_is_no_error(etcd_client: EtcdClient) -> None:
    lease = etcd_client.grant(60)
    etcd_client.revoke(lease)
    etcd_client.revoke(lease)


def test_a_hundred_leases_are_kept_alive_on_one_stream(etcd_client: EtcdClient, root: str) -> None:
    threads = threading.active_count()
    sessions = [Session(etcd_client, 2.0, lambda: None) for _ in range(100)]
    assert not sessions[-1].lost.wait(4.5)
    assert not any(session.lost.is_set() for session in sessions)
    assert threading.active_count() - threads < 10
    for session in sessions:
        session.close()


def test_many_threads_share_a_client(etcd_client: EtcdClient, root: str) -> None:
    counter = root + "counter"
    etcd_client.put(counter, "0")

    def add() -> None:
        for _ in range(20):
            while True:
                kv = etcd_client.get(counter)
                assert kv is not None
                guard = Compare.modified(counter, kv.mod_revision)
                if etcd_client.txn([guard], [Op.put(counter, str(int(kv.value) + 1))]).succeeded:
                    break

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kv = etcd_client.get(counter)
    assert kv is not None and kv.value == b"160"


def test_programs_can_be_started_while_a_watch_is_open(etcd_client: EtcdClient, root: str) -> None:
    start = etcd_client.put(root + "a", "0")
    told = Told()
    told.watch(etcd_client, root + "a", start)
    for number in range(1, 20):
        subprocess.run(["true"], check=True, start_new_session=True)
        etcd_client.put(root + "a", str(number))
    until("all events", lambda: told.values == [str(number) for number in range(20)])


def test_a_request_that_etcd_finds_wrong_is_refused_with_its_reason(etcd_client: EtcdClient) -> None:
    with pytest.raises(EtcdRefused, match="key is not provided"):
        etcd_client.put("", "value")


def test_a_program_that_forgets_to_close_its_client_still_ends(etcd: EmbeddedEtcd) -> None:
    program = f"""
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.session import Session
client = EtcdClient(EtcdConfig(("{etcd.endpoint}",)))
client.watch("x", start_revision=1, on_event=print, on_error=print)
Session(client, 2.0, print)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_etcd_client_in_the_process_does_not_collide(etcd: EmbeddedEtcd, order: str) -> None:
    ours = f"""
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
with EtcdClient(EtcdConfig(("{etcd.endpoint}",))) as client:
    client.check()
"""
    theirs = """
from google.protobuf import descriptor_pb2, descriptor_pool
for name, package, message in (("kv.proto", "mvccpb", "KeyValue"), ("rpc.proto", "etcdserverpb", "RangeRequest")):
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package)
    file.message_type.add(name=message)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
"""
    program = theirs + ours if order == "before" else ours + theirs + ours
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
