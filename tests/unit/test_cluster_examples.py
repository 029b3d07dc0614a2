"""The recipes under examples/cluster are what the tools they are for can read."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from spotrun.cli.submit import submit
from spotrun.config import DRAIN_EXIT_KUBERNETES
from spotrun.errors import CheckpointError, JobRefused, UsageError
from spotrun.launcher.notices.signals import POD_GRACE_ENV

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


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("slurm/array.sbatch", "slurm --gpus-per-node=8 --rdzv-endpoint=etcd.example:2379"),
        ("slurm/no-kill.sbatch", "slurm --gpus-per-node=8 --shape=no-kill --rdzv-endpoint=etcd.example:2379"),
        ("kubernetes/job.yaml", "k8s --gpus-per-node=8 --image=registry.example/train:1 --rdzv-endpoint=etcd:2379"),
    ],
)
def test_an_example_is_what_submit_writes(file: str, arguments: str) -> None:
    system, *options = arguments.split()
    shown = dry_run(system, "--nodes=2:8", "--name=llm", *options, "--nproc-per-node=8", "train.py", "--epochs", "10")
    assert shown == (CLUSTER / file).read_text()


def dry_run(system: str, *arguments: str) -> str:
    done = CliRunner().invoke(submit, [system, "--dry-run", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_arguments_reach_the_script_as_they_were_given() -> None:
    wild = ["--rdzv-endpoint=e:2379", "train.py", "--text", 'it\'s "here"', "--dry-run", "$HOME {x}: [1]"]
    script = dry_run("slurm", "--nodes=2", *wild)
    (line,) = [line for line in script.splitlines() if "train.py" in line]
    assert shlex.split(line) == wild
    _, job = yaml.safe_load_all(dry_run("k8s", "--nodes=2", "--image=i", *wild))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["--nnodes=2:2", "--rdzv-id=spotrun", *wild]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes=2", "train.py"], "--rdzv-endpoint=HOST:2379"),
        (["--nodes=4:2", "--rdzv-endpoint=e:2379", "train.py"], "give 2:4"),
        (["--nodes=2", "--rdzv-endpoint=e:2379", "--nnodes=2", "train.py"], "--nnodes is written by"),
        (["--nodes=2", "--name=My Job", "--rdzv-endpoint=e:2379", "train.py"], "small letters"),
        (["--nodes=2"], "nothing to run"),
    ],
)
def test_what_no_node_could_run_is_not_submitted(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PET_RDZV_ENDPOINT", raising=False)
    with pytest.raises(UsageError, match=said):
        dry_run("slurm", *arguments)


def test_a_pod_is_told_its_time_and_killed_no_sooner() -> None:
    _, job = yaml.safe_load_all(dry_run("k8s", "--nodes=2", "--image=i", "--grace=90", "--rdzv-endpoint=e:1", "x.py"))
    pod = job["spec"]["template"]["spec"]
    told = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert pod["terminationGracePeriodSeconds"] == int(str(told[POD_GRACE_ENV])) == 90
    assert pod["containers"][0]["command"][0] == "spotrun", "process 1 gets SIGTERM"


def test_a_job_of_kubernetes_outlives_drained_pods_and_fails_with_the_training() -> None:
    files = [CLUSTER / "kubernetes" / name for name in ("job.yaml", "jobset.yaml")]
    (_, job), (jobset,) = (list(yaml.safe_load_all(file.read_text())) for file in files)
    for spec in (job["spec"], jobset["spec"]["replicatedJobs"][0]["template"]["spec"]):
        rules = spec["podFailurePolicy"]["rules"]
        by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
        assert by_code[DRAIN_EXIT_KUBERNETES] == "Ignore"
        failed = {1, *(error.exit_code for error in (UsageError, JobRefused, CheckpointError))}
        assert {code for code, action in by_code.items() if action == "FailJob"} == failed
