"""`spotrun events`: the ledger of a job, as it lies in etcd; --follow goes on with what comes."""

from __future__ import annotations

import dataclasses
import json
import queue
import sys
import time

import click

from spotrun.cli.running_job import RunningJob, of_running_job
from spotrun.cli.status import read_known
from spotrun.errors import EtcdError
from spotrun.launcher.ledger import ENDS, Entry, of_values
from spotrun.rendezvous.etcd import WatchEvent


@click.command()
@click.option("--follow", is_flag=True, help="Go on until the job has ended, or Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each.")
@of_running_job
def events(job: RunningJob, follow: bool, as_json: bool) -> None:
    """What has happened to the job, oldest first: rounds, notices, failures, and what each incident cost."""
    with job.client() as client:
        found = read_known(client, job.keys)
        for entry in found.ledger:
            _write(entry, as_json)
        if not follow or found.outcome is not None:
            return
        news: queue.SimpleQueue[WatchEvent | EtcdError] = queue.SimpleQueue()
        start = found.revision + 1
        client.watch(job.keys.ledger, prefix=True, start_revision=start, on_event=news.put, on_error=news.put)
        while True:
            event = news.get()
            if isinstance(event, EtcdError):
                raise event
            for entry in of_values([event.value]):
                _write(entry, as_json)
                if entry.what in ENDS:
                    return


def _write(entry: Entry, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"v": 1, **dataclasses.asdict(entry)}) + "\n")
    else:
        sys.stdout.write(line(entry) + "\n")
    sys.stdout.flush()


def line(entry: Entry) -> str:
    """For people. The time is that of the node's clock, in the time zone of the reader."""
    text = entry.message or ", ".join(f"{name} {value}" for name, value in entry.detail.items())
    if entry.phases:
        text += " [" + ", ".join(f"{phase.name} +{phase.seconds:.2f}" for phase in entry.phases) + "]"
    return f"{time.strftime('%H:%M:%S', time.localtime(entry.wall_s))}  {entry.node:<12}  {entry.what:<12}  {text}"
