"""`spotrun drain NODE`: from anywhere that reaches etcd, make a node of a running job leave."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from spotrun.config import check_readable, parse_endpoints, read_password
from spotrun.errors import UsageError
from spotrun.rendezvous.etcd import Compare, EtcdClient, EtcdConfig, KeyValue, Op
from spotrun.rendezvous.keys import Keys, check_run_id
from spotrun.rendezvous.state import Drain, encode

DEADLINE_S = 120.0
POLL_S = 0.2  # a person waits; a watch would spare nothing


@click.command()
@click.argument("node")
@click.option("--rdzv-endpoint", required=True, envvar="PET_RDZV_ENDPOINT", help="The etcd of the job.")
@click.option("--rdzv-id", required=True, envvar="PET_RDZV_ID", help="The job.")
@click.option("--deadline", "deadline_s", type=float, default=DEADLINE_S, show_default=True, help="Seconds it has.")
@click.option("--etcd-cacert", type=Path, envvar="SPOTRUN_ETCD_CACERT", help="CA certificate of etcd.")
@click.option("--etcd-cert", type=Path, envvar="SPOTRUN_ETCD_CERT", help="Client certificate.")
@click.option("--etcd-key", type=Path, envvar="SPOTRUN_ETCD_KEY", help="Its key.")
@click.option("--etcd-user", envvar="SPOTRUN_ETCD_USER", help="User of etcd.")
@click.option("--etcd-password-file", type=Path, envvar="SPOTRUN_ETCD_PASSWORD_FILE", help="File with the password.")
def drain(
    node: str,
    rdzv_endpoint: str,
    rdzv_id: str,
    deadline_s: float,
    etcd_cacert: Path | None,
    etcd_cert: Path | None,
    etcd_key: Path | None,
    etcd_user: str | None,
    etcd_password_file: Path | None,
) -> None:
    """Make NODE (its id, or the beginning of it) leave the job, and wait until it has.

    Jobs that use the training API lose no step.
    """
    if deadline_s < 0:
        raise UsageError(f"--deadline={deadline_s:g} is in the past: give 0 seconds or more.")
    for flag, path in (("--etcd-cacert", etcd_cacert), ("--etcd-cert", etcd_cert), ("--etcd-key", etcd_key)):
        if path is not None:
            check_readable(flag, path)
    keys = Keys(check_run_id(rdzv_id))
    password = read_password(etcd_password_file) if etcd_user else None
    config = EtcdConfig(parse_endpoints(rdzv_endpoint), etcd_cacert, etcd_cert, etcd_key, etcd_user, password)
    with EtcdClient(config) as client:
        client.check()
        found = _find(client, keys, node)
        name = Keys.name(found.key)
        record = encode(Drain(name, deadline_s, "spotrun drain"))
        # Under the node's own lease: the word goes when the node does.
        alive = Compare.created(found.key, found.create_revision)
        if not client.txn([alive], [Op.put(keys.drain(name), record, found.lease)]).succeeded:
            raise UsageError(f"{name} has just left the job {rdzv_id!r} by itself.")
        end_s = time.monotonic() + deadline_s + POLL_S
        while (there := client.get(found.key)) is not None and there.create_revision == found.create_revision:
            if time.monotonic() > end_s:
                raise UsageError(f"{name} is still in the job {rdzv_id!r} after {deadline_s:g} s; it knows of it.")
            time.sleep(POLL_S)
    sys.stdout.write(f"{name} has left the job {rdzv_id}.\n")


def _find(client: EtcdClient, keys: Keys, wanted: str) -> KeyValue:
    nodes, _ = client.get_prefix(keys.nodes)
    names = [Keys.name(node.key) for node in nodes]
    if wanted in names:
        return nodes[names.index(wanted)]
    fitting = [node for node, name in zip(nodes, names, strict=True) if name.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(names[:16]) or "none"
    what = "fits several nodes" if fitting else "is not in"
    raise UsageError(f"{wanted!r} {what} the job {keys.run_id!r}; its nodes: {there}.")
