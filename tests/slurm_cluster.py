"""A real Slurm on loopback: munge, slurmctld and several slurmd of Debian's packages, all in one directory.

Every daemon has a host name of its own (a UTS namespace, and an /etc/hosts in a mount namespace). Needs root. Where
Slurm is missing and apt can bring it, it is installed; else the tests are skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.debian import bring
from tests.waiting import until

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_CONF = """\
ClusterName=spotrun
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
RequeueExit=75
KillWait=10
SlurmdTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def install() -> None:
    """Skips the test where there can be no Slurm."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    bring(PROGRAMS, ("slurm-wlm", "munge"), PATH)


@dataclass
class Slurm:
    dir: Path
    names: list[str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.dir / "slurm.conf")}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr} {self.tell()}"
        return done.stdout

    def states(self, job: str) -> dict[str, str]:
        """The state of each job or array element, by its id as squeue shows it."""
        lines = self.run("squeue", "-h", "-r", "-a", "-t", "all", "-j", job, "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def field(self, job: str, name: str) -> str:
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(name + "="))

    def start(self, name: str, *command: str) -> None:
        """One daemon, on a host that is called `name`."""
        inside = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        unshared = ["unshare", "--uts", "--mount", "sh", "-c", inside, name, str(self.dir / "hosts"), *command]
        with (self.dir / f"{name}.out").open("wb") as log:
            self.daemons[name] = subprocess.Popen(
                unshared,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, "PATH": PATH},
                start_new_session=True,
            )

    def lose(self, name: str) -> None:
        """That machine is gone, and all that ran on it."""
        daemon = self.daemons.pop(name)
        machine = os.readlink(f"/proc/{daemon.pid}/ns/uts")
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/uts") == machine:
                    process.kill()
        daemon.wait()

    def tell(self) -> str:
        """The ends of all logs, for a failed test."""
        files = sorted([*self.dir.glob("*.log"), *self.dir.glob("*.out")])
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)


@contextlib.contextmanager
def slurm(nodes: int) -> Iterator[Slurm]:
    """A cluster of `nodes` machines n1, n2, ..., with partitions low and high; high preempts low."""
    install()
    directory = Path(tempfile.mkdtemp(prefix="spotrun-slurm-", dir="/tmp"))  # munge's socket needs a short path
    directory.chmod(0o755)  # munge wants its socket to be reached by all
    cluster = Slurm(directory, [f"n{number}" for number in range(1, nodes + 1)])
    try:
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(nodes + 1)]
            ports = [listener.getsockname()[1] for listener in listeners]
        lines = "\n".join(
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000"
            for name, port in zip(cluster.names, ports[1:], strict=True)
        )
        (directory / "slurm.conf").write_text(_CONF.format(dir=directory, ports=ports, nodes=lines))
        (directory / "hosts").write_text("127.0.0.1 localhost ctl " + " ".join(cluster.names) + "\n")
        (directory / "state").mkdir()
        (directory / "munge.key").write_bytes(secrets.token_bytes(128))
        (directory / "munge.key").chmod(0o400)
        cluster.start(
            "munge", "munged", "--foreground", "--force", f"--socket={directory}/munge.socket",
            f"--key-file={directory}/munge.key", f"--pid-file={directory}/munged.pid",
            f"--seed-file={directory}/munge.seed", f"--log-file={directory}/munged.log", "--num-threads=2",
        )  # fmt: skip
        until("munge answers", (directory / "munge.socket").exists, detail=cluster.tell)
        cluster.start("ctl", "slurmctld", "-D")
        for name in cluster.names:
            cluster.start(name, "slurmd", "-D", "-N", name)

        def idle() -> bool:
            command = ["sinfo", "-h", "-N", "-p", "low", "-o", "%T"]
            done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True)
            return done.stdout.split() == ["idle"] * nodes

        until(f"{nodes} idle nodes", idle, detail=cluster.tell)
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(directory)


def _stop(cluster: Slurm) -> None:
    with contextlib.suppress(AssertionError):  # where slurmctld has not come up
        cluster.run("scancel", "--full", "--signal=KILL", "-u", "root")
        cluster.run("scancel", "-u", "root")
    for daemon in cluster.daemons.values():
        daemon.send_signal(signal.SIGTERM)
    for daemon in cluster.daemons.values():
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:  # slurmd may wait for a node's epilog for half a minute
            daemon.kill()
            daemon.wait()

    def steps() -> list[psutil.Process]:
        """Daemons of steps that are about to end; they outlive slurmd and its kill, and come to this process."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "slurmstepd" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    for process in steps():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until("slurmstepd are gone", lambda: not steps(), 10)
