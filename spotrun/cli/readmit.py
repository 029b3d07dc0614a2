"""`spotrun readmit NODE`: let a node in again that --quarantine keeps out, its earlier failures forgotten."""

from __future__ import annotations

import sys

import click

from spotrun.cli.running_job import RunningJob, find_name, of_running_job
from spotrun.rendezvous.etcd import Op
from spotrun.rendezvous.keys import Keys


@click.command()
@click.argument("node")
@of_running_job
def readmit(job: RunningJob, node: str) -> None:
    """Let NODE (its id, or the beginning of it) in again. It was told to end, so start it once more, too."""
    keys = job.keys
    with job.client() as client:
        kept_out = [Keys.name(found.key) for found in client.get_prefix(keys.quarantine, keys_only=True)[0]]
        name = find_name(kept_out, node, f"the quarantine of the job {keys.run_id!r}; kept out")
        client.txn([], [Op.delete(keys.quarantined(name)), Op.delete_prefix(keys.faults_of(name))])
    sys.stdout.write(f"{name} may join the job {keys.run_id} again.\n")
