"""Proof that every sample was consumed exactly once an epoch: records of what each rank consumed, and their checker.

Each rank of each round appends to a file of its own in one shared directory. A header line names the data, then one
line per step holds the ids of the samples this rank has consumed. A line must be written before anything that could
make the step count (a snapshot, a checkpoint), so that no step counts without its line.

What counts. An execution of a step is complete if every rank of its round's world has recorded it. The history is read
backwards from the last complete step of the last round that has one: a round's own steps count from its first on; the
step before its first counts as the latest earlier round completed it; and so on back to step 0. All other executions
were rolled back, or died half-way, and do not count.

A valid history has every step from 0 on; each of its steps consumed as many samples as its global batch holds; no epoch
has a sample twice, no whole epoch lacks one (with drop_last the dropped ones); and every complete execution of a step,
whether it counts or not, consumed the same samples.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spotrun import events
from spotrun.errors import DataError
from spotrun.permutation import Ids
from spotrun.slices import steps_per_epoch

_NAMED = 5  # samples that one violation names; the rest is counted


@dataclass(frozen=True, slots=True)
class Layout:
    """What the records are about; equal in all files of a directory."""

    n: int
    global_batch_size: int
    drop_last: bool

    @property
    def steps(self) -> int:
        return steps_per_epoch(self.n, self.global_batch_size, self.drop_last)


@dataclass(frozen=True)
class Part:
    """What one rank consumed in one step; `step` counts from the first step of the first epoch."""

    round: int
    rank: int
    world_size: int
    step: int
    ids: Ids


Kind = Literal[
    "lost step", "incomplete step", "recorded twice", "repeated", "lost", "unknown sample", "batch size", "differs"
]


@dataclass(frozen=True, slots=True)
class Violation:
    kind: Kind
    text: str  # for people: the samples, steps, ranks and rounds


@dataclass(frozen=True)
class Report:
    layout: Layout
    steps: int = 0  # in the history that counts
    samples: int = 0
    redone: int = 0  # complete executions that do not count
    worlds: tuple[int, ...] = ()  # of the rounds that count, in their order
    violations: tuple[Violation, ...] = field(default=())

    def summary(self) -> str:
        """One line: the proof, or how many violations there are."""
        epochs, steps = divmod(self.steps, self.layout.steps)
        done = (
            f"{self.samples} samples in {_many(epochs, 'whole epoch')} and {_many(steps, 'step')}, "
            f"{_many(len(self.worlds), 'round')} with worlds of {' > '.join(map(str, self.worlds))}, "
            f"{_many(self.redone, 'step')} redone"
        )
        if self.violations:
            return f"NOT exactly once: {_many(len(self.violations), 'violation')} in {done}"
        return f"exactly once: {done}"


class AuditWriter:
    """Appends what one rank consumes in one round; `data` is `Batches.state_dict()`."""

    def __init__(self, directory: Path, *, round: int, rank: int, world_size: int, data: Mapping[str, Any]) -> None:
        self._path = directory / f"round-{round:06d}-rank-{rank:05d}.jsonl"
        layout = {name: data[name] for name in ("n", "global_batch_size", "drop_last")}
        self._steps = Layout(**layout).steps
        directory.mkdir(parents=True, exist_ok=True)
        self._fd: int | None = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._write({"v": 1, "round": round, "rank": rank, "world_size": world_size, **layout})

    def committed(self, epoch: int, step: int, ids: Sequence[int]) -> None:
        """This rank has consumed `ids` (`Batches.step_ids`) in the step that is now to be committed."""
        self._write({"step": epoch * self._steps + step, "ids": pack(ids)})

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, record: dict[str, Any]) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, json.dumps(record, separators=(",", ":")).encode() + b"\n")
        except OSError as error:  # a full disk ends the proof, not the training
            text = f"the audit ends here, {self._path} cannot be written: {error}"
            events.emit("audit_ended", text, level=logging.WARNING, path=str(self._path))
            self.close()


def pack(ids: Sequence[int]) -> list[int | list[int]]:
    """`ids` with each run of 3 or more consecutive ones as [first, last]."""
    packed: list[int | list[int]] = []
    start = 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or ids[at] != ids[at - 1] + 1:
            run = ids[start:at]
            packed.extend([[run[0], run[-1]]] if len(run) > 2 else run)
            start = at
    return packed


def unpack(packed: Sequence[int | list[int]]) -> Ids:
    spans = [np.arange(item[0], item[1] + 1) if isinstance(item, list) else np.array([item]) for item in packed]
    return np.concatenate(spans).astype(np.int64) if spans else np.empty(0, np.int64)


def load(directory: Path) -> tuple[Layout, list[Part]]:
    """The records in `directory`. Raises DataError, naming file and line, where they are none."""
    layout, layout_path, parts = None, None, []
    for path in sorted(directory.glob("round-*-rank-*.jsonl")):
        header: dict[str, Any] = {}
        # What follows the last line end was being written when its process died.
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                if "v" in record:
                    if record["v"] != 1:
                        raise ValueError(f"version {record['v']}")
                    header = record
                    here = Layout(record["n"], record["global_batch_size"], record["drop_last"])
                else:
                    ids = unpack(record["ids"])
                    parts.append(Part(header["round"], header["rank"], header["world_size"], record["step"], ids))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise DataError(f"{path}, line {number}, is not an audit record: {error!r}") from error
            if layout is None:
                layout, layout_path = here, path
            if here != layout:
                raise DataError(
                    f"{path} is about {here}, {layout_path} about {layout}: audit each job in its own directory"
                )
    if layout is None:
        raise DataError(f"no audit records in {directory}: start the job with --audit {directory}")
    return layout, parts


def check(layout: Layout, parts: Iterable[Part]) -> Report:
    """Whether the history that counts consumed every sample exactly once an epoch; pure."""
    found: list[Violation] = []
    runs = _executions(parts, found)
    history = _history(runs, found)
    rounds: list[int] = []
    for step in sorted(history):
        if not rounds or history[step] != rounds[-1]:
            rounds.append(history[step])
    complete = [run for run in runs.values() if not run.missing]
    counted = {step: runs[round, step] for step, round in sorted(history.items())}
    _check_sizes(layout, counted, found)
    _check_same(complete, counted, found)
    _check_epochs(layout, counted, found)
    return Report(
        layout,
        steps=len(counted),
        samples=sum(run.ids.size for run in counted.values()),
        redone=len(complete) - sum(not run.missing for run in counted.values()),
        worlds=tuple(next(run.world_size for run in counted.values() if run.round == round) for round in rounds),
        violations=tuple(found),
    )


@dataclass(frozen=True)
class _Run:
    """One execution of a step: the parts of its ranks."""

    round: int
    step: int
    parts: dict[int, Part]

    @property
    def world_size(self) -> int:
        return max(part.world_size for part in self.parts.values())

    @property
    def missing(self) -> list[int]:
        return sorted(set(range(self.world_size)) - self.parts.keys())

    @property
    def ids(self) -> Ids:
        return np.concatenate([self.parts[rank].ids for rank in sorted(self.parts)])

    def rank_of(self, sample: int) -> list[int]:
        return [rank for rank, part in sorted(self.parts.items()) for _ in range(int((part.ids == sample).sum()))]


def _executions(parts: Iterable[Part], found: list[Violation]) -> dict[tuple[int, int], _Run]:
    runs: dict[tuple[int, int], _Run] = {}
    for part in parts:
        run = runs.setdefault((part.round, part.step), _Run(part.round, part.step, {}))
        if part.rank in run.parts:
            text = f"rank {part.rank} recorded step {part.step} twice in round {part.round}"
            found.append(Violation("recorded twice", text + ": does the directory hold two jobs?"))
        run.parts[part.rank] = part
    return runs


def _history(runs: Mapping[tuple[int, int], _Run], found: list[Violation]) -> dict[int, int]:
    """Which round's execution of each step counts, as the text at the top defines it."""
    done: dict[int, set[int]] = defaultdict(set)  # the steps that each round completed
    first: dict[int, int] = {}
    for (round, step), run in runs.items():
        first[round] = min(step, first.get(round, step))
        if not run.missing:
            done[round].add(step)
    history: dict[int, int] = {}
    current = max(done, default=None)
    end = max(done[current]) if current is not None else -1
    while current is not None:
        for step in range(first[current], end + 1):
            if (current, step) not in runs:
                found.append(Violation("lost step", f"round {current} went past step {step} and no rank recorded it"))
                continue
            history[step] = current
            if missing := runs[current, step].missing:
                found.append(_incomplete(runs[current, step], missing))
        before, wanted = current, first[current] - 1
        earlier = [round for round in first if round < before]
        current, end = _parent(earlier, wanted, done, runs)
        if end < wanted:
            lost = f"step {wanted}" if end + 1 == wanted else f"steps {end + 1} to {wanted}"
            text = f"round {before} began at step {wanted + 1}, and no earlier round had recorded {lost}"
            found.append(Violation("lost step", text))
    return history


