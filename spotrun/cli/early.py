"""The process that workers are forked from, started before anything has been parsed: what it imports takes seconds, and
so does torch's own parser.

It is a guess from the words of the line. Where the guess proves wrong, the launcher starts another one, and nothing
but time was lost.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

from spotrun.launcher.imports import chosen
from spotrun.launcher.zygote_process import PRELOADED, TRAINING_API, ZygoteProcess

_NOT_FORKED = ("no-python", "numa-binding", "rdzv-backend", "master-addr", "master-port", "help")
_NPROC = "nproc-per-node"


@contextlib.contextmanager
def early_zygote(args: Sequence[str], environ: Mapping[str, str]) -> Iterator[ZygoteProcess | None]:
    """For the line `args`; None where no worker would be forked."""
    zygote = None
    if expects_forks(args, environ):
        modules = (*PRELOADED, *TRAINING_API, *preload(args, environ))
        zygote = ZygoteProcess(modules, {**environ, **threads(args, environ)})
    try:
        yield zygote
    finally:
        if zygote is not None:
            zygote.kill()


def expects_forks(args: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether workers of this line would be forked, by the look of it."""
    given = _given(args)
    if given.get("warm", environ.get("SPOTRUN_WARM")) == "off":
        return False
    return not any(name in given or _variable(name) in environ for name in _NOT_FORKED)


def threads(args: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """What torchrun sets where a node has several workers: torch reads it when it is imported."""
    nproc = _given(args).get(_NPROC, environ.get(_variable(_NPROC), "1"))
    return {} if "OMP_NUM_THREADS" in environ or nproc == "1" else {"OMP_NUM_THREADS": "1"}


def preload(args: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """What --preload names; the script is taken to be the first word that ends like one."""
    script = next((word for word in args if word.endswith(".py") and not word.startswith("-")), None)
    return chosen(_given(args).get("preload", environ.get("SPOTRUN_PRELOAD", "")), script)


def _given(args: Sequence[str]) -> dict[str, str]:
    """What stands behind each flag, after a "=" or as the next word. Names as torch's parser takes both spellings."""
    given = {}
    for word, following in zip(args, (*args[1:], ""), strict=True):
        if found := re.fullmatch(r"--([a-z0-9_-]+)(?:=(.*))?", word, re.DOTALL):
            given[found[1].replace("_", "-")] = following if found[2] is None else found[2]
    return given


def _variable(name: str) -> str:
    return f"PET_{name.upper().replace('-', '_')}"
