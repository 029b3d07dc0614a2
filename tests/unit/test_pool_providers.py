"""What the pool says to the programs of clusters, which are stand-ins here that write down what they are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from spotrun.cluster.kubernetes import KubernetesOptions
from spotrun.pool.provider import Provider, Refused
from spotrun.pool.providers import Kubernetes, SkyPilot, Slurm

LINE = ("--nnodes=1:4", "--rdzv-endpoint=etcd:2379", "--rdzv-id=llm", "train.py", "--name", "a b; rm -rf /")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH. `answer` makes a program there."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def answer(folder: Path, program: str, says: str = "", code: int = 0) -> None:
    (folder / f"{program}.says").write_text(says)
    script = folder / program
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> {folder}/{program}.told\ncat >> {folder}/{program}.read\n'
        f"cat {folder}/{program}.says\nexit {code}\n"
    )
    script.chmod(0o755)


def told(folder: Path, program: str) -> list[str]:
    return (folder / f"{program}.told").read_text().splitlines()


def test_slurm_gets_a_job_of_one_node(programs: Path) -> None:
    for program, says in (("sbatch", ""), ("scancel", ""), ("squeue", "pool-1-a\nother\npool-2-b\n")):
        answer(programs, program, says)
    provider = Slurm(LINE, ("--gpus-per-node=8",))
    provider.ask("pool-1-a", "spot")
    script = (programs / "sbatch.read").read_text()
    for directive in ("--job-name=pool-1-a", "--nodes=1", "--no-requeue", "--partition=spot", "--gpus-per-node=8"):
        assert f"#SBATCH {directive}\n" in script
    assert "srun spotrun run --node-id=pool-1-a --nnodes=1:4" in script
    assert "'a b; rm -rf /'" in script, "quoted for the shell"
    assert provider.names("pool-1-") == {"pool-1-a"}
    provider.release("pool-1-a")
    assert told(programs, "scancel") == ["--name=pool-1-a"]


def test_kubernetes_gets_a_pod(programs: Path) -> None:
    answer(programs, "kubectl", "pod/pool-1-a\npod/pool-2-b\n")
    provider = Kubernetes(LINE, KubernetesOptions("registry/train:1", gpus_per_node=8))
    provider.ask("pool-1-a", "eu-west-1a")
    pod = yaml.safe_load((programs / "kubectl.read").read_text())
    assert (pod["kind"], pod["metadata"]["name"]) == ("Pod", "pool-1-a")
    assert pod["spec"]["nodeSelector"] == {"topology.kubernetes.io/zone": "eu-west-1a"}
    assert pod["spec"]["restartPolicy"] == "Never"
    (container,) = pod["spec"]["containers"]
    assert container["args"] == list(LINE)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert provider.names("pool-1-") == {"pool-1-a"}
    provider.release("pool-1-a")
    assert told(programs, "kubectl")[-5:] == ["delete", "pod", "pool-1-a", "--ignore-not-found", "--wait=false"]


def test_skypilot_gets_a_cluster_of_the_users_task(programs: Path, tmp_path: Path) -> None:
    answer(programs, "sky", "Clusters\nNAME      INFRA\npool-1-a  AWS (eu-west-1)\n\nManaged jobs\nNo jobs.\n")
    provider = SkyPilot(tmp_path / "node.yaml", "etcd:2379", "llm")
    provider.ask("pool-1-a", "aws/eu-west-1")
    assert told(programs, "sky") == [
        *("launch", "--yes", "--detach-run", "--async", "--cluster=pool-1-a", "--infra=aws/eu-west-1"),
        *("--env=NODE=pool-1-a", "--env=ETCD=etcd:2379", "--env=JOB=llm", str(tmp_path / "node.yaml")),
    ]
    assert provider.names("pool-1-") == {"pool-1-a"}
    provider.release("pool-1-a")
    assert told(programs, "sky")[-4:] == ["down", "--yes", "--async", "pool-1-a"]


@pytest.mark.parametrize("provider", [Slurm(LINE, ()), Kubernetes(LINE, KubernetesOptions("i"))])
def test_what_a_program_says_when_it_refuses_is_told(
    programs: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("sbatch", "kubectl"):
        answer(programs, program, "no quota left\n", code=1)
    with pytest.raises(Refused, match="no quota left"):
        provider.ask("pool-1-a", "")
    monkeypatch.setenv("PATH", str(programs / "nowhere"))
    with pytest.raises(Refused, match="cannot be run"):
        provider.ask("pool-1-a", "")
