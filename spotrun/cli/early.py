"""The process that workers are forked from, started before anything has been parsed: what it imports takes seconds, and
so does torch's own parser.

It is a guess from the words of the line. Where the guess proves wrong, the launcher starts another one, and nothing
but time was lost.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

from spotrun.launcher.zygote_process import PRELOADED, TRAINING_API, ZygoteProcess

_NOT_FORKED = ("no-python", "numa-binding", "rdzv-backend", "master-addr", "master-port", "help")
_NPROC = "nproc-per-node"


@contextlib.contextmanager
def early_zygote(args: Sequence[str], environ: Mapping[str, str]) -> Iterator[ZygoteProcess | None]:
    """For the line `args`; None where no worker would be forked."""
    zygote = None
    if expects_forks(args, environ):
        zygote = ZygoteProcess((*PRELOADED, *TRAINING_API), {**environ, **threads(args, environ)})
    try:
        yield zygote
    finally:
        if zygote is not None:
            zygote.kill()


def expects_forks(args: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether workers of this line would be forked, by the look of it."""
    flags = [_flag(word) for word in args]
    given = {name for name, _ in flags} | {name for name in _NOT_FORKED if f"PET_{_variable(name)}" in environ}
    warm = next((value for name, value in reversed(flags) if name == "warm"), environ.get("SPOTRUN_WARM", ""))
    return warm != "off" and not given.intersection(_NOT_FORKED)


def threads(args: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """What torchrun sets where a node has several workers: torch reads it when it is imported."""
    words = iter(args)
    nproc = environ.get(f"PET_{_variable(_NPROC)}", "1")
    for word in words:
        name, value = _flag(word)
        if name == _NPROC:
            nproc = value or next(words, "1")
    return {} if "OMP_NUM_THREADS" in environ or nproc == "1" else {"OMP_NUM_THREADS": "1"}


def _flag(word: str) -> tuple[str, str]:
    """The name of the flag without dashes, as torch's parser takes both spellings, and what stands behind a "="."""
    found = re.fullmatch(r"--([a-z0-9_-]+)(?:=(.*))?", word, re.DOTALL)
    return (found[1].replace("_", "-"), found[2] or "") if found else ("", "")


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")
