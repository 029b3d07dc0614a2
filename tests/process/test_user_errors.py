"""A mistake in a script or its checkpoints ends the job with one sentence, the documented code, and no second try."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs import RealJob

SCRIPT = str(Path(__file__).parents[1] / "scripts" / "user_errors.py")
STANDALONE = ("-m", "spotrun", "--standalone", "--max-restarts=3", "--nproc-per-node=2")
Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ended]:
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "tmp")}

    def run(mistake: str, *before: str, directory: Path | None = None) -> Ended:
        command = [sys.executable, *before, SCRIPT, str(directory or tmp_path / "checkpoints"), mistake]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

    return run


def assert_plain(ended: Ended, code: int, *says: str) -> None:
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr and "To enable traceback" not in ended.stderr, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if says[0] in line]
    assert len(lines) == 1 and lines[0].startswith("spotrun: "), ended.stderr
    assert all(part in lines[0] for part in says), lines


@pytest.mark.parametrize("mistake", ["changed", "plain-changed"])
@pytest.mark.parametrize("launcher", [STANDALONE, ()], ids=["spotrun", "python"])
def test_a_changed_model_is_told_by_its_keys(
    run: Callable[..., Ended], mistake: str, launcher: tuple[str, ...]
) -> None:
    assert run("fits").returncode == 0
    ended = run(mistake, *launcher)
    assert_plain(ended, 5, "not in the checkpoint", "model.0.weight", "only in the checkpoint", "model.weight")
    assert "round 2" not in ended.stderr


@pytest.mark.parametrize(("mistake", "says"), [("sharded", "checkpoint_dir"), ("twice", "job.track was called twice")])
def test_a_wrong_use_of_the_api_is_exit_code_2(run: Callable[..., Ended], mistake: str, says: str) -> None:
    ended = run(mistake, *STANDALONE)
    assert_plain(ended, 2, says)
    assert "round 2" not in ended.stderr


def test_a_directory_that_cannot_be_written_is_tried_again_and_then_told(
    run: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    ended = run("fits", *STANDALONE, directory=tmp_path / "file" / "checkpoints")
    assert ended.returncode == 5, ended.stderr
    assert "round 4" in ended.stderr, "a storage may come back"
    assert ended.stderr.splitlines()[-1].startswith(f"spotrun: checkpoint_dir={tmp_path / 'file'}")


def test_every_node_says_why_and_another_job_s_directory_is_refused(make_job: Callable[..., RealJob]) -> None:
    first = make_job(nnodes="1:1")
    script = (SCRIPT, str(first.dir / "checkpoints"), "fits")
    assert first.start("a", script=script).wait() == 0, first.tell()
    second = make_job(nnodes="2:2", flags=("--max-restarts=3",))
    nodes = [second.start(name, script=script) for name in "ab"]
    assert [node.wait() for node in nodes] == [5, 5], second.tell()
    for node in nodes:
        said = node.output().splitlines()[-1]
        assert said.startswith("spotrun: ") and f"holds the checkpoints of job {first.run_id!r}" in said
        assert "Traceback" not in node.output()
        assert [event["round"] for event in node.events("round_formed")] == [1]
