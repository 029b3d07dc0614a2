"""The recipes under examples/cluster are what the tools they are for can read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"


def test_the_user_data_write_the_very_unit_and_settings_of_the_folder() -> None:
    text = (CLUSTER / "vm" / "cloud-init.yaml").read_text()
    assert text.startswith("#cloud-config\n"), "cloud-init takes it for a script otherwise"
    written = {file["path"]: file["content"] for file in yaml.safe_load(text)["write_files"]}
    assert written == {
        "/etc/spotrun/job.env": (CLUSTER / "vm" / "job.env").read_text(),
        "/etc/systemd/system/spotrun.service": (CLUSTER / "vm" / "spotrun.service").read_text(),
    }


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "spotrun.service"
    text = (CLUSTER / "vm" / "spotrun.service").read_text()
    unit.write_text(text.replace("/opt/train/.venv/bin/spotrun", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_node_of_skypilot_is_a_job_of_its_own() -> None:
    task = yaml.safe_load((CLUSTER / "skypilot" / "node.yaml").read_text())
    assert task["num_nodes"] == 1, "or the loss of one machine would start all anew"
    assert task["resources"]["use_spot"]
