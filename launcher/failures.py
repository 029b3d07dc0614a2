"""From torch's ProcessFailure to a record that every node can read, and back."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from spotrun import events
from spotrun.errors import SpotrunError
from spotrun.last_words import MARK
from spotrun.peer_loss import tells_of_peer_loss
from spotrun.rendezvous.state import Failure

MAX_MESSAGE = 4000


def record(rank: int, failure: ProcessFailure, address: str, log_file: str = "") -> Failure:
    """What the other nodes are told of a failed worker of this one; `log_file` has its stderr, if there is one."""
    message = str(failure.message)
    data = failure.error_file_data
    detail = data.get("message") if isinstance(data, dict) else None
    trace = ""
    said = None
    if isinstance(detail, dict):
        message = str(detail.get("message", message))
        extra = detail.get("extraInfo")
        if isinstance(extra, dict):
            trace = str(extra.get("py_callstack", ""))
            said = extra.get(MARK)
    if not trace and not said and log_file:
        trace = _end_of(log_file)
    return Failure(
        rank=rank,
        exit_code=failure.exitcode,
        message=(message + ("\n" + trace if trace else ""))[-MAX_MESSAGE:],
        address=address,
        peer_loss=tells_of_peer_loss(message),
        error_file=failure.error_file[-MAX_MESSAGE:],
        log_file=log_file[-MAX_MESSAGE:],
        said=isinstance(said, dict),
        final=isinstance(said, dict) and not said.get("retry"),
    )


def tell(failure: Failure, round_number: int) -> None:
    """For people and the ledger."""
    said = f": {failure.message}" if failure.said and not failure.final else ""
    events.emit(
        "worker_failed",
        f"rank {failure.rank} failed with exit code {failure.exit_code}{said}",
        level=logging.WARNING,
        round=round_number,
        rank=failure.rank,
        exit_code=failure.exit_code,
        error=failure.message,
        peer_loss=failure.peer_loss,
    )


def _end_of(log_file: str) -> str:
    """A script that does not record its errors has written its traceback there, last of all."""
    try:
        with open(log_file, "rb") as file:
            file.seek(max(0, os.path.getsize(log_file) - MAX_MESSAGE))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


class WorkerRefused(SpotrunError):
    """Raised on every node where the job failed with an error of spotrun.errors in a worker; carries its exit code."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.exit_code = failure.exit_code


def process_failures(failures: Iterable[Failure], own: dict[int, ProcessFailure]) -> dict[int, ProcessFailure]:
    """By global rank, for torch's ChildFailedError: the job's root cause first, then what failed on this node.

    ChildFailedError takes the earliest timestamp for the root cause; clocks of two hosts are not comparable, so the
    order that the coordinator found is written into the timestamps.
    """
    found: dict[int, ProcessFailure] = {}
    for failure in failures:
        known = own.get(failure.rank)
        if known is None:
            known = ProcessFailure(local_rank=-1, pid=-1, exitcode=failure.exit_code, error_file="")
            known.error_file_data = {"message": failure.message}
            where = f"on {failure.address}" + (f", its log is {failure.log_file}" if failure.log_file else "")
            known.message = f"{where}: {failure.message or _how(failure.exit_code)}"
        found[failure.rank] = known
    for rank, known in own.items():
        found.setdefault(rank, known)
    stamps = sorted(failure.timestamp for failure in found.values())
    for known, stamp in zip(found.values(), stamps, strict=True):
        known.timestamp = stamp
    return found


def _how(exit_code: int) -> str:
    if exit_code < 0:
        try:
            return f"killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            pass
    return f"exit code {exit_code}"
