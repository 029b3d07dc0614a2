"""Which network interface gloo is to take, where this host's own name would lead it astray.

Gloo offers its peers the address that the host's name resolves to. On many images that is 127.0.0.1 or 127.0.1.1, and
the workers of several nodes then never meet. NCCL chooses by itself, and never takes the loopback interface.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

import psutil

GLOO_ENV = "GLOO_SOCKET_IFNAME"


def gloo_environment(address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What is added to the workers' environment, where `address` is this node's for the others: often nothing."""
    if GLOO_ENV in environ:
        return {}
    interfaces = {
        name: [found.address.partition("%")[0] for found in addresses]
        for name, addresses in psutil.net_if_addrs().items()
    }
    name = interface_to_name(resolve(address), resolve(socket.gethostname()), interfaces)
    return {GLOO_ENV: name} if name else {}


def interface_to_name(reached_by: list[str], called: list[str], interfaces: Mapping[str, Iterable[str]]) -> str | None:
    """The interface that has one of the addresses `reached_by`; None where one of them is what the host is `called`."""
    if set(reached_by) & set(called):
        return None
    return next((name for name, has in interfaces.items() if set(has) & set(reached_by)), None)


def resolve(name: str) -> list[str]:
    """All addresses of a host; none where nobody knows it."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []
