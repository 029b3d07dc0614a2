"""The batch scripts for Slurm: an array of one-node jobs that meet in etcd, or one job that shrinks. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
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

_NODE = """\
#!/bin/bash
# One node of a job, as `spotrun pool` asks for it.
{directives}
export SPOTRUN_USR2_LEAD={lead}
trap : TERM  # Slurm tells this shell, too; srun is what ends in order
srun spotrun run --node-id={name} {line}
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
    directives = _directives(request.name, [*size, "--requeue", "--open-mode=append"], options)
    template = _ARRAY if options.shape == "array" else _NO_KILL
    return template.format(request=request, directives=directives, lead=USR2_LEAD_S)


def node_script(name: str, line: Sequence[str], options: SlurmOptions) -> str:
    """One node that is not queued again: the pool asks for another one."""
    size = ["--nodes=1", "--no-requeue", "--output=%x-%j.log"]
    directives = _directives(name, size, options)
    return _NODE.format(name=name, line=shlex.join(line), directives=directives, lead=USR2_LEAD_S)


def _directives(name: str, size: Sequence[str], options: SlurmOptions) -> str:
    found = [f"--job-name={name}", *size, "--ntasks-per-node=1", "--exclusive", f"--signal=USR2@{USR2_LEAD_S}"]
    if options.partition:
        found.append(f"--partition={options.partition}")
    if options.gpus_per_node:
        found.append(f"--gpus-per-node={options.gpus_per_node}")
    if options.time:
        found.append(f"--time={options.time}")
    return "\n".join(f"#SBATCH {directive}" for directive in (*found, *options.more))
