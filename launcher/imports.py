"""Which modules of the user's are imported before workers are forked: what `--preload` names.

No torch here: the process that workers are forked from is started before anything else.
"""

from __future__ import annotations

import ast
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

AUTO = "auto"


def chosen(wanted: str, script: str | None) -> tuple[str, ...]:
    """The names in `wanted`, separated by commas; "auto" among them stands for what `script` imports at its top."""
    names: dict[str, None] = {}
    for word in filter(None, (word.strip() for word in wanted.split(","))):
        names.update(dict.fromkeys(imported(Path(script)) if word == AUTO and script else [word]))
    names.pop(AUTO, None)
    return tuple(names)


def imported(script: Path) -> list[str]:
    """What the script imports at its top level from where packages are installed.

    Not its neighbours, which may be edited while the job runs, and not what is imported under a condition.
    """
    try:
        body = ast.parse(script.read_bytes()).body
    except (OSError, SyntaxError, ValueError):  # the worker will say so
        return []
    names: list[str] = []
    for statement in body:
        if isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            names.append(statement.module)
    path = [entry for entry in sys.path if entry and os.path.realpath(entry) != os.path.realpath(os.curdir)]
    return [name for name in names if _is_installed(name.partition(".")[0], script.resolve().parent, path)]


def _is_installed(name: str, folder: Path, path: list[str]) -> bool:
    if name == "__future__" or any((folder / entry).exists() for entry in (name, f"{name}.py")):
        return False
    return PathFinder.find_spec(name, path) is not None
