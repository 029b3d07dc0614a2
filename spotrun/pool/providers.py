"""The providers: this machine, a program of the user's, Slurm, Kubernetes, SkyPilot."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from spotrun.cluster.kubernetes import KubernetesOptions, pod
from spotrun.cluster.slurm import SlurmOptions, node_script
from spotrun.pool.provider import Refused, run

END_S = 30.0  # an agent that is told to go on this machine gets this long


@dataclass(frozen=True, slots=True)
class Local:
    """Agents on this machine, in sessions of their own: they outlive the pool."""

    line: tuple[str, ...]  # flags of `spotrun run`, the script and its arguments

    def ask(self, name: str, place: str) -> None:
        command = [sys.executable, "-m", "spotrun", "run", f"--node-id={name}", *self.line]
        try:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise Refused(f"{command[0]} cannot be run: {error}") from None

    def release(self, name: str) -> None:
        found = [process for node, process in self._agents() if node == name]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(found, END_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def names(self, prefix: str) -> frozenset[str]:
        return frozenset(node for node, _ in self._agents() if node.startswith(prefix))

    def _agents(self) -> list[tuple[str, psutil.Process]]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words[1:4] == ["-m", "spotrun", "run"] and process.status() != psutil.STATUS_ZOMBIE:
                    found += [(word[10:], process) for word in words[4:5] if word.startswith("--node-id=")]
        return found


@dataclass(frozen=True, slots=True)
class Exec:
    """A program of the user's: it is called with `ask NAME PLACE`, `release NAME`, and `list`, which writes names."""

    command: tuple[str, ...]
    line: tuple[str, ...]

    def ask(self, name: str, place: str) -> None:
        run([*self.command, "ask", name, place, *self.line])

    def release(self, name: str) -> None:
        run([*self.command, "release", name])

    def names(self, prefix: str) -> frozenset[str]:
        return frozenset(word for word in run([*self.command, "list"]).split() if word.startswith(prefix))


@dataclass(frozen=True, slots=True)
class Slurm:
    """Jobs of one node; a place is a partition."""

    line: tuple[str, ...]
    options: tuple[str, ...]  # of sbatch

    def ask(self, name: str, place: str) -> None:
        run(["sbatch"], node_script(name, self.line, SlurmOptions(partition=place, more=self.options)))

    def release(self, name: str) -> None:
        run(["scancel", f"--name={name}"])

    def names(self, prefix: str) -> frozenset[str]:
        return _words(run(["squeue", "--noheader", "--format=%j"]), prefix)


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Pods; a place is a zone."""

    line: tuple[str, ...]
    options: KubernetesOptions

    def ask(self, name: str, place: str) -> None:
        run(["kubectl", "apply", "-f", "-"], pod(name, place, self.line, self.options))

    def release(self, name: str) -> None:
        run(["kubectl", "delete", "pod", name, "--ignore-not-found", "--wait=false"])

    def names(self, prefix: str) -> frozenset[str]:
        """Those that have ended are none: they are deleted when they are released."""
        running = "--field-selector=status.phase!=Succeeded,status.phase!=Failed"
        rows = run(["kubectl", "get", "pods", "-l", "app.kubernetes.io/managed-by=spotrun-pool", running, "-o", "name"])
        return _words(rows.replace("pod/", ""), prefix)


@dataclass(frozen=True, slots=True)
class SkyPilot:
    """Clusters of one machine, by the user's task, which gets NODE, ETCD and JOB; a place is what --infra takes."""

    task: Path
    endpoint: str
    run_id: str

    def ask(self, name: str, place: str) -> None:
        settings = [f"--env=NODE={name}", f"--env=ETCD={self.endpoint}", f"--env=JOB={self.run_id}"]
        where = [f"--infra={place}"] if place else []
        run(
            [
                "sky",
                "launch",
                "--yes",
                "--detach-run",
                "--async",
                f"--cluster={name}",
                *where,
                *settings,
                str(self.task),
            ]
        )

    def release(self, name: str) -> None:
        if name in self.names(name):
            run(["sky", "down", "--yes", "--async", name])

    def names(self, prefix: str) -> frozenset[str]:
        rows = run(["sky", "status"], environment={**os.environ, "NO_COLOR": "1"}).splitlines()
        return _words("\n".join(row.split()[0] for row in rows if row.split()), prefix)


def _words(text: str, prefix: str) -> frozenset[str]:
    return frozenset(word for word in text.split() if word.startswith(prefix))
