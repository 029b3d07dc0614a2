"""All leases of a client kept alive on one stream. A lease is lost when etcd says so, never because etcd is away.

Each lease is renewed three times in its time to live. A renewal that is not answered in half of the time to the next
makes the stream be opened anew, which leaves time for two more members. The stream may hang although its member is
well: a follower passes renewals on to the leader, one by one, and waits for a hung leader for many seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spotrun.errors import EtcdError
from spotrun.rendezvous import etcd_messages as messages
from spotrun.rendezvous.etcd_connections import Connections
from spotrun.rendezvous.etcd_stream import NEVER_S, Stream

logger = logging.getLogger("spotrun")

RENEWALS_PER_TTL = 3
PATIENCE_MIN_S, PATIENCE_MAX_S = 0.4, 3.0  # for the answer to a renewal
# A leader that has just taken office may not have applied the grant yet, and then does not know a lease that exists
# (later versions wait for that by themselves). So it is asked twice.
ASK_AGAIN_S = 0.2


@dataclass(slots=True, eq=False)
class KeepAlive:
    """One lease being kept alive, as EtcdClient.keep_alive returns it."""

    lease: int
    every_s: float
    on_lost: Callable[[], None]
    leases: Leases
    due_s: float  # when to renew next
    sent_s: float | None = None  # when the renewal was sent that has not been answered
    unknown: bool = False  # etcd has said once that it knows no such lease

    def cancel(self) -> None:
        """Renew no more; the lease itself runs out or is revoked. Idempotent."""
        self.leases.cancel(self)


class Leases:
    """The stream's user: which leases there are, and when each is due."""

    def __init__(self, connections: Connections) -> None:
        self._stream = Stream(connections, messages.KEEP_ALIVE, "etcd-lease", self)
        self._lock = threading.Lock()
        self._kept: dict[int, KeepAlive] = {}
        self._complained = False

    def add(self, lease: int, ttl_s: float, on_lost: Callable[[], None]) -> KeepAlive:
        every_s = ttl_s / RENEWALS_PER_TTL
        kept = KeepAlive(lease, every_s, on_lost, self, time.monotonic() + every_s)
        with self._lock:
            self._kept[lease] = kept
        self._stream.wake(kept.due_s)
        return kept

    def cancel(self, kept: KeepAlive) -> None:
        with self._lock:
            if self._kept.get(kept.lease) is kept:
                del self._kept[kept.lease]

    def close(self) -> None:
        with self._lock:
            self._kept.clear()
        self._stream.close()

    # -- called by the stream

    def wanted(self) -> bool:
        return bool(self._kept)

    def opened(self) -> None:
        self._forget_sent()  # nobody knows what the old stream still did: renew all at once

    def broken(self) -> None:
        self._forget_sent()

    def refused(self, error: EtcdError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("leases cannot be kept alive, which is tried again: %s", error)

    def received(self, reply: Any) -> None:
        now_s = time.monotonic()
        self._complained = False
        with self._lock:
            kept = self._kept.get(reply.ID)
            if kept is None:
                return
            kept.sent_s = None
            if reply.TTL > 0:
                kept.unknown, kept.due_s = False, now_s + kept.every_s
                return
            if lost := kept.unknown:
                del self._kept[reply.ID]
            kept.unknown, kept.due_s = True, now_s + ASK_AGAIN_S
        if not lost:
            self._stream.wake(kept.due_s)
            return
        try:
            kept.on_lost()
        except Exception:  # the caller's bug; the other leases are kept
            logger.exception("the callback for the loss of lease %x failed", kept.lease)

    def tick(self, now_s: float) -> float:
        silent_s = self._stream.silent_s(now_s)
        if silent_s is None:
            return now_s + NEVER_S  # the new stream wakes the clock
        next_s = now_s + NEVER_S
        late = None
        with self._lock:
            for kept in self._kept.values():
                if kept.sent_s is None and kept.due_s <= now_s:
                    kept.sent_s = now_s
                    self._stream.send(messages.LeaseKeepAliveRequest(ID=kept.lease))
                if kept.sent_s is None:
                    next_s = min(next_s, kept.due_s)
                    continue
                patience_s = min(PATIENCE_MAX_S, max(PATIENCE_MIN_S, kept.every_s / 2))
                next_s = min(next_s, kept.sent_s + patience_s)
                if now_s >= kept.sent_s + patience_s:
                    late = now_s - kept.sent_s
        if late is not None:
            self._stream.cut(f"a renewal was not answered in {late:.1f} s", leave_member=silent_s >= late)
            return now_s + NEVER_S
        return next_s

    def _forget_sent(self) -> None:
        with self._lock:
            for kept in self._kept.values():
                kept.sent_s, kept.due_s = None, 0.0
