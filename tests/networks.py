"""Machines with addresses of their own: network namespaces on one switch, so that cables can be cut and mended.

with network(4) as (etcd_host, a, b, c):
    a.popen(["spotrun", ...]); b.cut(); b.mend()
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_numbers = itertools.count()
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)


@dataclass(frozen=True)
class Host:
    """One machine. Its processes see its own network alone; the files are those of everybody."""

    namespace: str
    switch: str
    port: str
    address: str

    def command(self, command: list[str]) -> list[str]:
        """Run in place of the caller's process: a signal to it reaches the command itself."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(command), **options)

    def cut(self) -> None:
        """Nothing reaches the machine any more, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def mend(self) -> None:
        _ip("-n", self.switch, "link", "set", self.port, "up")


@contextlib.contextmanager
def network(hosts: int, subnet: str = "10.88.0") -> Iterator[list[Host]]:
    """`hosts` machines on one switch, which has a namespace, too: nothing is added to the interfaces of this host."""
    prefix = f"spotrun-{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    made: list[str] = []
    try:
        _ip("netns", "add", switch)
        made.append(switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        found = []
        for number in range(1, hosts + 1):
            host = Host(f"{prefix}-{number}", switch, f"port{number}", f"{subnet}.{number}")
            _ip("netns", "add", host.namespace)
            made.append(host.namespace)
            _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", host.port, "netns", switch)
            _ip("-n", switch, "link", "set", host.port, "master", "bridge", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host.namespace, "link", "set", device, "up")
            found.append(host)
        yield found
    finally:
        for name in made:
            _ip("netns", "del", name)


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
