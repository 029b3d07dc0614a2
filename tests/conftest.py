"""Every test leaves nothing behind: no process, /dev/shm segment or temporary file. The session fixture checks it."""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from tests.waiting import until

settings.register_profile("spotrun", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("spotrun")

PR_SET_CHILD_SUBREAPER = 36
GONE_S = 10.0  # a process that was told to die gets this long


def _segments() -> set[str]:
    """Less the semaphores of multiprocessing, which any process of this machine makes and unlinks all the time."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.mp-")}


def _living() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(autouse=True, scope="session")
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Orphans come to this process instead of to PID 1, so that none is overlooked and none stays a zombie where PID 1
    # does not reap.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    scratch = tmp_path_factory.mktemp("tmp")
    old, tempfile.tempdir = tempfile.tempdir, str(scratch)
    os.environ["TMPDIR"] = str(scratch)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))  # torch makes it when imported
    shm = _segments()
    yield
    until("the tests' processes are gone", lambda: not _living(), GONE_S, detail=lambda: str(_living()))
    until("/dev/shm is as before", lambda: not _segments() - shm, GONE_S, detail=lambda: str(_segments() - shm))
    files = [str(path.relative_to(scratch)) for path in scratch.rglob("*")]
    assert not files, f"left in the temporary directory: {files}"
    tempfile.tempdir = old


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Names the very test that left a process."""
    before = {process.pid for process in _living()}
    yield
    end = time.monotonic() + GONE_S
    while (left := [p for p in _living() if p.pid not in before]) and time.monotonic() < end:
        time.sleep(0.02)
    for process in left:  # so that the tests after this one start clean
        process.kill()
    assert not left, f"processes left behind: {left}"


@pytest.fixture(autouse=True)
def no_variable_left() -> Iterator[None]:
    """What a launch sets for its workers must not hold for the next launch of this process."""

    def ours() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("SPOTRUN_")}

    before = ours()
    yield
    assert ours() == before
