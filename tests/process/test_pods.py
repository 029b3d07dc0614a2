"""Pods of the Job that `spotrun submit k8s` writes, as the kubelet treats them; the kubelet is played by the test.

Each has a PID namespace, in which spotrun is process 1, and an address of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from click.testing import CliRunner

from spotrun.cli.submit import submit
from tests.jobs import Node, RealJob, real_job
from tests.networks import Host, etcd_on, needs_namespaces, network
from tests.process.test_api import SCRIPT, assert_the_same_curve, one_process, recomputed
from tests.waiting import until

__all__ = ["one_process"]
pytestmark = needs_namespaces


class Kubelet:
    """Starts pods as the manifest says, and ends them as it says."""

    def __init__(self, job: RealJob, manifest: str) -> None:
        self.job = job
        _, made = yaml.safe_load_all(manifest)
        self.spec = made["spec"]["template"]["spec"]
        self.rules = made["spec"]["podFailurePolicy"]["rules"]

    def start(self, host: Host, name: str) -> Node:
        (container,) = self.spec["containers"]
        assert container["command"] == ["spotrun", "run"]
        environ = {entry["name"]: entry.get("value", name) for entry in container["env"]}  # the field is the pod's name
        log = self.job.dir / f"{name}.log"
        self.job.scratch.mkdir(exist_ok=True)
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "spotrun", "run"]
        with log.open("wb") as file:
            process = host.popen(
                [*command, *container["args"]],
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={
                    **os.environ,
                    **environ,
                    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
                    "OMP_NUM_THREADS": "1",
                    "TMPDIR": str(self.job.scratch),
                    "SPOTRUN_NOTICE": "none",
                },
            )
        # Without events: the process ids in them would be those of the pod's own namespace.
        self.job.nodes.append(Node(name, process, self.job.dir / "none", log))
        return self.job.nodes[-1]

    def signal(self, pod: Node, number: signal.Signals) -> None:
        """To process 1 of the pod, as the container runtime does."""
        (first,) = until("process 1", lambda: psutil.Process(pod.pid).children(), 10)
        first.send_signal(number)

    def verdict(self, exit_code: int) -> str:
        """What the Job does about a pod that ended so."""
        for rule in self.rules:
            if exit_code in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count"


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with network(4, subnet="10.244.0") as made:
        yield made


def test_a_pod_that_is_evicted_or_killed_is_replaced_under_another_address(
    hosts: list[Host], tmp_path: Path, one_process: dict[int, float]
) -> None:
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(etcd_on(hosts[0], tmp_path))
        job = stack.enter_context(real_job(endpoint, tmp_path))
        arguments = ["k8s", "--dry-run", "--nodes=1:2", "--image=i", f"--rdzv-endpoint={endpoint}", str(SCRIPT)]
        arguments += [str(job.out), "1500", "0.05", "ddp", str(tmp_path / "ckpt")]
        kubelet = Kubelet(job, CliRunner().invoke(submit, arguments, catch_exceptions=False).output)
        evicted, killed = kubelet.start(hosts[1], "llm-0-aaaaa"), kubelet.start(hosts[2], "llm-1-bbbbb")
        job.until_steps(5, world=2)

        kubelet.signal(evicted, signal.SIGTERM)
        assert kubelet.verdict(evicted.wait(kubelet.spec["terminationGracePeriodSeconds"])) == "Ignore", job.tell()
        job.until_steps(5, world=1)
        assert recomputed(job) == 0, job.tell()
        replacement = kubelet.start(hosts[3], "llm-0-ccccc")
        job.until_steps(5, world=2)

        kubelet.signal(killed, signal.SIGKILL)
        killed.wait()
        assert kubelet.verdict(128 + signal.SIGKILL) == "Ignore", "unshare itself cannot tell how process 1 has ended"
        job.until_steps(5, world=1)
        job.out.with_suffix(".end").touch()
        assert replacement.wait() == 0, job.tell()
        assert_the_same_curve(job, one_process)
