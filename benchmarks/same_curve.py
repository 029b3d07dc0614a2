"""Whether a world that changes gives the loss curve of one process: 3 -> 2 -> 4 -> 1 -> 3 nodes in 300 steps.

    python -m spotrun.benchmarks.same_curve [--kinds ddp,fsdp] [--types float32,float64] [--steps 300] [--out FILE.json]

The GPT of `spotrun demo`, under DDP and under FSDP2, in float32 and in float64. One node leaves after a notice, two
join, three of four are killed without notice, two join. The same script runs on one process without any launcher, and
the curves are compared step by step; `spotrun audit`'s check proves that each sample was used once. How far floating
point alone leads shows the same process that adds up each batch in three pieces: no curve can be closer in general.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spotrun import audit
from spotrun.benchmarks.jobs_under_test import LAUNCHERS, JobUnderTest, Node
from spotrun.benchmarks.measurement import Measurement

SCRIPT = Path(__file__).parent / "same_curve_steps.py"
LIMIT_S = 240.0
TITLE = "The same curve: a world that changes against one process"
HOW = (
    "The GPT of spotrun demo trains on 3, 2, 4, 1 and 3 nodes of one worker (a notice, two joins, three kills, two "
    "joins), and on one process. Largest difference of the losses of a step; steps made again after what was planned "
    "(notice, joins) and after the kills; violations that the audit of the samples finds."
)
FEATURED = ("largest_difference", "lost_planned", "lost_killed", "violations")


class Schedule:
    """Drives one job through the worlds; each change comes at the same step in every run."""

    def __init__(self, job: JobUnderTest, steps: int) -> None:
        self._job = job
        self._steps = steps
        self._limit = job.dir / "steps.limit"
        self.living: list[Node] = []

    def run(self) -> dict[str, int]:
        """The number of steps that were made again."""
        marks = [self._steps * part // 10 for part in (2, 4, 6, 8)]
        self._allow(marks[0])
        self._start(3)
        self._until_step(marks[0], world=3)

        leaver = self.living.pop(1)
        leaver.leaves = True
        leaver.process.terminate()
        self._until("the notice is known", lambda: self._told(self.living[0]))
        self._allow(marks[1])
        self._until_step(marks[1], world=2)

        self._grow_to(4, marks[1])
        planned = self._made_again()

        self._allow(marks[3])
        self._until_step(marks[2], world=4)
        for _ in range(3):
            self._job.kill_node(self.living.pop(0))
        self._until_step(marks[3], world=1)
        killed = self._made_again() - planned

        self._grow_to(3, marks[3])
        self._limit.unlink()
        for node in self.living:
            node.leaves = True
            if node.process.wait(LIMIT_S):
                raise SystemExit(f"node {node.index} ended with code {node.process.returncode}\n{self._job.tell()}")
        return {"lost_planned": self._made_again() - killed, "lost_killed": killed}

    def _start(self, count: int) -> None:
        self.living += [self._job.start() for _ in range(count)]

    def _grow_to(self, size: int, step: int) -> None:
        """Two nodes come, in one round or in two, after `step`; each round begins within the next steps."""
        before = self._rounds()
        self._start(2)

        def grown() -> bool:
            rounds = self._rounds()[len(before) :]
            self._allow(step + 3 * len(rounds))
            return bool(rounds) and rounds[-1] == size

        self._until(f"a round of {size}", grown)
        self._until_step(step + 3, world=size)

    def _rounds(self) -> list[int]:
        """The sizes of all rounds so far. A node that comes tells of its round before the others have left theirs."""
        events = [event for node in self.living for event in self._job.events(node)]
        sizes = {event["round"]: len(event["nodes"]) for event in events if event["kind"] == "round_formed"}
        return [sizes[number] for number in sorted(sizes)]

    def _allow(self, step: int) -> None:
        new = self._limit.with_suffix(".new")
        new.write_text(str(step))
        new.replace(self._limit)

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        self._job.until(what, condition, LIMIT_S)

    def _until_step(self, step: int, world: int) -> None:
        def there() -> bool:
            lines = self._job.look()
            return bool(lines) and lines[-1]["step"] >= step and lines[-1]["world"] == world

        self._until(f"step {step} of {world} nodes", there)

    def _told(self, node: Node) -> bool:
        return any(event["kind"] == "workers_told" for event in self._job.events(node))

    def _made_again(self) -> int:
        steps = [line["step"] for line in self._job.look()]
        return len(steps) - len(set(steps))


def one_process(kind: str, dtype: str, steps: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="spotrun-bench-") as folder:
        out = Path(folder) / "steps.jsonl"
        command = [sys.executable, str(SCRIPT), str(out), kind, dtype, str(steps)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL)
        return [json.loads(line)["loss"] for line in out.read_text().splitlines()]


def observe(kind: str, dtype: str, steps: int, reference: list[float]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The figures of one job, and for each step its loss and the size of the world that made it last."""
    with JobUnderTest(LAUNCHERS["spotrun-api"], "1:4", script=SCRIPT, arguments=(kind, dtype, str(steps))) as job:
        lost = Schedule(job, steps).run()
        curve = {line["step"]: line for line in job.look()}
        report = audit.check(*audit.load(job.dir / "steps.audit"))
    made = [curve[step] for step in sorted(curve)]
    differences = [abs(line["loss"] - loss) for line, loss in zip(made, reference, strict=True)]
    figures = {"largest_difference": max(differences), "steps": len(made), **lost, "violations": len(report.violations)}
    return figures, [{"step": line["step"], "loss": line["loss"], "world": line["world"]} for line in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="ddp,fsdp")
    parser.add_argument("--types", default="float32,float64")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    document = Measurement("same_curve", TITLE, HOW, FEATURED, {"steps": options.steps})
    document.extra["curves"] = curves = []
    for dtype in options.types.split(","):
        reference = one_process("ddp", dtype, options.steps)
        pieces = one_process("pieces", dtype, options.steps)
        largest = max(abs(one - other) for one, other in zip(pieces, reference, strict=True))
        document.add({"largest_difference": largest, "steps": len(pieces)}, kind="one process, in pieces", dtype=dtype)
        for kind in options.kinds.split(","):
            figures, made = observe(kind, dtype, options.steps, reference)
            document.add(figures, kind=kind, dtype=dtype)
            curves.append({"kind": kind, "dtype": dtype, "made": made, "reference": reference})
            document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
