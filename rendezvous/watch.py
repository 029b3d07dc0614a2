"""All watches of a client on one stream: no event is lost or told twice, whatever happens to the members of etcd.

Each watch knows the revision that it wants next. A new stream asks for everything from there, and what arrives twice
is dropped. Only events move that revision: etcd's progress replies can overtake events (etcd-io/etcd#15220).

An etcd that comes back without its data counts its revisions anew, and a watch that resumes would wait for ever. So a
store that is behind what a watch has already seen ends the watch like a compaction does: read again, watch from there.

A member that hangs keeps its stream open. So when nothing has come from it for a while, it is asked something that
every etcd answers at once: to create a watch, which is cancelled again. (A progress request would be left unanswered
by newer versions while a watch waits for a revision that does not exist yet, which is what ours do.)
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from spotrun.errors import Compacted, EtcdError, EtcdRefused
from spotrun.rendezvous import etcd_messages as messages
from spotrun.rendezvous.etcd_connections import Connections
from spotrun.rendezvous.etcd_keys import encode_key, key_range, text_key
from spotrun.rendezvous.etcd_stream import NEVER_S, Stream

logger = logging.getLogger("spotrun")

PROBE_S = 1.5  # silence after which the member is asked; longer than the pause between keepalives of a 4 s lease
SILENT_S = 2.7  # silence after which it is left for another; so that a 4 s lease survives a hung member


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of one key. `value` is empty, and `create_revision` and `lease` are 0, when it was deleted."""

    kind: Literal["put", "delete"]
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(slots=True, eq=False)
class Watch:
    """One watch, as EtcdClient.watch returns it."""

    id: int
    key: str
    prefix: bool
    next_revision: int
    on_event: Callable[[WatchEvent], None]
    on_error: Callable[[EtcdError], None]
    watcher: Watcher
    denied: bool = False  # once already, on the present login

    def cancel(self) -> None:
        """No more calls from now on, but one that is under way may still end. Idempotent."""
        self.watcher.cancel(self)


