"""From the parameters of a rendezvous to a handler that has reached etcd."""

from __future__ import annotations

import os
import queue
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.rendezvous.api import RendezvousParameters

from spotrun.config import parse_endpoints, parse_grow, parse_on_loss, parse_quarantine, read_password
from spotrun.errors import UsageError
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.handler import EtcdRendezvousHandler, StoreHost
from spotrun.rendezvous.keys import check_node_id, check_run_id
from spotrun.rendezvous.liveness import Liveness, listen
from spotrun.rendezvous.membership import Membership
from spotrun.rendezvous.reactor import Reactor
from spotrun.rendezvous.settings import GROW_WINDOW_S, JOIN_WINDOW_S, LEASE_TTL_S, Settings
from spotrun.rendezvous.state import Job, Node

TIMEOUT_S = 900.0  # of a stock agent, as torch's launcher sets it


def create_handler(
    parameters: RendezvousParameters, changed: Callable[[], None] | None = None
) -> EtcdRendezvousHandler:
    """A handler that has reached etcd but not joined yet. With `changed`, its caller waits by itself, without limit.

    Raises UsageError for a bad value, EtcdError where etcd cannot be used.
    """
    run_id = check_run_id(parameters.run_id)
    grow, grow_window_s = parse_grow(str(parameters.get("grow", "now")))
    quarantine = parameters.get("quarantine")
    quarantine_after, quarantine_within_s = parse_quarantine(str(quarantine)) if quarantine else (0, 0.0)
    settings = Settings(
        lease_ttl_s=_number(parameters, "lease_ttl", LEASE_TTL_S),
        join_window_s=_number(parameters, "join_window", JOIN_WINDOW_S),
        grow=grow,
        grow_window_s=GROW_WINDOW_S if grow_window_s is None else grow_window_s,
        quarantine_after=quarantine_after,
        quarantine_within_s=quarantine_within_s,
        replace_wait_s=parse_on_loss(str(parameters.get("on_loss", "shrink"))),
    )
    etcd = EtcdConfig(
        endpoints=parse_endpoints(parameters.endpoint),
        ca_cert=_path(parameters, "cacert"),
        cert=_path(parameters, "cert"),
        key=_path(parameters, "key"),
        user=parameters.get("user"),
        password=read_password(_path(parameters, "password_file")) if parameters.get("user") else None,
    )
    client = EtcdClient(etcd)
    try:
        client.check()
    except BaseException:  # an interrupt too: the connection must not stay
        client.close()
        raise
    address = parameters.local_addr or own_address(etcd.endpoints[0], parameters.max_nodes)
    agent_socket = listen(address)
    liveness = Liveness()
    liveness.serve(agent_socket)
    stores = StoreHost(address)
    reactor = Reactor()
    wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
    node_id = parameters.get("node_id") or f"{socket.gethostname().split('.')[0]}-{secrets.token_hex(2)}"
    node = Node(
        node_id=check_node_id(str(node_id)),
        incarnation=secrets.token_hex(4),
        address=address,
        agent_port=int(agent_socket.getsockname()[1]),
        store_port=stores.port,
        nproc=int(parameters.get("nproc", 1)),
        labels={name: str(value) for name in ("region", "zone") if (value := parameters.get(name))},
    )
    membership = Membership(
        client,
        run_id,
        Job(
            parameters.min_nodes,
            parameters.max_nodes,
            int(parameters.get("max_restarts", 0)),
            str(parameters.get("regions", "")),
        ),
        settings,
        node,
        changed or (lambda: wakeups.put(None)),
        reactor=reactor,
        liveness=liveness,
        fresh=bool(parameters.get_as_bool("fresh", False)),
    )
    return EtcdRendezvousHandler(
        client,
        membership,
        stores,
        reactor,
        liveness,
        agent_socket,
        wakeups,
        address,
        parameters.min_nodes,
        parameters.max_nodes,
        _number(parameters, "timeout", TIMEOUT_S),
    )


def own_address(endpoint: str, max_nodes: int) -> str:
    """The address by which this host reaches `endpoint`, hence one that the other nodes of the job can reach.

    Asking the kernel for the route avoids what the host's own name resolves to (127.0.1.1 on Debian).
    """
    host, _, port = endpoint.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[4])
            address = str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1" if max_nodes == 1 else socket.getfqdn()
    named = host not in ("localhost", "::1") and not host.startswith("127.")
    if named and address.startswith("127.") and max_nodes > 1:
        # The endpoint is this very host under a name that leads to loopback here, and elsewhere to its real address.
        return _default_route_address() or socket.getfqdn()
    return address


def _default_route_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: nothing is sent, the kernel only picks the source address
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _number(parameters: RendezvousParameters, name: str, default: float) -> float:
    value: Any = parameters.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number < 0:
        raise UsageError(f"{name}={value} in --rdzv-conf is not a number of seconds: give 0 or more.")
    return number


def _path(parameters: RendezvousParameters, name: str) -> Path | None:
    value = parameters.get(name)
    return Path(os.path.expanduser(str(value))) if value else None
