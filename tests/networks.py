"""Machines with addresses of their own: network namespaces on one switch, so that cables can be cut and mended.

with network(4) as (etcd_host, a, b, c):
    a.popen(["spotrun", ...]); b.cut(); b.mend()
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_numbers = itertools.count()
_NOBODY = "02:00:00:00:00:00"  # the address of no machine
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)


@dataclass(frozen=True)
class Host:
    """One machine. Its processes see its own network alone; the files are those of everybody."""

    namespace: str
    switch: tuple[str, ...]  # how `ip` is told its namespace
    port: str
    address: str

    def command(self, command: Sequence[str]) -> tuple[str, ...]:
        """Run in place of the caller's process: a signal to it reaches the command itself."""
        return ("ip", "netns", "exec", self.namespace, *command)

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(command), **options)

    def cut(self) -> None:
        """Nothing reaches the machine any more, and nobody is told."""
        _ip(*self.switch, "link", "set", self.port, "down")

    def mend(self) -> None:
        _ip(*self.switch, "link", "set", self.port, "up")

    @contextlib.contextmanager
    def deaf_to(self, other: Host) -> Iterator[None]:
        """What `other` sends to this machine is lost on the way, and nobody is told."""
        neighbour = (other.namespace, "neigh", "replace", self.address, "dev", "eth0")
        _ip("-n", *neighbour, "lladdr", _NOBODY, "nud", "permanent")
        try:
            yield
        finally:
            _ip("-n", other.namespace, "neigh", "del", self.address, "dev", "eth0")


@contextlib.contextmanager
def network(hosts: int, subnet: str = "10.88.0", *, here: bool = False) -> Iterator[list[Host]]:
    """`hosts` machines on one switch, which has a namespace, too: nothing is added to the interfaces of this host.

    `here`: the switch is in the caller's own namespace, which has the address SUBNET.254 then (see `own_network`).
    """
    prefix = f"spotrun-{os.getpid()}-{next(_numbers)}"
    made: list[str] = []
    switch: tuple[str, ...] = ()
    try:
        if not here:
            switch = ("-n", f"{prefix}-switch")
            _ip("netns", "add", switch[1])
            made.append(switch[1])
        _ip(*switch, "link", "add", "bridge", "type", "bridge")
        _ip(*switch, "link", "set", "bridge", "up")
        if here:
            _ip("addr", "add", f"{subnet}.254/24", "dev", "bridge")
        found = []
        for number in range(1, hosts + 1):
            host = Host(f"{prefix}-{number}", switch, f"port{number}", f"{subnet}.{number}")
            _ip("netns", "add", host.namespace)
            made.append(host.namespace)
            _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", "to-switch")
            _ip("-n", host.namespace, "link", "set", "to-switch", "netns", *(switch[1:] or (str(os.getpid()),)))
            _ip(*switch, "link", "set", "to-switch", "name", host.port)
            _ip(*switch, "link", "set", host.port, "master", "bridge", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host.namespace, "link", "set", device, "up")
            found.append(host)
        yield found
    finally:
        for name in made:
            _ip("netns", "del", name)
        if here:
            _ip("link", "del", "bridge")


def own_network() -> bool:
    """From now on this process has a network and mounts of its own; False where that is not allowed.

    Before it has threads. What it adds to them vanishes with it.
    """
    new_mounts, new_network = 0x00020000, 0x40000000
    if shutil.which("ip") is None or ctypes.CDLL(None).unshare(new_mounts | new_network) != 0:
        return False
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    _ip("link", "set", "lo", "up")
    return True


@contextlib.contextmanager
def etcd_on(host: Host, directory: Path) -> Iterator[str]:
    """An etcd as `spotrun etcd` runs it; its endpoint."""
    command = [sys.executable, "-m", "spotrun", "etcd", f"--host={host.address}", f"--data-dir={directory / 'etcd'}"]
    with (directory / "etcd.log").open("wb") as log:
        server = host.popen(command, stdout=log, stderr=log)
    try:
        yield f"{host.address}:2379"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
