"""--regions and --wipe-on-exit with real agents; the cloud's metadata server is a stand-in over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.clouds import AwsServer

SCRIPT = """
import os, sys, tempfile
import spotrun

def train(job):
    job.track()
    open(os.path.join(tempfile.gettempdir(), "sample"), "w").write("secret")
    print("TMP", tempfile.gettempdir(), os.environ["TORCHINDUCTOR_CACHE_DIR"], flush=True)
    job.step()

spotrun.run(train, checkpoint_dir=sys.argv[1])
"""


def run(tmp_path: Path, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "spotrun", "--standalone", f"--events={tmp_path / 'events'}", *flags]
    return subprocess.run(
        [*command, str(script), str(tmp_path / "checkpoints")],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_machine_outside_takes_no_part_and_one_inside_is_told_of_by_the_ledger(tmp_path: Path) -> None:
    with AwsServer() as server:
        outside = run(tmp_path, "--regions=us-*", SPOTRUN_AWS_METADATA_URL=server.url)
        assert outside.returncode == 6, outside.stderr
        assert (
            outside.stderr
            == "spotrun: This machine is in eu-west-1, outside of --regions=us-*: it takes no part in the job.\n"
        )
        assert not (tmp_path / "checkpoints").exists()
        inside = run(tmp_path, "--regions=eu-*", SPOTRUN_AWS_METADATA_URL=server.url)
    assert inside.returncode == 0, inside.stderr
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    (placed,) = (event for event in events if event["kind"] == "node_placed")
    *_, kept = (event for event in events if event["kind"] == "state_kept")
    (held,) = (event for event in events if event["kind"] == "state_held")
    assert (placed["region"], placed["zone"]) == ("eu-west-1", "eu-west-1b")
    assert (kept["url"], kept["region"]) == (str(tmp_path / "checkpoints"), "eu-west-1")
    (manifest,) = (tmp_path / "checkpoints").glob("*/manifest.json")
    size_bytes = sum(file["size"] for file in json.loads(manifest.read_text())["files"])
    assert (kept["saves"], kept["size_bytes"]) == (1, size_bytes)
    assert held["size_bytes"] > 0


def test_checkpoints_outside_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    outside = run(tmp_path, "--regions=eu-*", "--region=eu-west-1", SPOTRUN_STORAGE_REGION="us-east-1")
    assert outside.returncode == 5, outside.stderr
    assert "is in us-east-1, outside of --regions=eu-*" in outside.stderr
    assert "Traceback" not in outside.stderr
    assert not (tmp_path / "checkpoints" / "owner.json").exists()


def test_what_workers_left_is_gone(tmp_path: Path) -> None:
    done = run(tmp_path, "--wipe-on-exit")
    assert done.returncode == 0, done.stderr
    (_, *used), *_ = [line.split() for line in done.stdout.splitlines() if line.startswith("TMP")]
    for directory in used:
        assert directory.startswith(str(tmp_path / "tmp" / "spotrun-scratch-"))
        assert not Path(directory).exists()
    assert "started cold" not in done.stderr
    assert list((tmp_path / "tmp").glob("spotrun-scratch-*")) == []