def _parent(
    earlier: Sequence[int], wanted: int, done: Mapping[int, set[int]], runs: Mapping[tuple[int, int], _Run]
) -> tuple[int | None, int]:
    """The round that reached `wanted`, or, where none did, the one that came nearest; and the step it reached."""
    if wanted < 0:
        return None, -1
    if completed := [round for round in earlier if wanted in done.get(round, ())]:
        return max(completed), wanted
    if begun := [round for round in earlier if (round, wanted) in runs]:
        return max(begun), wanted  # reported as an incomplete step
    nearest = max(
        ((step, round) for round in earlier for step in done.get(round, ()) if step < wanted), default=(-1, None)
    )
    return nearest[1], nearest[0]


def _incomplete(run: _Run, missing: Sequence[int]) -> Violation:
    ranks = ("rank " if len(missing) == 1 else "ranks ") + _names(missing)
    text = f"step {run.step} counts as round {run.round} did it, but {ranks} of {run.world_size} did not record it"
    return Violation("incomplete step", text)


def _check_sizes(layout: Layout, counted: Mapping[int, _Run], found: list[Violation]) -> None:
    for step, run in counted.items():
        start = step % layout.steps * layout.global_batch_size
        size = min(layout.global_batch_size, layout.n - start)
        if not run.missing and run.ids.size != size:
            text = f"step {step} consumed {run.ids.size} samples in round {run.round}; its global batch has {size}"
            found.append(Violation("batch size", text))


