"""Signals as notices: what one means, and how long the process has from then on. Pure: the agent owns the handlers.

SIGTERM comes from Kubernetes, Slurm, systemd, Docker and RunPod, SIGKILL after a grace that nobody tells the process.
SIGUSR2 is for `sbatch --signal=USR2@120` (USR1 may be caught by NCCL). Slurm sends SIGCONT along with SIGTERM.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping

from spotrun.launcher.notices.notice import Grade, Notice

GRACE_ENV = "SPOTRUN_GRACE"  # seconds from SIGTERM to SIGKILL, if we are told
USR2_ENV = "SPOTRUN_USR2_LEAD"  # seconds from SIGUSR2 to the end: the number after @ in --signal
POD_GRACE_ENV = "TERMINATION_GRACE_PERIOD_SECONDS"  # of a pod whose manifest passes its terminationGracePeriodSeconds

RUNPOD_S = 5.0  # RunPod documents 5 s
KUBERNETES_S = 30.0  # default of terminationGracePeriodSeconds
SLURM_S = 30.0  # default of KillWait; a partition's GraceTime comes on top, and is not told
PLAIN_S = 10.0  # docker stop; systemd gives 90 s, but being early costs less than being killed
USR2_S = 60.0  # default of sbatch --signal


def notice_from_signal(signum: int, environ: Mapping[str, str], now_s: float) -> Notice | None:
    """What the signal says about this node; None if nothing. `now_s` is monotonic."""
    if signum == signal.SIGTERM:
        left_s = seconds_in(environ, GRACE_ENV, term_grace_s(environ))
    elif signum == signal.SIGUSR2:
        left_s = seconds_in(environ, USR2_ENV, USR2_S)
    else:
        return None
    name = signal.Signals(signum).name
    return Notice("signal", "signal", Grade.WILL, left_s, now_s, name, detail=f"{name} received")


def term_grace_s(environ: Mapping[str, str]) -> float:
    """What the surroundings usually give between SIGTERM and SIGKILL; the shortest where they are nested."""
    if environ.get("RUNPOD_POD_ID"):
        return RUNPOD_S
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return seconds_in(environ, POD_GRACE_ENV, KUBERNETES_S)
    return SLURM_S if environ.get("SLURM_JOB_ID") else PLAIN_S


def seconds_in(environ: Mapping[str, str], name: str, default_s: float) -> float:
    """The seconds in an environment variable; the default where they are missing or no number of seconds."""
    try:
        value_s = float(environ.get(name, ""))
    except ValueError:
        return default_s
    return value_s if math.isfinite(value_s) and value_s >= 0 else default_s
