"""By which address the other nodes would reach this one, and whether collectives would take the same."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from spotrun.doctor.finding import Finding, Grade, ok
from spotrun.rendezvous.creation import own_address

_VIRTUAL = ("lo", "docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "ifb", "tun", "tap")
_WHY_NAME = "gloo listens at the address of the host's own name; other nodes cannot reach loopback"


@dataclass(frozen=True, slots=True)
class Network:
    """What this host says of itself."""

    hostname: str
    resolves_to: tuple[str, ...]  # empty: its resolver does not know it
    interfaces: dict[str, tuple[str, ...]]  # those that are up, with their IPv4 and IPv6 addresses
    address: str  # what other nodes would get; empty where no endpoint was given


def read(endpoint: str | None) -> Network:
    name = socket.gethostname()
    try:
        addresses = tuple(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(name, None)))
    except OSError:
        addresses = ()
    up = {nic for nic, stats in psutil.net_if_stats().items() if stats.isup}
    interfaces = {
        nic: tuple(it.address.partition("%")[0] for it in listed if it.family in (socket.AF_INET, socket.AF_INET6))
        for nic, listed in psutil.net_if_addrs().items()
        if nic in up
    }
    return Network(name, addresses, interfaces, own_address(endpoint, 2) if endpoint else "")


def judge(network: Network, environ: Mapping[str, str], several: bool) -> list[Finding]:
    """`several`: more than one node is expected, so that what only hurts then is a failure."""
    grave = Grade.FAIL if several else Grade.WARN
    return [*_name(network, environ, grave), *_address(network, several), *_interfaces(network, environ)]


def listens(address: str) -> Finding:
    """That a connection to a port of this host at `address` arrives; a firewall between hosts shows only pairwise."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 0), family=family) as server:
            port = server.getsockname()[1]
            with contextlib.closing(socket.create_connection((address, port), timeout=2.0)):
                return ok("ports", f"a listener at {address} is reached from here")
    except OSError as error:
        return Finding(
            "ports",
            Grade.FAIL,
            f"a listener at {address} is not reached even from here: {error}",
            "agents, stores and collectives listen on ports that the system chooses",
            "iptables -L -n   # and let nodes talk on all ports: the range is net.ipv4.ip_local_port_range",
        )


def _outside(network: Network) -> dict[str, str]:
    """Interface -> its address, of those by which other hosts could come."""
    found = {}
    for nic, addresses in network.interfaces.items():
        if nic.startswith(_VIRTUAL):
            continue
        usable = [it for it in addresses if not _loopback(it) and not ipaddress.ip_address(it).is_link_local]
        if usable:
            found[nic] = usable[0]
    return found


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _name(network: Network, environ: Mapping[str, str], grave: Grade) -> list[Finding]:
    name, addresses = network.hostname, network.resolves_to
    if environ.get("GLOO_SOCKET_IFNAME"):
        return []
    outside = _outside(network)
    nic = next(iter(outside), "eth0")
    fix = f"export GLOO_SOCKET_IFNAME={nic}   # or in /etc/hosts: {outside.get(nic, 'ADDRESS')} {name}"
    if not addresses:
        return [Finding("host name", grave, f"the host's own name, {name}, does not resolve", _WHY_NAME, fix)]
    if all(_loopback(it) for it in addresses):
        text = f"the host's own name, {name}, resolves to {addresses[0]}"
        return [Finding("host name", grave, text, _WHY_NAME, fix)]
    return [ok("host name", f"{name} resolves to {', '.join(addresses)}")]


def _address(network: Network, several: bool) -> list[Finding]:
    address = network.address
    if not address:
        return []
    if _loopback(address):
        if not several:
            return [ok("address", f"this node would be {address}: fit for jobs on this host alone")]
        return [
            Finding(
                "address",
                Grade.WARN,
                f"other nodes would get the address {address}",
                "it leads them to themselves; only nodes on this very host can use it",
                "give --rdzv-endpoint by the name that all nodes use, or --local-addr=ADDRESS",
            )
        ]
    return [ok("address", f"other nodes would get the address {address}")]


def _interfaces(network: Network, environ: Mapping[str, str]) -> list[Finding]:
    found = []
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        wanted = environ.get(variable, "").lstrip("^=")
        if not wanted or environ[variable].startswith("^"):
            continue
        prefix = variable.startswith("NCCL") and not environ[variable].startswith("=")  # NCCL takes beginnings of names
        for nic in wanted.split(","):
            if not any(it == nic or (prefix and it.startswith(nic)) for it in network.interfaces):
                there = ", ".join(network.interfaces)
                text = f"{variable} names {nic}, which is not up; there is {there}"
                found.append(Finding("interface", Grade.FAIL, text, "no collective will start", f"unset {variable}"))
    outside = _outside(network)
    if len(outside) > 1 and not found and not environ.get("GLOO_SOCKET_IFNAME"):
        listed = ", ".join(f"{nic} ({address})" for nic, address in outside.items())
        nic = next((nic for nic, address in outside.items() if address == network.address), next(iter(outside)))
        found.append(
            Finding(
                "interface",
                Grade.WARN,
                f"there are several interfaces: {listed}",
                "gloo and NCCL choose for themselves, and may choose differently on each node",
                f"export GLOO_SOCKET_IFNAME={nic} NCCL_SOCKET_IFNAME={nic}",
            )
        )
    return found
