"""`spotrun submit slurm|k8s`: write what the cluster is to run, and hand it over or print it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import cast

import click

from spotrun.cluster.kubernetes import GRACE_S, KubernetesOptions, manifest
from spotrun.cluster.request import Request, request
from spotrun.cluster.slurm import Shape, SlurmOptions, batch_script
from spotrun.errors import UsageError

_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_nodes = click.option("--nodes", required=True, metavar="MIN:MAX", help="How many nodes, as --nnodes of spotrun.")
_name = click.option("--name", default="spotrun", show_default=True, help="The name of the job.")
_dry_run = click.option("--dry-run", is_flag=True, help="Print it, and submit nothing.")
_arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)


@click.group()
def submit() -> None:
    """Submit a job to a cluster: own options first, then flags of spotrun, the script and its arguments.

    spotrun submit slurm --nodes=2:8 --rdzv-endpoint=etcd:2379 --nproc-per-node=8 train.py
    """


@submit.command(context_settings=_PASS_ON)
@_nodes
@_name
@click.option(
    "--shape",
    type=click.Choice(["array", "no-kill"]),
    default="array",
    show_default=True,
    help="An array of jobs of one node, or one job that can shrink.",
)
@click.option("--partition", default="", help="As of sbatch.")
@click.option("--gpus-per-node", type=int, default=0, help="As of sbatch.")
@click.option("--time", default="", help="As of sbatch.")
@click.option("--sbatch", "more", multiple=True, metavar="OPTION", help="One more option of sbatch; may be repeated.")
@_dry_run
@_arguments
def slurm(
    nodes: str,
    name: str,
    shape: str,
    partition: str,
    gpus_per_node: int,
    time: str,
    more: tuple[str, ...],
    dry_run: bool,
    arguments: tuple[str, ...],
) -> None:
    """Submit a batch script to Slurm."""
    wanted = _request(name, nodes, arguments)
    script = batch_script(wanted, SlurmOptions(cast("Shape", shape), partition, gpus_per_node, time, more))
    if dry_run:
        sys.stdout.write(script)
    else:
        hand_over(["sbatch"], script)


@submit.command(context_settings=_PASS_ON)
@_nodes
@_name
@click.option("--image", required=True, help="The container's image, with spotrun and the script in it.")
@click.option("--gpus-per-node", type=click.IntRange(0), default=0, help="GPUs of NVIDIA a pod asks for.")
@click.option(
    "--grace",
    type=click.IntRange(5),
    default=GRACE_S,
    show_default=True,
    help="Seconds from SIGTERM to SIGKILL; GKE's spot machines give no more than 25.",
)
@_dry_run
@_arguments
def k8s(
    nodes: str, name: str, image: str, gpus_per_node: int, grace: int, dry_run: bool, arguments: tuple[str, ...]
) -> None:
    """Apply an Indexed Job to Kubernetes, by kubectl."""
    text = manifest(_request(name, nodes, arguments), KubernetesOptions(image, gpus_per_node, grace))
    if dry_run:
        sys.stdout.write(text)
    else:
        hand_over(["kubectl", "apply", "-f", "-"], text)


def _request(name: str, nodes: str, arguments: tuple[str, ...]) -> Request:
    return request(name, nodes, arguments, os.environ)


def hand_over(command: list[str], text: str) -> None:
    """Give `text` to a program of the cluster; what that says is for the user. Raises UsageError where it fails."""
    try:
        done = subprocess.run(command, input=text, text=True, check=False)
    except FileNotFoundError:
        raise UsageError(
            f"There is no {command[0]} on PATH: run this on a host of the cluster, or give --dry-run."
        ) from None
    if done.returncode:
        raise UsageError(f"{command[0]} has refused the job (exit code {done.returncode}): see what it says above.")
