"""Where the workers' output goes: torch's LogsSpecs and TailLog, put together as torch's PContext does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.multiprocessing.tail_log import TailLog

TAIL_INTERVAL_S = 0.02  # each stop waits for one; torch's default of 0.1 would be half of a warm restart


class Streams:
    """`dest` says which files the workers write; the tails copy what is to be seen here as well."""

    def __init__(
        self,
        name: str,
        envs: dict[int, dict[str, str]],
        logs_specs: LogsSpecs,
        prefixes: dict[int, str] | None,
        stdout_filters: Sequence[str] | None,
        stderr_filters: Sequence[str] | None,
    ) -> None:
        self.dest = logs_specs.reify(envs)  # also sets TORCHELASTIC_ERROR_FILE in `envs`
        self._files = ExitStack()
        out, err = self.dest.tee_stdouts, self.dest.tee_stderrs
        self._tails = [
            TailLog(name, out, sys.stdout, prefixes, TAIL_INTERVAL_S),
            TailLog(name, err, sys.stderr, prefixes, TAIL_INTERVAL_S),
        ]
        for filters, path, tee in (
            (stdout_filters, self.dest.filtered_stdout, out),
            (stderr_filters, self.dest.filtered_stderr, err),
        ):
            if filters:
                file = self._files.enter_context(open(path, "w", errors="replace", buffering=1))  # noqa: SIM115
                self._tails.append(TailLog(name, tee, file, prefixes, TAIL_INTERVAL_S, _any_of(filters)))

    def start(self) -> None:
        for tail in self._tails:
            tail.start()

    def close(self) -> None:
        """Drain the tails; the workers must be gone."""
        for tail in self._tails:
            tail.stop()
        self._files.close()


def _any_of(needles: Sequence[str]) -> Callable[[str], bool]:
    return lambda line: any(needle in line for needle in needles)
