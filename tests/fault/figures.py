"""What campaigns have shown: a line of JSON a job, so that runs add up, and the table of docs/reliability.md.

python -m tests.fault.figures campaign-out [DIRECTORY ...]
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.fault.history import History, Violation, detections, pauses

LEDGER = "jobs.jsonl"
TOLD = {"ddp": "DDP", "fsdp": "FSDP2", "exec": "pool, `exec`", "local": "pool, `local`"}  # kinds of jobs


@dataclasses.dataclass(frozen=True, slots=True)
class JobFigures:
    """One job of a campaign. Seconds are those of each fault that has any, by its kind."""

    seed: int
    kind: str  # of the job
    again: str  # the arguments that do the same again
    faults: dict[str, int]
    rounds: int
    steps: int
    detections_s: list[tuple[str, float]]
    pauses_s: list[tuple[str, float]]
    broken: list[str]


def figures(seed: int, kind: str, again: str, history: History, found: Iterable[Violation]) -> JobFigures:
    def by_kind(seconds: dict[int, float]) -> list[tuple[str, float]]:
        return [(history.harms[index].kind, round(one, 2)) for index, one in seconds.items()]

    return JobFigures(
        seed=seed,
        kind=kind,
        again=again,
        faults=dict(sorted(Counter(harm.kind for harm in history.harms).items())),
        rounds=len({one.round for one in history.formed}),
        steps=len(history.steps),
        detections_s=by_kind(detections(history)),
        pauses_s=by_kind(pauses(history)),
        broken=[f"{one.promise}: {one.text}" for one in found],
    )


def append(directory: Path, job: JobFigures) -> None:
    with (directory / LEDGER).open("a") as file:
        file.write(json.dumps(dataclasses.asdict(job)) + "\n")


def load(directories: Iterable[Path]) -> list[JobFigures]:
    return [
        JobFigures(**json.loads(line))
        for directory in directories
        if (directory / LEDGER).exists()
        for line in (directory / LEDGER).read_text().splitlines()
    ]


def table(jobs: list[JobFigures]) -> str:
    """In Markdown: a row a kind of fault, and a sentence for all."""
    kinds = {name: Counter[str]() for name in TOLD if any(job.kind == name for job in jobs)}
    detected: dict[str, float] = {}
    for job in jobs:
        kinds[job.kind].update(job.faults)
        for fault, one in job.detections_s:
            detected[fault] = max(one, detected.get(fault, 0.0))
    faults = sum(kinds.values(), Counter[str]())
    rows = [
        f"| fault | {' | '.join(TOLD[name] for name in kinds)} | worst detection |",
        "|---" * (len(kinds) + 2) + "|",
    ]
    rows += [
        f"| {fault} | {' | '.join(str(one[fault]) for one in kinds.values())} | {_told(detected, fault)} |"
        for fault in sorted(faults)
    ]
    worst = max(detected.values(), default=0.0)
    rows.append(f"| all | {' | '.join(str(one.total()) for one in kinds.values())} | {worst:.1f} s |")
    pauses_s = sorted(one for job in jobs for _, one in job.pauses_s) or [0.0]
    said = (
        f"{faults.total()} faults in {len(jobs)} jobs, {sum(bool(job.broken) for job in jobs)} of them broke promises. "
        f"{sum(job.rounds for job in jobs)} rounds, {sum(job.steps for job in jobs)} steps. "
        f"Pauses: median {statistics.median(pauses_s):.1f} s, worst {pauses_s[-1]:.1f} s."
    )
    return "\n".join([said, "", *rows])


def _told(worst: dict[str, float], name: str) -> str:
    return f"{worst[name]:.1f} s" if name in worst else ""


if __name__ == "__main__":
    print(table(load(map(Path, sys.argv[1:]))))
