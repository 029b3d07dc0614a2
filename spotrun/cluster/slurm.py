"""The batch scripts for Slurm: an array of one-node jobs that meet in etcd, or one job that shrinks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spotrun.cluster.request import Request

Shape = Literal["array", "no-kill"]
USR2_LEAD_S = 120  # before the time limit; Slurm may send it up to a minute early

_ARRAY = """\
#!/bin/bash
# Each element of the array is a node, with a life of its own: a preempted one is queued again and joins anew, while the
# others train on.
{directives}
export SPOTRUN_USR2_LEAD={lead}
trap : TERM  # Slurm tells this shell, too; srun is what ends in order
srun spotrun --nnodes={request.nnodes} \\
  --rdzv-id={request.name}-$SLURM_ARRAY_JOB_ID --node-id=$SLURM_ARRAY_TASK_ID.${{SLURM_RESTART_COUNT:-0}} \\
  {request.line}
code=$?
if [ "$(squeue -h -j $SLURM_JOB_ID -o %T)" = RUNNING ]; then # else Slurm has ended it: srun's code may be 0 even so
  case $code in
    0) scancel --state=PENDING $SLURM_ARRAY_JOB_ID ;; # all is done: elements that still wait have nothing to do
    75) scontrol requeue $SLURM_JOB_ID ;;             # this node was told to go
  esac
fi
exit $code
"""

_NO_KILL = """\
#!/bin/bash
# One job that goes on with fewer nodes when it loses some. It gets none back before it is queued again as a whole.
{directives}
export SPOTRUN_USR2_LEAD={lead}
trap : TERM  # Slurm tells this shell, too; srun is what ends in order
srun --no-kill --kill-on-bad-exit=0 --wait=0 spotrun --nnodes={request.nnodes} --rdzv-id={request.name}-$SLURM_JOB_ID \\
  {request.line}
"""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    shape: Shape = "array"
    partition: str = ""
    gpus_per_node: int = 0
    time: str = ""  # as sbatch takes it
    more: tuple[str, ...] = ()  # options of sbatch


def batch_script(request: Request, options: SlurmOptions) -> str:
    """What sbatch is given."""
    if options.shape == "array":
        size = [f"--array=0-{request.max_nodes - 1}", "--nodes=1", "--output=%x-%A_%a.log"]
    else:
        size = [f"--nodes={request.min_nodes}-{request.max_nodes}", "--no-kill", "--output=%x-%j.log"]
    directives = [f"--job-name={request.name}", *size, "--ntasks-per-node=1", "--exclusive", "--requeue"]
    directives += ["--open-mode=append", f"--signal=USR2@{USR2_LEAD_S}"]
    if options.partition:
        directives.append(f"--partition={options.partition}")
    if options.gpus_per_node:
        directives.append(f"--gpus-per-node={options.gpus_per_node}")
    if options.time:
        directives.append(f"--time={options.time}")
    text = "\n".join(f"#SBATCH {directive}" for directive in (*directives, *options.more))
    template = _ARRAY if options.shape == "array" else _NO_KILL
    return template.format(request=request, directives=text, lead=USR2_LEAD_S)
