"""`spotrun doctor`: what would go wrong on this host, or between several, before a job is started."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import click

from spotrun.cli.running_job import ETCD_OPTIONS, EtcdFlags, with_options
from spotrun.errors import EtcdError, UsageError

if TYPE_CHECKING:
    from spotrun.doctor.finding import Finding

WAIT_S = 60.0
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--rdzv-endpoint", envvar="PET_RDZV_ENDPOINT", help="The etcd that jobs are to use.")
@click.option("--checkpoint-dir", metavar="DIR", help="Where checkpoints are to be kept: a path or an fsspec URL.")
@click.option(
    "--nodes-expected",
    type=click.IntRange(2),
    metavar="N",
    help="Examine what is between N nodes that run this at once.",
)
@click.option(
    "--wait", "wait_s", type=click.FloatRange(1), default=WAIT_S, show_default=True, help="Seconds to wait for them."
)
@click.option("--rdzv-id", default="doctor", show_default=True, help="Tells such meetings apart.")
@click.option("--node-id", metavar="NAME", help="What this node is called in the findings.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@with_options(ETCD_OPTIONS)
def doctor(
    rdzv_endpoint: str | None,
    checkpoint_dir: str | None,
    nodes_expected: int | None,
    wait_s: float,
    rdzv_id: str,
    node_id: str | None,
    as_json: bool,
    **etcd: Any,
) -> None:
    """Find out what is wrong before a job starts: etcd, network, storage, GPUs, limits of this host.

    Each finding says what is the matter, why it matters, and the command that mends it. Exit code 1: something would
    stop a job. Run it on several nodes at once with --nodes-expected, and each pair of them is measured.
    """
    from spotrun.doctor import machine, network
    from spotrun.doctor import storage as place
    from spotrun.rendezvous.keys import check_node_id, check_run_id

    if nodes_expected and not rdzv_endpoint:
        raise UsageError("--nodes-expected needs --rdzv-endpoint: the nodes meet there.")
    config = EtcdFlags(**etcd).config(rdzv_endpoint) if rdzv_endpoint else None
    check_run_id(rdzv_id)
    if node_id is not None:
        check_node_id(node_id)
    host = network.read(config.endpoints[0] if config else None)
    findings = [*machine.judge(machine.read(os.environ)), machine.notices()]
    findings += network.judge(host, os.environ, several=nodes_expected is not None)
    findings.append(network.listens(host.address or "127.0.0.1"))
    if checkpoint_dir:
        findings += place.look(checkpoint_dir)
    if config:
        from spotrun.doctor import etcd as member

        findings += member.look(config)
        if nodes_expected:
            from spotrun.doctor.finding import Finding, Grade
            from spotrun.doctor.meeting import meet

            try:
                findings += meet(config, f"doctor:{rdzv_id}", nodes_expected, wait_s, checkpoint_dir, node_id)
            except EtcdError as error:
                findings.append(
                    Finding("nodes", Grade.FAIL, str(error), "the nodes meet in etcd", "see the findings on etcd")
                )
            except OSError as error:
                why = "each node hosts the meetings of its pairs, and puts a file where checkpoints are to be"
                findings.append(Finding("nodes", Grade.FAIL, str(error), why, "see the findings above"))
    _show(findings, node_id or socket.gethostname(), as_json)


def _show(findings: list[Finding], node: str, as_json: bool) -> None:
    from spotrun.doctor.finding import as_json as form

    told = form(node, findings)
    if as_json:
        click.echo(json.dumps(told))
    else:
        colour = False if os.environ.get("NO_COLOR") else None
        for it in findings:
            mark = click.style(f"{it.grade.value:<5}", fg=_COLOURS[it.grade.value])
            click.echo(f"{mark} {it.check}: {it.what}", color=colour)
            if it.fix:
                click.echo(f"      why: {it.why}\n      fix: {it.fix}")
    if not told["ok"]:
        sys.exit(1)
