"""Groups of real workers for the process tests, without an agent around them."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsSpecs, Std

from spotrun.launcher.workers import Workers, WorkersStatus
from tests.waiting import DEADLINE_S


@dataclass(frozen=True)
class Outcome:
    """How a worker ended and what it wrote."""

    code: int
    out: str
    err: str


def quiet_environment() -> None:
    """pytest tells its phase in a variable; what changes under a zygote makes it start workers cold."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


def start(
    workers: Workers,
    command: tuple[str, ...],
    logs: Path,
    *,
    count: int = 1,
    env: dict[str, str] | None = None,
    specs: LogsSpecs | None = None,
) -> dict[int, int]:
    """`command` after `python -u`, `count` times; its output goes to files below `logs`."""
    logs.mkdir(exist_ok=True)
    quiet_environment()
    return workers.start(
        name="trainer",
        entrypoint=sys.executable,
        args=dict.fromkeys(range(count), ("-u", *command)),
        envs={rank: {"RANK": str(rank), "WORLD_SIZE": str(count), **(env or {})} for rank in range(count)},
        logs_specs=specs or DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )


def settle(workers: Workers, deadline_s: float = DEADLINE_S) -> WorkersStatus:
    """Wait, on the descriptor alone, until the workers no longer run."""
    end_s = time.monotonic() + deadline_s
    while (status := workers.poll()).state == "running":
        left_s = end_s - time.monotonic()
        assert left_s > 0, f"workers still run after {deadline_s:g} s: {status}"
        select.select([workers], [], [], left_s)
    return status


def run(
    workers: Workers, command: tuple[str, ...], logs: Path, *, count: int = 1, env: dict[str, str] | None = None
) -> list[Outcome]:
    """Start, wait for all, stop; the outcomes in the order of the local ranks."""
    start(workers, command, logs, count=count, env=env)
    end_s = time.monotonic() + DEADLINE_S
    while workers.alive() and time.monotonic() < end_s:
        select.select([workers], [], [], 1.0)
        workers.poll()
    status = workers.poll()
    alive = workers.alive()
    workers.stop(signal.SIGKILL, 0.0)
    assert not alive, f"still running: {alive}"
    outcomes = []
    newest = max(logs.glob("*/attempt_0"), key=os.path.getmtime)
    for rank in range(count):
        code = status.failures[rank].exitcode if rank in status.failures else 0
        out, err = ((newest / str(rank) / name).read_text(errors="replace") for name in ("stdout.log", "stderr.log"))
        outcomes.append(Outcome(code, out, err))
    return outcomes