class Watcher:
    """The stream's user: which watches there are, and what etcd says about them."""

    def __init__(self, connections: Connections, store_revision: Callable[[str], int]) -> None:
        self._store_revision = store_revision  # as the quorum has it, by a read of this key; raises EtcdError
        self._stream = Stream(connections, messages.WATCH, "etcd-watch", self)
        self._lock = threading.Lock()
        self._watches: dict[int, Watch] = {}
        self._last_id = 0
        self._open = False
        self._unanswered: deque[Watch | None] = deque()  # creations in the order sent; None for a probe
        self._probed = False

    def add(
        self,
        key: str,
        prefix: bool,
        start_revision: int,
        on_event: Callable[[WatchEvent], None],
        on_error: Callable[[EtcdError], None],
    ) -> Watch:
        if start_revision < 1:
            raise ValueError(f"a watch starts at a revision that was read, not at {start_revision}")
        with self._lock:
            watch = Watch(self._new_id(), key, prefix, start_revision, on_event, on_error, self)
            self._watches[watch.id] = watch
            if self._open:
                self._create(watch)
        self._stream.wake(math.inf)  # its clock has nothing new to keep
        return watch

    def cancel(self, watch: Watch) -> None:
        with self._lock:
            known = self._watches.pop(watch.id, None) is not None
            if known and self._open:
                self._stream.send(_cancellation(watch.id))

    def close(self) -> None:
        with self._lock:
            self._watches.clear()
        self._stream.close()

    # -- called by the stream

    def wanted(self) -> bool:
        return bool(self._watches)

    def opened(self) -> None:
        with self._lock:
            self._open = True
            self._probed = False
            for watch in self._watches.values():
                self._create(watch)

    def broken(self) -> None:
        with self._lock:
            self._open = False
            self._unanswered.clear()

    def refused(self, error: EtcdError) -> None:
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            self._end(watch, error)

    def received(self, reply: Any) -> None:
        self._probed = False
        with self._lock:
            # A creation is answered in order; one that is refused comes back with the id -1 from newer versions.
            created = self._unanswered.popleft() if reply.created and self._unanswered else None
            watch = created or self._watches.get(reply.watch_id)
            if watch is None or self._watches.get(watch.id) is not watch:
                return  # a probe, or cancelled meanwhile
        if reply.canceled:
            self._canceled(watch, reply)
            return
        if reply.created:
            watch.denied = False
            if reply.header.revision < watch.next_revision - 1 and not self._has(watch.next_revision - 1, watch):
                return
        self._tell(watch, reply.events)

    def tick(self, now_s: float) -> float:
        silent_s = self._stream.silent_s(now_s)
        if silent_s is None:
            return now_s + NEVER_S
        if silent_s >= SILENT_S:
            self._stream.cut(f"silent for {silent_s:.1f} s", leave_member=True)
            return now_s + NEVER_S  # the new stream wakes the clock
        if silent_s < PROBE_S:
            return now_s + PROBE_S - silent_s
        with self._lock:
            if self._open and not self._probed:
                self._probed = True
                probe = self._new_id()
                self._unanswered.append(None)
                self._stream.send(_creation(probe, encode_key("spotrun"), b"", 0))
                self._stream.send(_cancellation(probe))
        return now_s + SILENT_S - silent_s

    # -- under the lock

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _create(self, watch: Watch) -> None:
        self._unanswered.append(watch)
        start, end = key_range(watch.key, watch.prefix)
        self._stream.send(_creation(watch.id, start, end, watch.next_revision))

    # -- on the reader's thread

    def _tell(self, watch: Watch, events: Any) -> None:
        known = watch.next_revision
        for event in events:
            kv = event.kv
            if kv.mod_revision < known or watch.id not in self._watches:
                continue
            kind: Literal["put", "delete"] = "delete" if event.type == messages.EVENT_DELETE else "put"
            told = WatchEvent(kind, text_key(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)
            watch.next_revision = kv.mod_revision + 1  # one revision may hold several events, so `known` stays
            try:
                watch.on_event(told)
            except Exception:  # the caller's bug; the other watches go on
                logger.exception("the callback of the watch on %s failed at revision %d", watch.key, kv.mod_revision)

    def _has(self, revision: int, watch: Watch) -> bool:
        """Whether the store has `revision`, which the member of the stream has not (yet); if not, ends the watch."""
        try:
            newest = self._store_revision(watch.key)
        except EtcdError as error:
            self._stream.cut(f"the revision of the store is not known: {error}", leave_member=False)
            return False
        if newest >= revision:
            return True  # the member only lags behind
        text = f"The changes of {watch.key} cannot be followed: etcd lost its data (revision {newest} < {revision})."
        self._end(watch, Compacted(text, newest))
        return False

    def _canceled(self, watch: Watch, reply: Any) -> None:
        if reply.compact_revision:
            text = f"The changes of {watch.key} from revision {watch.next_revision} on are gone: etcd was compacted."
            self._end(watch, Compacted(text, reply.compact_revision))
            return
        reason = reply.cancel_reason or "no reason given"
        if not watch.denied and ("permission denied" in reason or "auth" in reason):
            watch.denied = True  # etcd up to 3.5 says so for an expired login, too
            if self._stream.expired():
                return
        self._end(watch, EtcdRefused(f"etcd refused to watch {watch.key}: {reason}."))

    def _end(self, watch: Watch, error: EtcdError) -> None:
        with self._lock:
            if self._watches.pop(watch.id, None) is None:
                return
        try:
            watch.on_error(error)
        except Exception:  # see _tell
            logger.exception("the error callback of the watch on %s failed", watch.key)


def _creation(watch_id: int, key: bytes, range_end: bytes, start_revision: int) -> Any:
    request = messages.WatchCreateRequest(
        key=key, range_end=range_end, start_revision=start_revision, watch_id=watch_id
    )
    return messages.WatchRequest(create_request=request)


def _cancellation(watch_id: int) -> Any:
    return messages.WatchRequest(cancel_request=messages.WatchCancelRequest(watch_id=watch_id))
