"""What a forked worker does to be like a fresh `python -u script args`: see tests/process/test_zygote_likeness.py.

Two things stay different. Its hash seed is that of the zygote (unless PYTHONHASHSEED is set, it is random in both
cases), and code that looks at the stack from within finds two frames below `__main__`.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import random
import runpy
import sys
import tempfile
import time
import types
from importlib.machinery import SourceFileLoader
from multiprocessing import process
from types import TracebackType
from typing import Any, TextIO


def become(job: dict[str, Any], forget: frozenset[str]) -> None:
    """Run the job's program as __main__ of this process; the caller returns to the end of the interpreter then.

    `forget`: modules that a fresh python would not have, and would perhaps find elsewhere.
    """
    command: list[str] = job["command"]
    _rewrite_command_line(command)
    os.environ.clear()
    ctypes.CDLL(None).clearenv()  # what C code has set: readline, when it is imported
    os.environ.update(job["environment"])
    _reseed()
    tempfile.tempdir = None  # found anew by TMPDIR
    for name in forget:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    process.ORIGINAL_DIR = os.path.abspath(os.curdir)  # type: ignore[attr-defined]
    process._current_process = type(process.current_process())()  # type: ignore[attr-defined]  # its key is a secret
    sys.orig_argv = list(command)
    main = _fresh_main()
    try:
        if command[2] == "-m":
            _prepend_path(os.getcwd())
            sys.argv = ["-m", *command[4:]]
            runpy._run_module_as_main(command[3])  # type: ignore[attr-defined]  # its frames are in tracebacks
        else:
            _run_script(command[2], command[3:], main)
    except BaseException:  # raised again, without our frames
        # The interpreter reports it, with all that goes with that; only our frames are left out.
        report = sys.excepthook

        def without_ours(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            while trace is not None and trace.tb_frame.f_code.co_filename in ("<string>", __file__):
                trace = trace.tb_next
            report(kind, error.with_traceback(trace), trace)

        sys.excepthook = without_ours
        raise


def _run_script(script: str, args: list[str], main: dict[str, Any]) -> None:
    sys.argv = [script, *args]
    _prepend_path(os.path.dirname(os.path.realpath(script)))
    path = script if os.path.isabs(script) else os.path.join(os.getcwd(), script)
    main.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OSError):  # let a fresh python say it in its own words
        os.execv(sys.executable, sys.orig_argv)
    exec(code, main)


def _fresh_main() -> dict[str, Any]:
    """Not the zygote's own, emptied: that one is frozen, so what it holds would not be collected at the end."""
    module = types.ModuleType("__main__")
    known = vars(sys.modules["__main__"])
    vars(module).update({name: known[name] for name in known if name.startswith("__") and name.endswith("__")})
    if "__annotations__" in known:
        module.__annotations__ = {}
    sys.modules["__main__"] = module
    return vars(module)


def _prepend_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, folder)


def _reseed() -> None:
    """Each fresh process draws its own seeds; so does each fork. torch's CUDA generators are not made yet."""
    random.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()
    now: Any = time.time_ns() if isinstance(logging._startTime, int) else time.time()  # type: ignore[attr-defined]
    logging._startTime = now  # type: ignore[attr-defined]


def _rewrite_command_line(command: list[str]) -> None:
    """Let `ps` show the worker's own command in place of the zygote's, as setproctitle does."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
    if end - begin < 2:
        return
    text = os.fsencode(" ".join(command))[: end - begin - 2]
    # The last byte is not NUL: then the kernel shows the text up to its first NUL.
    ctypes.memmove(begin, text.ljust(end - begin - 1, b"\0") + b".", end - begin)


def settle(job: dict[str, Any]) -> None:
    """The standard streams and the working directory."""
    if job["stdout"]:
        _redirect(sys.stdout, job["stdout"])
    if job["stderr"]:
        _redirect(sys.stderr, job["stderr"])
    if job["cwd"] is not None:
        os.chdir(job["cwd"])


def _redirect(stream: TextIO, path: str) -> None:
    """Send a standard stream to a fresh file. Made anew in place: what an import has kept of it stays valid."""
    with open(path, "w") as file:
        os.dup2(file.fileno(), stream.fileno())
    raw = io.FileIO(stream.fileno(), "w", closefd=False)
    raw.name = stream.name
    encoding, errors = stream.encoding, stream.errors
    stream.__init__(raw, encoding=encoding, errors=errors, newline="\n", write_through=True)  # type: ignore[misc]
    stream.mode = "w"  # type: ignore[misc]
