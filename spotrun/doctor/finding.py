"""One thing that was looked at: how it is, why that matters, and the command that mends it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

VERSION = 1  # of the JSON form


class Grade(enum.Enum):
    OK = "ok"
    WARN = "warn"  # a job runs, but worse than it could
    FAIL = "fail"  # a job will not run, or will lose work


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    grade: Grade
    what: str
    why: str = ""
    fix: str = ""


def ok(check: str, what: str) -> Finding:
    return Finding(check, Grade.OK, what)


def as_json(node: str, findings: Iterable[Finding]) -> dict[str, Any]:
    listed = [asdict(it) | {"grade": it.grade.value} for it in findings]
    return {"v": VERSION, "node": node, "ok": all(it["grade"] != "fail" for it in listed), "findings": listed}
