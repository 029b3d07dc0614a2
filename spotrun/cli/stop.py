"""`spotrun stop`: end a running job for all of its nodes, its state saved first."""

from __future__ import annotations

import secrets
import sys
import time

import click

from spotrun.cli.running_job import RunningJob, of_running_job
from spotrun.cli.status import read_known
from spotrun.errors import UsageError
from spotrun.launcher.job_status import read, status_of
from spotrun.launcher.ledger import Entry, append
from spotrun.rendezvous.etcd import Compare, EtcdClient, Op
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import Drain, Outcome, encode
from spotrun.wording import plural

DEADLINE_S = 120.0
POLL_S = 0.2  # a person waits; a watch would spare nothing
BY = "spotrun stop"


@click.command()
@click.option("--deadline", "deadline_s", type=float, default=DEADLINE_S, show_default=True, help="Seconds it has.")
@click.option("--now", is_flag=True, help="Save nothing: the workers get SIGTERM, and --shutdown-timeout to end.")
@of_running_job
def stop(job: RunningJob, deadline_s: float, now: bool) -> None:
    """End the job on all nodes, and wait until they have left.

    Jobs that use the training API agree on a step and save it. Nodes that come later are told that the job was stopped.
    """
    if deadline_s < 0:
        raise UsageError(f"--deadline={deadline_s:g} is in the past: give 0 seconds or more.")
    keys = job.keys
    with job.client() as client:
        found = read_known(client, keys)
        if found.outcome is not None:
            raise UsageError(f"The job {keys.run_id!r} has already ended ({found.outcome.state}).")
        count, end_s = len(found.nodes), time.monotonic() + deadline_s
        if not now:
            _drain_all(client, keys, deadline_s)
            _wait(client, keys, end_s)
        outcome = Outcome("stopped", f"{BY}{' --now' if now else ''}", BY)
        if client.txn([Compare.absent(keys.outcome)], [Op.put(keys.outcome, encode(outcome))]).succeeded:
            text = f"{plural(count, 'node')} told to end{'' if now else ', after saving'}"
            append(client, keys, Entry(secrets.token_hex(8), "stopped", "", time.time(), message=text))
        left = _wait(client, keys, end_s + (deadline_s if now else 0.0))
        if left:
            raise UsageError(f"{', '.join(left)} of the job {keys.run_id!r} did not end within {deadline_s:g} s.")
        durable = status_of(read(client, keys)).durable_step
    saved = f"its newest checkpoint is that of step {durable}" if durable else "it has no checkpoint"
    sys.stdout.write(f"The job {keys.run_id} was stopped: {plural(count, 'node')} left; {saved}.\n")


def _drain_all(client: EtcdClient, keys: Keys, deadline_s: float) -> None:
    """In one act, so that all nodes hear of all of them: only then the state is saved for nobody to hold it."""
    nodes, _ = client.get_prefix(keys.nodes)
    names = [Keys.name(node.key) for node in nodes]
    for first in range(0, len(nodes), 100):  # etcd takes 128 operations at once
        part = slice(first, first + 100)
        alive = [Compare.created(node.key, node.create_revision) for node in nodes[part]]
        ops = [
            Op.put(keys.drain(name), encode(Drain(name, deadline_s, BY)), node.lease)
            for name, node in zip(names[part], nodes[part], strict=True)
        ]
        if not client.txn(alive, ops).succeeded:  # one has just gone
            _drain_all(client, keys, deadline_s)
            return


def _wait(client: EtcdClient, keys: Keys, end_s: float) -> list[str]:
    """The nodes that are left at the end."""
    while (there := client.get_prefix(keys.nodes, keys_only=True)[0]) and time.monotonic() < end_s:
        time.sleep(POLL_S)
    return [Keys.name(node.key) for node in there]