def _check_same(complete: Iterable[_Run], counted: Mapping[int, _Run], found: list[Violation]) -> None:
    sets: dict[int, tuple[int, Ids]] = {step: (run.round, np.sort(run.ids)) for step, run in counted.items()}
    for run in sorted(complete, key=lambda run: (run.step, run.round)):
        ids = np.sort(run.ids)
        other, reference = sets.setdefault(run.step, (run.round, ids))
        if other != run.round and not np.array_equal(ids, reference):
            only = np.setdiff1d(ids, reference)
            text = f"step {run.step} had other samples in round {run.round} than in round {other}: {_names(only)}"
            found.append(Violation("differs", text))


def _check_epochs(layout: Layout, counted: Mapping[int, _Run], found: list[Violation]) -> None:
    epochs: dict[int, list[_Run]] = defaultdict(list)
    for step, run in counted.items():
        epochs[step // layout.steps].append(run)
    for epoch, members in epochs.items():
        seen, counts = np.unique(np.concatenate([run.ids for run in members]), return_counts=True)
        for sample in seen[counts > 1].tolist():
            places = [
                f"step {run.step} rank {rank} round {run.round}" for run in members for rank in run.rank_of(sample)
            ]
            found.append(
                Violation(
                    "repeated",
                    f"sample {sample} was consumed {len(places)} times in epoch {epoch}: {'; '.join(places)}",
                )
            )
        unknown = seen[(seen < 0) | (seen >= layout.n)]
        if unknown.size:
            found.append(Violation("unknown sample", f"the dataset has no sample {_names(unknown)} (epoch {epoch})"))
        whole = len(members) == layout.steps
        if whole and not layout.drop_last and seen.size - unknown.size < layout.n:
            lost = np.setdiff1d(np.arange(layout.n), seen)
            text = f"{_many(lost.size, 'sample')} of epoch {epoch} consumed by no step: {_names(lost)}"
            found.append(Violation("lost", text))


def _names(values: Sequence[int] | Ids) -> str:
    named = ", ".join(str(value) for value in list(values[:_NAMED]))
    return named if len(values) <= _NAMED else f"{named} and {len(values) - _NAMED} more"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
