"""What the zygote imports before it forks workers, and when a fork would not be the same as a fresh python.

`Preload.refuses` names the reason; such a worker is then started cold, which is always right and only slower.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import all_suffixes
from types import FrameType
from typing import Any

from spotrun.launcher.descendants import descendants
from spotrun.launcher.read_late import difference
from spotrun.launcher.warm import become, settle

LIMIT_S = 60.0  # for one import; torch takes 1 to 10 s by how busy the machine is


class Preload:
    """`step` until `finished`. `at_start`: the modules of a bare python, which no file can take the place of."""

    def __init__(self, modules: list[str], at_start: frozenset[str]) -> None:
        self._left = list(modules)
        self._environment = dict(os.environ)
        self._unsafe = ""
        # What a fresh python would not have yet, and would perhaps find elsewhere.
        ours = [name for name in sys.modules if name.partition(".")[0] == "spotrun"]
        self._forget = frozenset() if any(each.startswith("spotrun") for each in modules) else frozenset(ours)
        # No file in the script's folder can take the place of these.
        self._beyond_files = at_start | frozenset(sys.builtin_module_names) | self._forget

    @property
    def finished(self) -> bool:
        return not self._left

    def step(self) -> None:
        """Import the next module. Code of strangers: whatever it raises or hangs on only means cold starts."""
        name = self._left.pop(0)
        before = signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._unsafe = f"importing {name} beforehand failed ({type(error).__name__}: {error})"
            self._left.clear()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
        if not self._left and not self._unsafe:
            self._unsafe = _unsafe_process()
            ctypes.CDLL(None).fflush(None)  # what C code has buffered would come out of every child
            gc.collect()
            gc.freeze()  # the collector of a child leaves these pages shared

    def refuses(self, job: dict[str, Any]) -> str:
        """Why this worker cannot be a fork; empty: it can."""
        return self._unsafe or self._other_environment(job["environment"]) or self._other_program(job)

    def in_child(self, job: dict[str, Any]) -> Callable[[], None]:
        """In the fork: set it up for its job; what it has to run then, from the bottom of the stack."""
        settle(job)
        return functools.partial(become, job, self._forget)

    def _other_environment(self, environment: dict[str, str]) -> str:
        name = difference(self._environment, environment)
        return name and f"{name} is not what it was when torch was imported beforehand"

    def _other_program(self, job: dict[str, Any]) -> str:
        command = job["command"]
        if command[1:2] != ["-u"] or len(command) < 3:
            return "its python has other flags"
        if command[2] == "-m" and len(command) > 3:
            return self._shadowing(os.curdir if job["cwd"] is None else job["cwd"])
        script = os.path.join(job["cwd"] or "", command[2])
        if command[2].startswith("-") or not os.path.isfile(script) or script.endswith(".pyc"):
            return f"{command[2]!r} is not a script"
        return self._shadowing(os.path.dirname(os.path.realpath(script)))

    def _shadowing(self, folder: str) -> str:
        """A fresh python would import the script's neighbour, and not what has been imported under its name."""
        if getattr(sys.flags, "safe_path", False):
            return ""
        for entry in os.listdir(folder):  # it may hold a data set: look at names alone
            name = entry.partition(".")[0]
            if name not in sys.modules or name in self._beyond_files:
                continue
            path = os.path.join(folder, entry)
            files = [os.path.join(path, "__init__" + end) for end in all_suffixes()] if os.path.isdir(path) else [path]
            known = os.path.realpath(getattr(sys.modules[name], "__file__", None) or "")
            for file in files:
                if file.endswith(tuple(all_suffixes())) and os.path.isfile(file) and os.path.realpath(file) != known:
                    return f"{file} has the name of a module that was imported beforehand"
        return ""


def _unsafe_process() -> str:
    """Whether what was imported has left this process in a state that a fork does not carry over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of the threads that this gets rid of
        # OpenBLAS has a pool from its import on, and ends it in its own fork handler: what is left after one fork
        # stays, and would be missing in the workers.
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"what was imported beforehand runs {threads - 1} threads"
    if below := descendants(os.getpid()):
        return f"what was imported beforehand has started processes ({below})"
    for fd in os.listdir("/proc/self/fd"):
        try:
            device = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the listing's own
            continue
        if device.startswith(("/dev/nvidia", "/dev/kfd")):
            return f"what was imported beforehand has opened {device}, and a GPU context does not survive a fork"
    return ""


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"not done in {LIMIT_S:g} s")
