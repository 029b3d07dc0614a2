"""`spotrun status`: how a job stands, from any machine that reaches its etcd; --watch keeps it before one's eyes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.live import Live

from spotrun.cli.running_job import RunningJob, of_running_job
from spotrun.cli.status_view import WIDTH, view
from spotrun.errors import EtcdError, UsageError
from spotrun.launcher.job_status import Found, JobStatus, read, status_of
from spotrun.rendezvous.etcd import EtcdClient
from spotrun.rendezvous.keys import Keys

LEAST_S = 0.5  # between two readings: a thousand nodes write a thousand words a second
REDRAW_S = 1.0  # seconds left are counted down


@click.command()
@click.option("--watch", is_flag=True, help="Go on until the job has ended, or Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON, with --watch one a change.")
@of_running_job
def status(job: RunningJob, watch: bool, as_json: bool) -> None:
    """How the job stands: its nodes, where training is, what is saved, what incidents have cost."""
    with job.client() as client:
        found = read_known(client, job.keys)
        if not watch:
            _show(status_of(found), as_json)
        elif as_json or not sys.stdout.isatty():
            for now in changes(client, job.keys, found):
                _show(status_of(now), as_json)
        else:
            _live(client, job.keys, found)


def read_known(client: EtcdClient, keys: Keys) -> Found:
    """Raises UsageError where etcd knows no such job."""
    found = read(client, keys)
    if found.job is None and not found.nodes:
        known, _ = client.get_prefix("/spotrun/", keys_only=True)
        names = sorted({kv.key.split("/")[2] for kv in known})
        there = f"it has {', '.join(names[:8])}" if names else "it has none"
        raise UsageError(f"There is no job {keys.run_id!r} in this etcd: {there}; give another --rdzv-id.")
    return found


def changes(client: EtcdClient, keys: Keys, found: Found) -> Iterator[Found]:
    """The job now and whenever something of it changes, until it has ended."""
    yield found
    with _changed(client, keys, found.revision) as changed:
        while found.outcome is None:
            changed.wait()
            time.sleep(LEAST_S)  # whatever comes meanwhile is read along
            changed.clear()
            found = read(client, keys)
            yield found


@contextmanager
def _changed(client: EtcdClient, keys: Keys, revision: int) -> Iterator[threading.Event]:
    changed = threading.Event()

    def tell(_: object) -> None:
        changed.set()

    watch = client.watch(keys.root, prefix=True, start_revision=revision + 1, on_event=tell, on_error=tell)
    try:
        yield changed
    finally:
        watch.cancel()


def _show(now: JobStatus, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(now.to_json() + "\n")
    else:
        console = Console(width=WIDTH, highlight=False)
        console.print(view(now))
    sys.stdout.flush()


def _live(client: EtcdClient, keys: Keys, found: Found) -> None:
    console = Console(highlight=False)
    read_s = time.monotonic()
    with (
        _changed(client, keys, found.revision) as changed,
        Live(view(status_of(found)), console=console, auto_refresh=False) as live,
    ):
        try:
            while found.outcome is None:
                if changed.wait(REDRAW_S):
                    changed.clear()
                    try:
                        found, read_s = read(client, keys), time.monotonic()
                    except EtcdError as error:
                        console.print(f"{error}")
                live.update(view(status_of(found), time.monotonic() - read_s), refresh=True)
                time.sleep(LEAST_S)
        except KeyboardInterrupt:
            pass
