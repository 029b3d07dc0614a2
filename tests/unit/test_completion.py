"""The shell completes commands, flags and names of files."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def complete(*words: str) -> list[str]:
    """What bash would offer for the last of `words`."""
    environment = {
        **os.environ,
        "_SPOTRUN_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["spotrun", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([sys.executable, "-m", "spotrun"], env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sta",), "status"),
        (("--nproc",), "--nproc-per-node"),
        (("run", "--on-l"), "--on-loss"),
        (("status", "--wa"), "--watch"),
        (("stop", "--rdzv-e"), "--rdzv-endpoint"),
        (("completion", "z"), "zsh"),
    ],
)
def test_what_was_begun_is_completed(words: tuple[str, ...], offered: str) -> None:
    assert offered in complete(*words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    done = subprocess.run([sys.executable, "-m", "spotrun", "completion", shell], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{shell}_complete" in done.stdout
    assert "_SPOTRUN_COMPLETE" in done.stdout
