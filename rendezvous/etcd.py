"""A client of etcd v3: keys, transactions, leases and watches, on whichever of the endpoints answers.

    with EtcdClient(EtcdConfig(("etcd-0:2379", "etcd-1:2379"))) as etcd:
        etcd.check()
        result = etcd.txn([Compare.absent("/jobs/1")], [Op.put("/jobs/1", "mine")], [Op.get("/jobs/1")])

Every call may be made from any thread and ends within `timeout_s`. It raises EtcdUnavailable where no endpoint answered
in time, EtcdRefused where etcd said no, LeaseLost where the lease it names is gone. Reads are tried again on the next
endpoint; so are `put`, `delete`, `grant` and `revoke`, which come to the same if they happen twice, but for two things:
a `put` that is tried again may undo what another client wrote meanwhile, and `delete` may then report that there was
nothing to delete. Where that matters, use `txn`: it is never sent again once a member may have it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from spotrun.errors import EtcdError, EtcdRefused, EtcdUnavailable, LeaseLost
from spotrun.rendezvous import etcd_messages as messages
from spotrun.rendezvous.etcd_connections import Connections, EtcdConfig, Retired, backoff_s
from spotrun.rendezvous.etcd_diagnosis import diagnose, too_old
from spotrun.rendezvous.etcd_failures import Verdict, code_of, details_of, judge
from spotrun.rendezvous.etcd_keys import encode_key, key_range, text_key
from spotrun.rendezvous.leases import KeepAlive, Leases
from spotrun.rendezvous.watch import Watch, Watcher, WatchEvent

__all__ = [
    "Compare",
    "EtcdClient",
    "EtcdConfig",
    "KeepAlive",
    "KeyValue",
    "MemberStatus",
    "Op",
    "TxnResult",
    "Watch",
    "WatchEvent",
]

CHECK_FIRST_S = 1.5  # `check` looks for a reason after this long without an answer
LOGINS = 3  # in one operation: a fresh token can be overtaken by a change of users once, hardly more often


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it lies in etcd; `value` is empty where only keys were asked for."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction."""

    message: Any

    @staticmethod
    def absent(key: str) -> Compare:
        return _compare(key, messages.TARGET_CREATE, create_revision=0)

    @staticmethod
    def exists(key: str) -> Compare:
        return _compare(key, messages.TARGET_VERSION, messages.GREATER, version=0)

    @staticmethod
    def created(key: str, revision: int) -> Compare:
        return _compare(key, messages.TARGET_CREATE, create_revision=revision)

    @staticmethod
    def modified(key: str, revision: int) -> Compare:
        return _compare(key, messages.TARGET_MOD, mod_revision=revision)

    @staticmethod
    def value(key: str, value: bytes) -> Compare:
        return _compare(key, messages.TARGET_VALUE, value=value)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a transaction."""

    message: Any

    @staticmethod
    def put(key: str, value: bytes | str, lease: int = 0) -> Op:
        return Op(messages.RequestOp(request_put=_put(key, value, lease)))

    @staticmethod
    def delete(key: str) -> Op:
        return Op(messages.RequestOp(request_delete_range=_delete(key, False)))

    @staticmethod
    def delete_prefix(prefix: str) -> Op:
        return Op(messages.RequestOp(request_delete_range=_delete(prefix, True)))

    @staticmethod
    def get(key: str) -> Op:
        return Op(messages.RequestOp(request_range=_range(key, False)))

    @staticmethod
    def get_prefix(prefix: str) -> Op:
        return Op(messages.RequestOp(request_range=_range(prefix, True)))

    @property
    def writes(self) -> bool:
        return not self.message.HasField("request_range")


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch was taken, at which revision of the store, and what each of its operations read."""

    succeeded: bool
    revision: int
    responses: tuple[tuple[KeyValue, ...], ...]


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What the member in use says of itself."""

    version: str
    db_bytes: int
    quota_bytes: int  # 0: it does not tell, as before 3.6
    leader: int  # 0: it knows none
    errors: tuple[str, ...]  # its alarms


class EtcdClient:
    """A client; it connects on first use. Close it, or use it as a context manager."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._connections = Connections(config)
        self._watcher = Watcher(self._connections, self._revision)
        self._leases = Leases(self._connections)

    def __enter__(self) -> EtcdClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all watches and keepalives (leases then run out), and the connection. Idempotent."""
        self._connections.close()
        self._watcher.close()
        self._leases.close()

    @property
    def endpoint(self) -> str | None:
        """The endpoint in use; None before the first call and between two endpoints."""
        return self._connections.endpoint

    def check(self) -> str:
        """The version of the server, once it is sure that it serves this client: etcd >= 3.4, login, quorum.

        Raises EtcdUnavailable, or EtcdRefused with the reason.
        """
        try:
            status = self._call(messages.STATUS, messages.StatusRequest(), CHECK_FIRST_S)
        except EtcdUnavailable:
            for endpoint in self.config.endpoints:
                if reason := diagnose(endpoint, self.config):
                    raise EtcdRefused(reason) from None
            status = self._call(messages.STATUS, messages.StatusRequest())
        if reason := too_old(self.endpoint or self.config.endpoints[0], status.version):
            raise EtcdRefused(reason)
        try:
            self.get("spotrun")  # goes through the quorum and needs the login, which a status request does not
        except EtcdRefused as error:
            if "permission denied" not in str(error):  # for this key; others will be allowed
                raise
        return str(status.version)

    def status(self) -> MemberStatus:
        found = self._call(messages.STATUS, messages.StatusRequest())
        return MemberStatus(found.version, found.dbSize, found.dbSizeQuota, found.leader, tuple(found.errors))

    def get(self, key: str) -> KeyValue | None:
        found = self._call(messages.RANGE, _range(key, False)).kvs
        return _key_value(found[0]) if found else None

    def get_prefix(self, prefix: str, *, keys_only: bool = False) -> tuple[list[KeyValue], int]:
        """All keys that begin with `prefix`, in order, and the revision of the store: watch from that + 1."""
        reply = self._call(messages.RANGE, _range(prefix, True, keys_only=keys_only))
        return [_key_value(kv) for kv in reply.kvs], reply.header.revision

    def predecessor(self, prefix: str, create_revision: int) -> tuple[KeyValue | None, int]:
        """Of the keys that begin with `prefix`, the last one created before `create_revision`; and the revision of the
        store: watch from that + 1.
        """
        if create_revision <= 1:  # the first revision that etcd gives; a limit of 0 would mean none
            return None, create_revision
        request = _range(prefix, True)
        request.limit, request.sort_order, request.sort_target = 1, messages.SORT_DESCEND, messages.SORT_BY_CREATE
        request.max_create_revision = create_revision - 1
        reply = self._call(messages.RANGE, request)
        return next(map(_key_value, reply.kvs), None), reply.header.revision

    def put(self, key: str, value: bytes | str, lease: int = 0) -> int:
        """Write one key without a condition; the revision of the write."""
        return int(self._call(messages.PUT, _put(key, value, lease)).header.revision)

    def delete(self, key: str) -> bool:
        """Delete one key; whether there was one."""
        return bool(self._call(messages.DELETE_RANGE, _delete(key, False)).deleted)

    def delete_prefix(self, prefix: str) -> int:
        """Delete all keys that begin with `prefix`; how many there were."""
        return int(self._call(messages.DELETE_RANGE, _delete(prefix, True)).deleted)

    def txn(self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        """Do `success` if all of `compare` hold, else `failure`, as one act.

        Raises EtcdUnavailable where it may have been carried out nonetheless, which its message then says: read before
        trying again. Only one that merely reads is sent twice.
        """
        request = messages.TxnRequest(
            compare=[one.message for one in compare],
            success=[op.message for op in success],
            failure=[op.message for op in failure],
        )
        repeatable = not any(op.writes for op in (*success, *failure))
        reply = self._call(messages.TXN, request, repeatable=repeatable)
        responses = tuple(tuple(map(_key_value, response.response_range.kvs)) for response in reply.responses)
        return TxnResult(reply.succeeded, reply.header.revision, responses)

    def grant(self, ttl_s: int) -> int:
        """A new lease. (One whose answer got lost just runs out.)"""
        return int(self._call(messages.GRANT, messages.LeaseGrantRequest(TTL=ttl_s)).ID)

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; no error where it has ended already."""
        with contextlib.suppress(LeaseLost):
            self._call(messages.REVOKE, messages.LeaseRevokeRequest(ID=lease))

    def watch(
        self,
        key: str,
        *,
        prefix: bool = False,
        start_revision: int,
        on_event: Callable[[WatchEvent], None],
        on_error: Callable[[EtcdError], None],
    ) -> Watch:
        """Tell every change of `key` (or of all keys that begin with it) from `start_revision` on, once and in order.

        `on_event` is called on a thread of the client, which must not be kept waiting, until `cancel`. Members of etcd
        may come and go meanwhile. `on_error` ends the watch: Compacted (read again, watch from there) or EtcdRefused.
        """
        return self._watcher.add(key, prefix, start_revision, on_event, on_error)

    def keep_alive(self, lease: int, ttl_s: float, on_lost: Callable[[], None]) -> KeepAlive:
        """Renew `lease` until `cancel`; `on_lost` is called once, on the client's thread, if etcd says it is gone."""
        return self._leases.add(lease, ttl_s, on_lost)

    def _revision(self, key: str) -> int:
        """The revision of the store as the quorum has it, asked by a read that whoever may watch `key` may do."""
        return int(self._call(messages.RANGE, _range(key, False)).header.revision)

    def _call(
        self, method: messages.Method, request: Any, timeout_s: float | None = None, repeatable: bool = True
    ) -> Any:
        """One operation: attempts on one endpoint after the other, until one is answered or the time is up."""
        connections = self._connections
        end_s = time.monotonic() + (self.config.timeout_s if timeout_s is None else timeout_s)
        attempts = logins = 0
        while True:
            connections.raise_if_closed()
            connection = connections.ready(end_s)
            token = None
            sent = False
            try:
                token = connections.token(connection, end_s)
                sent = True
                left_s = max(0.01, end_s - time.monotonic())
                return connection.unary(method, request, min(connections.attempt_s, left_s), token)
            except grpc.RpcError as error:
                why = f"{connection.endpoint}: {code_of(error).name}, {details_of(error)}"
                verdict = judge(error, connection.endpoint, method.does)
            except Retired:
                continue
            except ValueError:
                connections.raise_if_closed()  # gRPC's way to say that the channel was closed meanwhile
                raise
            if isinstance(verdict, EtcdError):
                raise verdict
            if verdict is Verdict.LOGIN and sent and logins < LOGINS:
                logins += 1
                connections.token_expired(token)
                continue
            connections.failed(connection)
            if verdict is Verdict.UNKNOWN and sent and not repeatable:
                raise EtcdUnavailable(f"etcd did not answer {method.does}, which may have been carried out ({why}).")
            attempts += 1
            if time.monotonic() >= end_s:
                raise connections.unavailable(why)
            if attempts % len(self.config.endpoints) == 0:
                connections.wait(min(backoff_s(attempts), max(0.0, end_s - time.monotonic())))


def _compare(key: str, target: int, result: int = messages.EQUAL, **value: Any) -> Compare:
    return Compare(messages.CompareMessage(key=encode_key(key), target=target, result=result, **value))


def _range(key: str, prefix: bool, *, keys_only: bool = False) -> Any:
    start, end = key_range(key, prefix)
    return messages.RangeRequest(key=start, range_end=end, keys_only=keys_only)


def _put(key: str, value: bytes | str, lease: int) -> Any:
    content = value.encode() if isinstance(value, str) else value
    return messages.PutRequest(key=encode_key(key), value=content, lease=lease)


def _delete(key: str, prefix: bool) -> Any:
    start, end = key_range(key, prefix)
    return messages.DeleteRangeRequest(key=start, range_end=end)


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(text_key(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
