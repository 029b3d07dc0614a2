"""A spotrun of another version: a copy of the package that says so of each record it writes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import spotrun
from spotrun.rendezvous.state import PROTOCOL

OTHER = PROTOCOL + 1


@dataclass(frozen=True, slots=True)
class OtherSpotrun:
    """`within` and `env` of a command, such as `RealJob.start` takes, that is to run the copy."""

    root: Path

    @property
    def within(self) -> tuple[str, ...]:
        return ("env", "-C", str(self.root))  # `python -m` looks there first

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.root)}


def other_version(root: Path) -> OtherSpotrun:
    package = root / "spotrun"
    shutil.copytree(Path(spotrun.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    state = package / "rendezvous" / "state.py"
    ours, theirs = (f"\nPROTOCOL = {version}\n" for version in (PROTOCOL, OTHER))
    text = state.read_text()
    assert text.count(ours) == 1
    state.write_text(text.replace(ours, theirs))
    return OtherSpotrun(root)
