"""What is guessed from a line before torch has parsed it."""

from __future__ import annotations

import os

import psutil
import pytest

from spotrun.cli.early import early_zygote, expects_forks, threads


@pytest.mark.parametrize(
    ("line", "environ", "forks"),
    [
        ("--standalone train.py", {}, True),
        ("--warm=auto train.py", {"SPOTRUN_WARM": "off"}, True),
        ("train.py", {"SPOTRUN_WARM": "off"}, False),
        ("--warm=off train.py", {}, False),
        ("--warm off train.py", {}, False),
        ("--no_python ./train", {}, False),
        ("train.py", {"PET_NO_PYTHON": "1"}, False),
        ("--rdzv-backend=c10d train.py", {}, False),
        ("--numa-binding node train.py", {}, False),
    ],
)
def test_whether_workers_will_be_forked(line: str, environ: dict[str, str], forks: bool) -> None:
    assert expects_forks(line.split(), environ) is forks


@pytest.mark.parametrize(
    ("line", "environ", "threads_"),
    [
        ("train.py", {}, None),
        ("--nproc-per-node=1 train.py", {}, None),
        ("--nproc-per-node=8 train.py", {}, "1"),
        ("--nproc_per_node gpu train.py", {}, "1"),
        ("train.py", {"PET_NPROC_PER_NODE": "2"}, "1"),
        ("--nproc-per-node=8 train.py", {"OMP_NUM_THREADS": "4"}, None),
    ],
)
def test_several_workers_get_one_thread_each_as_with_torchrun(
    line: str, environ: dict[str, str], threads_: str | None
) -> None:
    assert threads(line.split(), environ).get("OMP_NUM_THREADS") == threads_


def test_one_that_nobody_took_is_gone_at_the_end() -> None:
    with early_zygote(["train.py"], os.environ) as zygote:
        assert zygote is not None
        process = psutil.Process(zygote.process.pid)
        assert process.is_running()
    assert not process.is_running()
    with early_zygote(["--warm=off", "train.py"], os.environ) as zygote:
        assert zygote is None
