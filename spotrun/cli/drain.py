"""`spotrun drain NODE`: from anywhere that reaches etcd, make a node of a running job leave."""

from __future__ import annotations

import sys
import time

import click

from spotrun.cli.running_job import RunningJob, find_name, of_running_job
from spotrun.errors import UsageError
from spotrun.rendezvous.etcd import Compare, Op
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import Drain, encode

DEADLINE_S = 120.0
POLL_S = 0.2  # a person waits; a watch would spare nothing


@click.command()
@click.argument("node")
@click.option("--deadline", "deadline_s", type=float, default=DEADLINE_S, show_default=True, help="Seconds it has.")
@of_running_job
def drain(job: RunningJob, node: str, deadline_s: float) -> None:
    """Make NODE (its id, or the beginning of it) leave the job, and wait until it has.

    Jobs that use the training API lose no step.
    """
    if deadline_s < 0:
        raise UsageError(f"--deadline={deadline_s:g} is in the past: give 0 seconds or more.")
    keys = job.keys
    with job.client() as client:
        nodes = {Keys.name(found.key): found for found in client.get_prefix(keys.nodes)[0]}
        name = find_name(list(nodes), node, f"the job {keys.run_id!r}; its nodes")
        found = nodes[name]
        record = encode(Drain(name, deadline_s, "spotrun drain"))
        # Under the node's own lease: the word goes when the node does.
        alive = Compare.created(found.key, found.create_revision)
        if not client.txn([alive], [Op.put(keys.drain(name), record, found.lease)]).succeeded:
            raise UsageError(f"{name} has just left the job {keys.run_id!r} by itself.")
        end_s = time.monotonic() + deadline_s + POLL_S
        while (there := client.get(found.key)) is not None and there.create_revision == found.create_revision:
            if time.monotonic() > end_s:
                raise UsageError(f"{name} is still in the job {keys.run_id!r} after {deadline_s:g} s; it knows of it.")
            time.sleep(POLL_S)
    sys.stdout.write(f"{name} has left the job {keys.run_id}.\n")
