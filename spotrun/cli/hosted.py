"""The etcd that a launch starts by itself: for one node alone, or on the host that the endpoint names."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import queue
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spotrun.config import parse_endpoints, split_endpoint
from spotrun.errors import EtcdError
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.keys import Keys

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

logger = logging.getLogger("spotrun")

LOOK_S = 2.0  # to connect to a port of this very host; a full backlog is the only reason for it to take long
LINGER_S = 10.0  # after the end of the job the others need etcd once more to learn of it; far more than they need


@contextlib.contextmanager
def own_etcd() -> Iterator[str]:
    """The endpoint of an etcd on loopback for this launch alone; its data goes with it."""
    with EmbeddedEtcd() as etcd:
        yield etcd.endpoint


@contextlib.contextmanager
def etcd_where_named(config: LaunchConfig) -> Iterator[str]:
    """`config`'s endpoint; if it names a port of this very host where nothing listens, an etcd is run there meanwhile.

    So it takes no more set-up than torchrun's own store does. An etcd of several members, or one with TLS or users, is
    never started here. When the job has ended, the other nodes get a moment to learn of it.
    """
    endpoints = parse_endpoints(config.rdzv_endpoint)
    etcd = None
    if len(endpoints) == 1 and not {"cacert", "cert", "key", "user"}.intersection(config.rdzv_configs):
        etcd = _start_if_missing(*split_endpoint(endpoints[0]))
    if etcd is None:
        yield config.rdzv_endpoint
        return
    logger.warning(
        "Nothing listens at %s, which is this host: an etcd was started here for the job. It ends with this agent, so "
        "this host is now a single point of failure; `spotrun etcd` on a stable host is not.",
        endpoints[0],
    )
    try:
        yield config.rdzv_endpoint
    except Exception:  # the job failed, and the others shall read so; not when this node is told to leave
        _linger(endpoints[0], config.run_id)
        raise
    else:
        _linger(endpoints[0], config.run_id)
    finally:
        etcd.stop()


def _start_if_missing(host: str, port: int) -> EmbeddedEtcd | None:
    from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname

    if not _matches_machine_hostname(host):
        return None
    while not _listens(host, port):
        with _turn(port) as mine:
            # Looked at once more: the agent whose turn it was before has ended it, with its etcd serving.
            if mine and not _listens(host, port):
                etcd = EmbeddedEtcd(host=_bind_address(host), port=port)
                etcd.start()
                return etcd
    return None


@contextlib.contextmanager
def _turn(port: int) -> Iterator[bool]:
    """Whether it is ours to start an etcd at `port`, of all agents on this host; if not, wait until theirs is done.

    The lock is a socket with an abstract name: the kernel frees it with its process, and nothing is left in a folder.
    Who comes second connects to it, and hears of its end by the end of the connection.
    """
    name = f"\0spotrun-etcd-{port}"
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(name)
            lock.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            with contextlib.suppress(OSError):
                lock.connect(name)
                lock.recv(1)
            yield False
            return
        yield True


def _listens(host: str, port: int) -> bool:
    """Whether there is somebody at the port; only a plain refusal says no, the rest is for the client to tell."""
    try:
        socket.create_connection((host, port), LOOK_S).close()
    except OSError as error:
        return error.errno != errno.ECONNREFUSED
    return True


def _bind_address(host: str) -> str:
    """Where a server listens so that `host` reaches it: loopback stays loopback, a name means every interface."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "0.0.0.0"
    return str(address)


def _linger(endpoint: str, run_id: str) -> None:
    """Wait until no node of the job is left in etcd, at most LINGER_S."""
    from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig

    changed: queue.SimpleQueue[object] = queue.SimpleQueue()
    end_s = time.monotonic() + LINGER_S
    try:
        with EtcdClient(EtcdConfig((endpoint,))) as client:
            prefix = Keys(run_id).nodes
            nodes, revision = client.get_prefix(prefix, keys_only=True)
            client.watch(prefix, prefix=True, start_revision=revision + 1, on_event=changed.put, on_error=changed.put)
            while nodes and (left_s := end_s - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    changed.get(timeout=left_s)
                nodes, _ = client.get_prefix(prefix, keys_only=True)
    except EtcdError as error:
        logger.warning("The other nodes may not learn how the job ended: %s", error)
