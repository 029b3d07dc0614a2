"""All figures in one go, each by the script of its name with settings that two cores do in some minutes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from spotrun.benchmarks import report

SUITE: dict[str, tuple[str, ...]] = {
    "recovery": ("--launchers=spotrun,spotrun-api,torchrun", "--scenarios=kill,worker,term,join", "--repeat=3"),
    "notice": ("--repeat=5",),
    "rendezvous_scale": ("--repeat=1",),
    "snapshot": ("--mb=100,500",),
    "agreed_step": ("--blocks=20",),
    "same_curve": ("--types=float32", "--steps=200"),
    "goodput": ("--repeat=1", "--seconds=50"),
    "steady_state": ("--repeat=3",),
    "notice_success": ("--mb=500", "--deadlines=5,2", "--repeat=2"),
    "durable": ("--mb=500", "--repeat=3"),
    "plan_error": ("--turns=10",),
    "plan_losses": ("--launchers=spotrun", "--seconds=60", "--calm=10", "--rehearsals=2"),
    "sampler": ("--samples=1e6,1e7,1e9", "--repeat=3"),
}


def run(names: Sequence[str], out: Path, tell: Callable[[str], None]) -> list[str]:
    """Each of `names` into a file of `out`, then the report of all files that are there; the names that failed."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        began_s = time.monotonic()
        file = out / f"{name}.json"
        command = [sys.executable, "-m", f"spotrun.benchmarks.{name}", *SUITE[name], f"--out={file}"]
        tell(f"{name}: {' '.join(command[2:])}")
        if subprocess.run(command).returncode:
            failed.append(name)
        tell(f"{name}: {'failed after' if name in failed else ''} {time.monotonic() - began_s:.0f} s")
    report.write(out, out / "report.html")
    tell(f"{out / 'report.html'}")
    return failed
