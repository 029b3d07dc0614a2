"""A running job, looked at and stopped from outside: status, events, stop."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spotrun.cli.report import report
from tests.jobs import RealJob
from tests.process.test_api import recomputed, start
from tests.waiting import until

MakeJob = Callable[..., RealJob]


def spotrun(job: RealJob, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = [f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.run_id}"]
    return subprocess.run(
        [sys.executable, "-m", "spotrun", command, *place, *arguments], capture_output=True, text=True
    )


def reported(job: RealJob, out: Path) -> str:
    """The page on what lies in etcd."""
    report.main([job.run_id, f"--rdzv-endpoint={job.endpoint}", "-o", str(out)], standalone_mode=False)
    return out.read_text(encoding="utf-8")


def test_a_job_is_watched_and_stopped_from_anywhere(
    make_job: MakeJob, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    job = make_job(nnodes="2:2")
    nodes = [start(job, name) for name in "ab"]
    job.until_steps(10, world=2)
    follow = [f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.run_id}", "--follow", "--json"]
    following = subprocess.Popen(
        [sys.executable, "-m", "spotrun", "events", *follow], stdout=subprocess.PIPE, text=True
    )
    request.addfinalizer(following.kill)

    def told() -> dict[str, object]:
        done = spotrun(job, "status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found if found["step"] and all(node["vitals"] for node in found["nodes"]) else {}  # type: ignore[attr-defined]

    now = until("both nodes tell of their steps and machines", told, detail=job.tell)
    assert (now["state"], now["round"], now["world_size"]) == ("training", 1, 2)
    assert [node["state"] for node in now["nodes"]] == ["training", "training"]  # type: ignore[attr-defined]
    assert set(now["shares"]) == {"compute", "communication", "data", "checkpoint"}  # type: ignore[call-overload]

    plain = spotrun(job, "status")
    assert plain.stdout.startswith(f"{job.run_id}  training\nround 1, world size 2 (2 nodes here)\n"), plain.stdout
    assert "\x1b" not in plain.stdout
    assert max(map(len, plain.stdout.splitlines())) <= 80

    page = reported(job, tmp_path / "running.html")
    assert "still running" in page and "a step, on average: compute" in page and "2 workers" in page

    stopped = spotrun(job, "stop", "--deadline=60")
    assert stopped.returncode == 0, stopped.stderr
    assert f"The job {job.run_id} was stopped: 2 nodes left" in stopped.stdout
    assert "its newest checkpoint is that of step" in stopped.stdout
    assert [node.wait() for node in nodes] == [0, 0], job.tell()
    last = job.steps()[-1]["step"]
    assert f"step {last}." in stopped.stdout, "all leave, so the very last step was saved"
    assert recomputed(job) == 0

    kinds = [event["what"] for event in map(json.loads, following.communicate(timeout=20)[0].splitlines())]
    assert kinds[0] == "round_formed"
    assert "left" in kinds
    assert kinds[-1] == "stopped"

    page = reported(job, tmp_path / "stopped.html")
    assert "2 nodes told to end, after saving" in page and "snapshots and saves: " in page
    found = json.loads(spotrun(job, "status", "--json").stdout)
    assert found["state"] == "stopped" and 0.0 < found["goodput"] < 1.0

    again = spotrun(job, "stop")
    assert again.returncode == 2 and "has already ended (stopped)" in again.stderr
    late = start(job, "late")
    assert late.wait() == 4, job.tell()

    unknown = spotrun(job, "status", "--rdzv-id=nobody")
    assert unknown.returncode == 2
    assert "There is no job 'nobody' in this etcd" in unknown.stderr
