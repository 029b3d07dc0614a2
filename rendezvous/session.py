"""One lease that is kept alive; its loss is one event that everybody can wait on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from spotrun.rendezvous.etcd import EtcdClient


class Session:
    """A lease of `ttl_s` (whole seconds, rounded up; etcd allows no less than about 2).

    When etcd says that the lease is gone, `lost` is set and then `on_lost` called, on a thread of the client. Raises
    EtcdError if the lease cannot be had.
    """

    def __init__(self, client: EtcdClient, ttl_s: float, on_lost: Callable[[], None]) -> None:
        self._client = client
        self._on_lost = on_lost
        self._closed = False
        self.lost = threading.Event()
        self.lease_id = client.grant(math.ceil(ttl_s))
        self._kept = client.keep_alive(self.lease_id, ttl_s, self._lose)

    def _lose(self) -> None:
        self.lost.set()
        self._on_lost()

    def close(self) -> None:
        """Renew no more and revoke the lease, which deletes its keys at once. Idempotent.

        Raises EtcdError where etcd could not be told; the lease then runs out by itself.
        """
        self._kept.cancel()
        if not self._closed:
            self._closed = True
            self._client.revoke(self.lease_id)
