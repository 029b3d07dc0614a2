"""`spotrun pool`: keep as many nodes in a job as are wanted, by machines of a provider."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import click

from spotrun.cli.logs import to_stderr
from spotrun.cli.running_job import RunningJob, of_running_job
from spotrun.cluster.kubernetes import KubernetesOptions
from spotrun.config import parse_regions
from spotrun.errors import UsageError
from spotrun.pool.decide import Place, Settings
from spotrun.pool.pool import Pool, check_not_ended
from spotrun.pool.provider import Provider
from spotrun.pool.providers import Exec, Kubernetes, Local, SkyPilot, Slurm

_OURS = ("--rdzv-endpoint", "--rdzv-id", "--node-id", "--standalone")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--want", type=click.IntRange(0), required=True, help="How many nodes there shall be.")
@click.option("--max", "most", type=click.IntRange(0), help="Machines at any time, at most; by default one more.")
@click.option("--provider", required=True, help="local, slurm, k8s, skypilot, or exec:COMMAND.")
@click.option(
    "--place",
    "places",
    multiple=True,
    metavar="NAME[=PRICE]",
    help="Where machines are had: a partition, a zone, or what sky's --infra takes, and what one costs an hour. May be "
    "repeated: the next one is tried where one has none.",
)
@click.option("--max-price", type=float, default=math.inf, help="Of all machines together, an hour.")
@click.option("--patience", "patience_s", type=float, default=600.0, show_default=True, help="Seconds to join in.")
@click.option("--sbatch", "sbatch", multiple=True, metavar="OPTION", help="Slurm: one more option of sbatch.")
@click.option("--image", default="", help="Kubernetes: the container's image.")
@click.option("--gpus-per-node", type=click.IntRange(0), default=0, help="Kubernetes: GPUs of NVIDIA a pod asks for.")
@click.option("--task", type=click.Path(dir_okay=False, path_type=Path), help="SkyPilot: the task of one node.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@of_running_job
def pool(
    job: RunningJob,
    want: int,
    most: int | None,
    provider: str,
    places: tuple[str, ...],
    max_price: float,
    patience_s: float,
    sbatch: tuple[str, ...],
    image: str,
    gpus_per_node: int,
    task: Path | None,
    arguments: tuple[str, ...],
) -> None:
    """Ask a provider for the nodes that are missing, and give back what is too much, until the job has ended.

    Own options first, then flags of spotrun, the script and its arguments, as each node runs them.

    spotrun pool --want=8 --provider=slurm --rdzv-endpoint=etcd:2379 --rdzv-id=llm --nnodes=2:8 train.py

    Any number of pools may watch one job; one of them is active. Interrupted, it leaves all machines as they are.
    """
    where = parse_places(places, max_price)
    settings = Settings(want, want + 1 if most is None else most, where, max_price, patience_s)
    if settings.most < want:
        raise UsageError(f"--max={most} is less than --want={want}: give at least as many.")
    line = node_line(job, arguments) if provider != "skypilot" else ()
    check_places(where, provider, regions_of(arguments, os.environ))
    chosen = choose(provider, job, line, sbatch, KubernetesOptions(image, gpus_per_node), task)
    to_stderr("text", in_place=False)
    with job.client() as client:
        check_not_ended(client, job.keys)
        outcome = Pool(client, job.keys, settings, chosen).run()
    sys.stdout.write(f"The job {job.keys.run_id} has ended ({outcome.state}): all machines are given back.\n")


def parse_places(texts: Sequence[str], max_price: float) -> tuple[Place, ...]:
    """Raises UsageError."""
    found = []
    for text in texts:
        name, _, price = text.partition("=")
        try:
            found.append(Place(name, float(price) if price else None))
        except ValueError:
            raise UsageError(f"--place={text} has no price: write NAME=PRICE, such as us-east-1a=1.20.") from None
    if max_price < math.inf and (not found or any(place.price is None for place in found)):
        raise UsageError("--max-price needs the price of each place: give --place=NAME=PRICE.")
    return tuple(found) or (Place(""),)


def regions_of(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """--regions as the nodes will have them; raises UsageError."""
    for word, following in zip(arguments, (*arguments[1:], ""), strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--regions":
            return parse_regions(value if equals else following)
    return parse_regions(environ["SPOTRUN_REGIONS"]) if environ.get("SPOTRUN_REGIONS") else ()


def check_places(places: Sequence[Place], provider: str, regions: Sequence[str]) -> None:
    """Raises UsageError for a place that is not within `regions`: its machine would only be refused."""
    if not regions or provider not in ("skypilot", "k8s"):  # what others call a place tells nothing
        return
    for place in places:
        if provider == "k8s" and not place.name:  # wherever the cluster is: each node looks for itself
            continue
        names = {place.name, place.name[:-1], place.name.rpartition("-")[0]}  # eu-west-1b; europe-west4-a
        if provider == "skypilot":
            names = {place.name.partition("/")[2].partition("/")[0]}  # CLOUD/REGION/ZONE
        if not any(fnmatch(name, pattern) for name in names - {""} for pattern in regions):
            where = f"--place={place.name} is not" if place.name else "Without --place, machines need not be"
            raise UsageError(f"{where} within --regions={','.join(regions)}: name places that are.")


def node_line(job: RunningJob, arguments: Sequence[str]) -> tuple[str, ...]:
    """What each node runs behind `spotrun run --node-id=NAME`; raises UsageError."""
    flags = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    for flag in _OURS:
        if flag in flags:
            raise UsageError(f"{flag} is written by `spotrun pool` itself: leave it out of the line of the nodes.")
    if not arguments:
        raise UsageError("There is nothing to run: give flags of spotrun, the script and its arguments.")
    if "--nnodes" not in flags:
        raise UsageError("The line of the nodes needs --nnodes=MIN:MAX, as on any other node of the job.")
    return (f"--rdzv-endpoint={','.join(job.config.endpoints)}", f"--rdzv-id={job.keys.run_id}", *arguments)


def choose(
    name: str,
    job: RunningJob,
    line: tuple[str, ...],
    sbatch: tuple[str, ...],
    kubernetes: KubernetesOptions,
    task: Path | None,
) -> Provider:
    """Raises UsageError."""
    kind, _, command = name.partition(":")
    if kind == "exec" and (words := tuple(shlex.split(command))):
        return Exec(words, line)
    if name == "local":
        return Local(line)
    if name == "slurm":
        return Slurm(line, sbatch)
    if name == "k8s":
        if not kubernetes.image:
            raise UsageError("--provider=k8s needs --image: the container's image, with spotrun and the script in it.")
        return Kubernetes(line, kubernetes)
    if name == "skypilot":
        if task is None or not task.exists():
            raise UsageError("--provider=skypilot needs --task: the file of a task of one node, which gets $NODE.")
        return SkyPilot(task, ",".join(job.config.endpoints), job.keys.run_id)
    raise UsageError(f"--provider={name} is not known: local, slurm, k8s, skypilot or exec:COMMAND.")
