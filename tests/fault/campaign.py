"""The fault campaign: one job after another, each harmed by a plan that follows from a seed, each then checked.

    python -m tests.fault.campaign --hours 1 --seed 7 [--out DIR]

A job that breaks a promise leaves its directory below --out, and the command that does the same again is told.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from spotrun import audit
from spotrun.errors import DataError
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.keys import Keys
from tests.conftest import PR_SET_CHILD_SUBREAPER
from tests.etcd_servers import client_of, unused_port
from tests.fault import kinds, pool_kinds  # noqa: F401  (the faults)
from tests.fault.field import AGAIN_S, SCRIPT, SIZE, Field, Nodes
from tests.fault.figures import append, figures
from tests.fault.history import Commit, Formed, Harm, History, Step, Violation, violations
from tests.fault.kind import KINDS, TTL_S, possible
from tests.fault.pools import AGAIN_S as POOL_AGAIN_S
from tests.fault.pools import KINDS_OF_POOL, Pools
from tests.fault.schedule import Planned, plan
from tests.fault.surroundings import EVERYTHING, Surroundings, small_disk, surroundings
from tests.jobs import RealJob, real_job
from tests.networks import own_network

FAULTS_A_JOB = 40  # the first nodes are dear
BOUND_S = 1.5 * TTL_S + 6.0  # what is promised, and what a machine with fewer cores than processes adds
KINDS_OF_JOB = ("ddp", "fsdp")


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    history: History
    violations: list[Violation]


class Reference:
    """The curve of one process that nobody disturbs, as far as it was asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._curve: dict[int, float] = {}

    def up_to(self, step: int) -> Mapping[int, float]:
        if step > len(self._curve):
            out = self._directory / f"reference-{step}"
            command = [sys.executable, str(SCRIPT), str(out), str(2 * step), "0", "plain"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self._directory)}
            subprocess.run(command, check=True, env=environment)
            lines = map(json.loads, out.read_text().splitlines())
            self._curve = {line["step"]: line["loss"] for line in lines}
        return self._curve


def run(seed: int, faults: int, kind: str, reference: Reference, directory: Path, around: Surroundings) -> Result:
    """One job under `faults` faults of the plan of `seed`."""
    (directory / "job").mkdir(parents=True)
    flags = (f"--lease-ttl={TTL_S:g}", "--max-restarts=1000")
    with contextlib.ExitStack() as stack:
        # On its data being there again the campaign depends: no short cut around fsync is taken.
        etcd = stack.enter_context(EmbeddedEtcd(directory / "etcd", port=unused_port()))
        data = directory / "etcd" / "member-data"
        stack_of_proxies = stack.enter_context(contextlib.ExitStack())
        job = stack.enter_context(
            real_job(etcd.endpoint, directory / "job", run_id=f"seed-{seed}", nnodes=f"1:{SIZE}", flags=flags)
        )
        if around.disk:
            stack.enter_context(small_disk(directory / "job" / "ckpt"))
        field = _field(kind, job, etcd, data, around, stack_of_proxies)
        harms: list[Harm] = []
        missed: list[str] = []
        try:
            job.until_steps(3, world=SIZE, deadline_s=POOL_AGAIN_S if kind in KINDS_OF_POOL else AGAIN_S)
            for planned in plan(seed, faults, possible(field.can)):
                harms.append(_harm(field, planned))
                if planned.settles:
                    field.goes_on()
        except AssertionError as error:
            missed.append(str(error).split(" ---", 1)[0])
        exits = {f"({what})": -1 for what in missed} | field.end()
        found = _audit(directory / "job" / "audit")
        history = History(
            _steps(job),
            _formed(field),
            _commits(job),
            tuple(harms),
            exits,
            found,
            _left(field),
            snapshots_every=None,
            fleet=field.fleet() if isinstance(field, Pools) else None,
        )
    curve = reference.up_to(max((line.step for line in history.steps), default=0))
    return Result(history, violations(history, curve, BOUND_S))


def _field(
    kind: str, job: RealJob, etcd: EmbeddedEtcd, data: Path, around: Surroundings, stack: contextlib.ExitStack
) -> Field:
    """The job, started."""
    if kind in KINDS_OF_POOL:
        pools = Pools(job, etcd, data, "ddp", around, stack=stack, provider=kind)
        pools.start()
        return pools
    nodes = Nodes(job, etcd, data, kind, around, stack=stack)
    for _ in range(SIZE):
        nodes.add()
    return nodes


