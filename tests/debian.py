"""What a test needs of Debian: installed when it is missing, so that a fresh machine runs the test, too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

import pytest


def bring(programs: Iterable[str], packages: Iterable[str], path: str | None = None) -> None:
    """Install `packages` unless all `programs` are in `path`; skips the test where that cannot be done."""
    missing = ", ".join(name for name in programs if shutil.which(name, path=path) is None)
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"{missing} not found, and no apt-get with root to bring them")
    # Without starting daemons: those of tests have directories and ports of their own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"apt-get could not install {missing}: {done.stderr[-300:]}")
