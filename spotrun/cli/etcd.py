"""`spotrun etcd`: becomes an etcd with the settings that jobs need, on a host that stays."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from spotrun.errors import UsageError
from spotrun.rendezvous.embedded import find_etcd

CLIENT_PORT, PEER_PORT = 2379, 2380  # etcd's registered ports
HEARTBEAT_MS = 100  # between members; more than the round trip between zones of a region
ELECTION_MS = 1000  # ten heartbeats, etcd's own advice: a dead leader is replaced well within a lease of 4 s
COMPACTION = "10m"  # history is kept this long; a watch that lags more reads everything again
QUOTA_BYTES = 2 * 1024**3  # etcd's default, said aloud: a job holds some kilobytes


@dataclass(frozen=True, slots=True)
class Member:
    """One member as its flags describe it."""

    name: str
    host: str
    port: int
    peer_port: int
    data_dir: Path
    cluster: str  # etcd's --initial-cluster; empty for a member alone

    @property
    def url_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def endpoints(self) -> str:
        """What --rdzv-endpoint takes: every member of the cluster, by the client port of this one.

        Members that share a host have ports of their own that only they know: then it is this member alone.
        """
        hosts = re.findall(r"=https?://(\[[^\]]+\]|[^:/,]+)", self.cluster)
        if len(set(hosts)) < max(2, len(hosts)):
            hosts = [self.url_host]
        return ",".join(f"{host}:{self.port}" for host in hosts)

    def arguments(self) -> list[str]:
        """etcd's flags."""
        listen = _listen_host(self.host)
        peer_url = f"http://{self.url_host}:{self.peer_port}"
        return [
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls=http://{listen}:{self.port}",
            f"--advertise-client-urls=http://{self.url_host}:{self.port}",
            f"--listen-peer-urls=http://{listen}:{self.peer_port}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster={self.cluster or f'{self.name}={peer_url}'}",
            f"--heartbeat-interval={HEARTBEAT_MS}",
            f"--election-timeout={ELECTION_MS}",
            "--auto-compaction-mode=periodic",
            f"--auto-compaction-retention={COMPACTION}",
            f"--quota-backend-bytes={QUOTA_BYTES}",
            "--log-level=warn",
        ]


@click.command()
@click.option("--host", metavar="HOST", help="The name or address by which the nodes reach this host.  [its own name]")
@click.option("--port", type=click.IntRange(1, 65535), default=CLIENT_PORT, show_default=True, help="For clients.")
@click.option("--peer-port", type=click.IntRange(1, 65535), default=PEER_PORT, show_default=True, help="For members.")
@click.option("--data-dir", metavar="DIR", default="spotrun-etcd", show_default=True, help="Where the data is kept.")
@click.option("--name", metavar="NAME", help="The name of this member.  [its host]")
@click.option(
    "--initial-cluster",
    metavar="NAME=URL,...",
    default="",
    help="All members: a=http://host-a:2380,b=http://host-b:2380",
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- ETCD FLAGS]")
def etcd(
    host: str | None,
    port: int,
    peer_port: int,
    data_dir: str,
    name: str | None,
    initial_cluster: str,
    more: tuple[str, ...],
) -> None:
    """Run an etcd for jobs on this host, in the foreground, until it is stopped.

    One member is a single point of failure; three on three hosts survive the loss of any. Give each of them the same
    --initial-cluster. Flags behind -- go to etcd as they are, such as -- --cert-file=server.pem --key-file=server.key.
    """
    address = host or _own_name()
    member = Member(name or address, address, port, peer_port, Path(data_dir).expanduser().resolve(), initial_cluster)
    check(member)
    binary = str(find_etcd())
    sys.stdout.write(
        f"etcd for spotrun at {member.endpoints}, data in {member.data_dir}; Ctrl-C stops it. On each node:\n\n"
        f"  spotrun --nnodes=2:8 --rdzv-endpoint={member.endpoints} --rdzv-id=JOB train.py\n\n"
    )
    sys.stdout.flush()
    # etcd takes flags from the environment, too, and refuses to start with both.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_") or "ARCH" in k}
    os.execve(binary, [binary, *member.arguments(), *more], environment)


def check(member: Member) -> None:
    """Raises UsageError for what etcd would say in a log line that nobody can read."""
    names = re.findall(r"(?:^|,)([^=,]+)=", member.cluster)
    if member.cluster and not re.fullmatch(r"[^=,]+=https?://[^=,]+(,[^=,]+=https?://[^=,]+)*", member.cluster):
        raise UsageError(f"--initial-cluster={member.cluster} is no list of members: give NAME=http://HOST:2380,...")
    if member.cluster and member.name not in names:
        raise UsageError(f"--initial-cluster names {', '.join(names)} but not this member, {member.name}: give --name.")
    if member.data_dir.exists() and not member.data_dir.is_dir():
        raise UsageError(f"--data-dir={member.data_dir} is not a directory: give another one.")
    for flag, port in (("--port", member.port), ("--peer-port", member.peer_port)):
        if _taken(port):
            raise UsageError(f"Port {port} of this host is taken: give another one by {flag}, or stop what has it.")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _own_name() -> str:
    """The full name of this host, unless its resolver only knows it as localhost."""
    full = socket.getfqdn()
    return socket.gethostname() if full.startswith("localhost") else full


def _listen_host(host: str) -> str:
    """Loopback stays loopback; any other name means every interface, since it may resolve to another one here."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "0.0.0.0"
    if address.version == 6:
        return f"[{address}]"
    return str(address) if address.is_loopback else "0.0.0.0"
