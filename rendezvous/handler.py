"""TorchElastic's RendezvousHandler over a Membership, and each round's store.

Every round has a fresh TCPStore on rank 0's agent. Its port has been listening since before the round: an agent holds
one unused listening socket in reserve and announces its port, so that whoever forms the round can name the store
without asking. Workers of the round find it by MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import logging
import queue
import socket
import time
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # where torch's stubs declare them
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from spotrun.errors import EtcdError, JobRefused
from spotrun.rendezvous.etcd import EtcdClient
from spotrun.rendezvous.liveness import Liveness, listen
from spotrun.rendezvous.membership import Membership, Standing
from spotrun.rendezvous.reactor import Reactor
from spotrun.rendezvous.state import Outcome, Report, Round

logger = logging.getLogger("spotrun")

BACKEND = "etcd-v3"
STORE_TIMEOUT_S = 60.0  # a client's patience with the store of a round; the round is given up long before


class StoreHost:
    """The listening socket in reserve, and the store of the present round where this node is its rank 0."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reserve = listen(address)
        self._store: TCPStore | None = None

    @property
    def port(self) -> int:
        return int(self._reserve.getsockname()[1])

    def serve(self) -> tuple[TCPStore, int]:
        """Open the store on the reserved socket; returns it and the port of the new reserve."""
        reserve, self._reserve = self._reserve, listen(self._address)
        port = int(reserve.getsockname()[1])
        self._store = None  # the last round's goes first
        self._store = TCPStore(
            self._address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=STORE_TIMEOUT_S),
            master_listen_fd=reserve.detach(),
        )
        return self._store, self.port

    def close(self) -> None:
        self._store = None
        self._reserve.close()


class EtcdRendezvousHandler(RendezvousHandler):
    """The interface that torch's own agents use; spotrun's agent uses the parts directly.

    With stock torchrun the workers make their own store on rank 0's host (`use_agent_store` is false): torch prefixes
    the keys of a shared one with its restart count, which differs between its agents.
    """

    def __init__(
        self,
        client: EtcdClient,
        membership: Membership,
        stores: StoreHost,
        reactor: Reactor,
        liveness: Liveness,
        agent_socket: socket.socket,
        wakeups: queue.SimpleQueue[None],
        address: str,
        min_nodes: int,
        max_nodes: int,
        timeout_s: float,
    ) -> None:
        self.client = client
        self.membership = membership
        self.stores = stores
        self._reactor = reactor
        self._liveness = liveness
        self._agent_socket = agent_socket
        self._wakeups = wakeups
        self.address = address
        self.min_nodes = min_nodes
        self.max_nodes = max_nodes
        self._timeout_s = timeout_s
        self._seen = 0
        self._started = False
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self.membership.keys.run_id

    def start(self) -> None:
        """Join, once."""
        if not self._started:
            self._started = True
            self.membership.start()

    def next_rendezvous(self) -> RendezvousInfo:
        """Block until there is a newer round with this node in it.

        Raises:
            RendezvousClosedError: the job has ended or refuses this node.
            RendezvousTimeoutError: none was formed within the `timeout` of --rdzv-conf.
            RendezvousConnectionError: the store of the round cannot be reached.
        """
        standing = self.membership.standing()
        if standing.round is not None and standing.round.number == self._seen:
            self.membership.report(Report(standing.node_id, standing.incarnation, self._seen, "rejoin"))
        self.start()
        current, group_rank = self._next_round()
        try:
            store = self.open_store(current, group_rank)
            info = RendezvousStoreInfo.build(group_rank, store, self.address)
        except (DistNetworkError, DistStoreError) as error:
            raise RendezvousConnectionError(f"The store of round {current.number} went away: {error}") from error
        return RendezvousInfo(store, group_rank, len(current.members), info)

    def open_store(self, current: Round, group_rank: int) -> Store:
        """The round's store, for this agent; opens it where this node is rank 0."""
        if group_rank == 0:
            store, port = self.stores.serve()
            self.membership.announce(store_port=port)
        else:
            timeout = timedelta(seconds=STORE_TIMEOUT_S)
            store = TCPStore(current.store_address, current.store_port, is_master=False, timeout=timeout)
        return PrefixStore("/spotrun/agents", store)

    def _next_round(self) -> tuple[Round, int]:
        end_s = time.monotonic() + self._timeout_s
        while True:
            standing = self.membership.standing()
            self._raise_end(standing)
            rank = standing.group_rank
            if standing.round is not None and standing.round.number > self._seen and rank is not None:
                self._seen = standing.round.number
                return standing.round, rank
            try:
                self._wakeups.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                raise RendezvousTimeoutError(
                    f"No round with this node was formed within {self._timeout_s:g} s: see --rdzv-conf timeout=SECONDS."
                ) from None

    @staticmethod
    def _raise_end(standing: Standing) -> None:
        if standing.outcome is not None:
            if standing.outcome.state == "succeeded":
                raise RendezvousGracefulExitError(standing.outcome.reason)
            raise RendezvousClosedError(f"The job {standing.outcome.state}: {standing.outcome.reason}")
        if isinstance(standing.refused, EtcdError):
            raise RendezvousConnectionError(str(standing.refused)) from standing.refused
        if isinstance(standing.refused, JobRefused):
            raise RendezvousClosedError(str(standing.refused)) from standing.refused
        if standing.refused is not None:
            raise standing.refused

    def is_closed(self) -> bool:
        return self.membership.standing().outcome is not None

    def set_closed(self) -> None:
        """End the job for all nodes."""
        self.membership.end(Outcome("stopped", "the rendezvous was closed", self.membership.standing().node_id))

    def num_nodes_waiting(self) -> int:
        """1 when there is a newer round or this node is in none: torch's agents then restart their workers."""
        standing = self.membership.standing()
        newer = standing.round is None or standing.round.number > self._seen
        return int(newer)

    def shutdown(self) -> bool:
        """Close the rendezvous for all, as torch's own do, and leave."""
        try:
            self.set_closed()
        except EtcdError as error:
            logger.warning("the rendezvous could not be closed: %s", error)
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Leave, and close everything. Idempotent."""
        if not self._closed:
            self._closed = True
            self.membership.leave()
            self._reactor.close()
            self._liveness.close()
            self._agent_socket.close()
            self.stores.close()
            self.client.close()
