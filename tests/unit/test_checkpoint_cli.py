"""`spotrun checkpoints` over a directory of this test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from spotrun.checkpoint import Saver, open_storage
from spotrun.cli.checkpoints import checkpoints


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    saver = Saver(open_storage(tmp_path / "run"), run_id="job")
    for step in (1, 2, 3):
        state = {"model": {"w": torch.full((4, 5), float(step)), "b": torch.ones(2)}, "epoch": step, "l": [1, {"x": 2}]}
        handle = saver.save(state, step=step, round=1, extra={"sample": step})
        assert handle is not None
        handle.result(60)
    return tmp_path / "run"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(checkpoints, [str(argument) for argument in arguments])


def test_ls_shows_the_newest_first(directory: Path) -> None:
    lines = run("ls", directory).output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"step-0000000{step}-r1-a1" for step in (3, 2, 1)]
    assert lines[1].endswith("whole, newest") and lines[2].endswith("whole")


def test_ls_speaks_json(directory: Path) -> None:
    (directory / "step-00000003-r1-a1" / "manifest.json").unlink()
    rows = [json.loads(line) for line in run("ls", "--json", directory).output.splitlines()]
    assert [(row.get("step"), row["state"]) for row in rows] == [
        (2, "whole, newest"),
        (1, "whole"),
        (None, "unfinished"),
    ]
    assert rows[0]["extra"] == {"sample": 2}


def test_ls_of_nothing_says_so(tmp_path: Path) -> None:
    assert "there are no checkpoints in" in str(run("ls", tmp_path / "none").exception)


def test_verify_finds_a_flipped_byte(directory: Path) -> None:
    assert run("verify", directory).exit_code == 0
    shard = directory / "step-00000002-r1-a1" / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = run("verify", directory)
    assert "step-00000002-r1-a1: __0_0.distcp has checksum" in result.output
    assert "not whole in" in str(result.exception) and "step-00000002-r1-a1" in str(result.exception)
    assert run("verify", directory, "step-00000003-r1-a1").output == "step-00000003-r1-a1: whole\n"


def test_prune_says_first_what_it_would_delete(directory: Path) -> None:
    assert "would delete step-00000001-r1-a1" in run("prune", directory, "--keep-last", "1", "--dry-run").output
    assert len(list(directory.iterdir())) == 3
    run("prune", directory, "--keep-last", "1")
    assert [path.name for path in directory.iterdir()] == ["step-00000003-r1-a1"]
    assert run("prune", directory, "--keep-last", "1").output == "nothing to delete\n"


def test_export_to_one_torch_file_gives_the_state_as_it_was_saved(directory: Path, tmp_path: Path) -> None:
    assert run("export", directory, tmp_path / "all.pt").exit_code == 0
    state = torch.load(tmp_path / "all.pt", weights_only=True)
    assert state["epoch"] == 3 and state["l"] == [1, {"x": 2}]
    assert torch.equal(state["model"]["w"], torch.full((4, 5), 3.0))


def test_export_to_safetensors_takes_a_prefix_and_a_name(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    run("export", directory, out, "--prefix", "model", "--name", "step-00000001-r1-a1")
    assert {key: value.tolist() for key, value in load_file(out).items()} == {"w": [[1.0] * 5] * 4, "b": [1.0, 1.0]}
    assert "has no 'nothing'" in str(run("export", directory, out, "--prefix", "nothing").exception)
    assert "no whole checkpoint step-9" in str(run("export", directory, out, "--name", "step-9").exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "run"]


def test_importing_the_package_and_the_command_imports_no_torch() -> None:
    code = "import sys, spotrun.checkpoint, spotrun.cli.checkpoints; print({'torch', 'grpc'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
