"""A node that fails again and again is kept out, with a reason, until somebody says otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys
from tests.jobs import STEPS, RealJob
from tests.waiting import until

SICK = """
import os, sys
import torch.distributed as dist
if "SICK" in os.environ:
    dist.init_process_group("gloo")
    raise RuntimeError("this node is sick")
sys.argv = sys.argv[1:]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""


def readmit(job: RealJob, node: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spotrun", "readmit", f"--rdzv-endpoint={job.endpoint}", f"--rdzv-id={job.run_id}"]
    return subprocess.run([*command, node], capture_output=True, text=True)


def test_a_sick_node_is_put_out_and_refused_until_it_is_readmitted(
    make_job: Callable[..., RealJob], tmp_path: Path
) -> None:
    script = tmp_path / "perhaps_sick.py"
    script.write_text(SICK)
    job = make_job(nnodes="1:2", flags=("--quarantine=2/600", "--max-restarts=5", "--join-window=60"))
    arguments = (str(script), str(STEPS), str(job.out), "100000", "0.02")
    sick = job.start("sick", script=arguments, env={"SICK": "1"})
    with EtcdClient(EtcdConfig((job.endpoint,))) as client:
        until("it coordinates", lambda: client.get(Keys(job.run_id).node("sick")), detail=job.tell)
    well = job.start("well", script=arguments)
    assert sick.wait() == 4, job.tell()
    refusal = (
        f"The node 'sick' is kept out of the job {job.run_id!r} (2 failures within 600 s, the last before round 3)"
    )
    assert refusal in sick.output()
    assert "Traceback" not in sick.output().partition("is kept out")[2]
    job.until_steps(3, world=1)
    assert well.events("round_formed")[-1]["restarts"] == 2

    again = job.start("sick", script=arguments)
    assert again.wait() == 4
    assert refusal in again.output()
    other = readmit(job, "well")
    assert other.returncode == 2 and "'well' is not in the quarantine" in other.stderr
    done = readmit(job, "sick")
    assert (done.returncode, done.stdout) == (0, f"sick may join the job {job.run_id} again.\n"), done.stderr
    job.start("sick", script=arguments)
    job.until_steps(3, world=2)