def _harm(field: Field, planned: Planned) -> Harm:
    began_s = time.monotonic()
    with KINDS[planned.kind].do(field, planned.pick) as said:
        time.sleep(planned.for_s)
    return Harm(planned.kind, at_s=began_s, healed_s=time.monotonic(), **{"nodes": (), **said})


def _left(field: Field) -> tuple[str, ...]:
    """What is there when all that was killed has had the time of a lease to go."""
    end_s = time.monotonic() + 3 * TTL_S
    with client_of(field.etcd) as client:
        while True:
            keys = Keys(field.job.run_id)
            found = [kv.key for prefix in (keys.nodes, keys.asks, keys.pool) for kv in client.get_prefix(prefix)[0]]
            left = (*_processes(str(field.job.dir)), *(f"key {key}" for key in found))
            if not left or time.monotonic() > end_s:
                return left
            time.sleep(0.1)


def _processes(mine: str) -> list[str]:
    left = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and mine in command and "etcd" not in process.name():
                left.append(f"process {process.pid}: {command[-200:]}")
    return left


def _audit(directory: Path) -> tuple[str, ...]:
    try:
        layout, parts = audit.load(directory)
    except DataError as error:
        return (str(error),)
    return tuple(one.text for one in audit.check(layout, parts).violations)


def _steps(job: RealJob) -> tuple[Step, ...]:
    return tuple(Step(one["step"], one["round"], one["world"], one["loss"], one["mono_s"]) for one in job.steps())


def _formed(field: Field) -> tuple[Formed, ...]:
    events = field.events("round_formed")
    return tuple(Formed(e["round"], tuple(e["nodes"]), e["cause"], e["restarts"], e["mono_s"]) for e in events)


def _commits(job: RealJob) -> tuple[Commit, ...]:
    path = job.out.with_suffix(".workers")
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    saved: dict[str, Commit] = {}
    for event in map(json.loads, lines):
        if event["kind"] == "checkpoint_saved":
            saved.setdefault(event["checkpoint"], Commit(event["step"], event["round"], event["mono_s"]))
    return tuple(saved.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--faults", type=int, default=FAULTS_A_JOB, help="in each job")
    parser.add_argument("--kind", choices=(*KINDS_OF_JOB, *KINDS_OF_POOL), help="default: those of nodes, in turn")
    parser.add_argument("--bare", action="store_true", help="processes on loopback alone: no root is needed")
    parser.add_argument("--out", type=Path, default=Path("campaign-out"))
    given = parser.parse_args()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans are found here
    given.out.mkdir(parents=True, exist_ok=True)
    bare = given.bare or not own_network()
    scratch = Path(tempfile.mkdtemp(prefix="spotrun-campaign-"))
    end_s, faults, broken = time.monotonic() + given.hours * 3600, 0, 0
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        around = Surroundings() if bare else stack.enter_context(surroundings())
        if missing := EVERYTHING - around.can:
            print(f"faults are left out for want of: {', '.join(sorted(missing))}")
        reference = Reference(scratch)
        for index in range(given.jobs):
            if time.monotonic() > end_s:
                break
            seed, kind = given.seed + index, given.kind or KINDS_OF_JOB[(given.seed + index) % 2]
            directory = scratch / f"{seed}-{kind}"
            result = run(seed, given.faults, kind, reference, directory, around)
            again = f"--seed {seed} --jobs 1 --faults {given.faults} --kind {kind}{' --bare' * bare}"
            append(given.out, figures(seed, kind, again, result.history, result.violations))
            faults, broken = faults + len(result.history.harms), broken + bool(result.violations)
            if result.violations:
                ignored = shutil.ignore_patterns("tmp-*", "ckpt", "clock-*")
                shutil.copytree(directory / "job", given.out / directory.name, ignore=ignored, dirs_exist_ok=True)
                record = json.dumps(dataclasses.asdict(result), default=str)
                (given.out / directory.name / "history.json").write_text(record)
            shutil.rmtree(directory)
            print(
                f"seed {seed} {kind}: {len(result.history.harms)} faults, {len(result.history.steps)} steps, "
                f"{len(result.violations)} violations; {faults} faults so far",
                flush=True,
            )
            for found in result.violations:
                print(f"  {found.promise}: {found.text}", flush=True)
            if result.violations:
                print(f"  again: python -m tests.fault.campaign {again}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
