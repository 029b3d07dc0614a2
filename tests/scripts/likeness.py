"""Writes what a python process can see of itself, as one JSON object; the first argument `torch` adds torch's part."""

import os
import sys

FIRST = {  # before any other import can change it
    "environment": dict(os.environ),
    "modules": sorted(name for name in sys.modules if name.partition(".")[0] == "spotrun"),
    "globals": sorted(globals()),
}

import atexit  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import locale  # noqa: E402
import multiprocessing  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import threading  # noqa: E402
from typing import Any  # noqa: E402

PR_GET_PDEATHSIG, PR_GET_CHILD_SUBREAPER = 2, 37


def prctl(option: int) -> int:
    value = ctypes.c_int()
    ctypes.CDLL(None).prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value


def stream(file: Any) -> dict[str, object]:
    names = ("name", "mode", "encoding", "errors", "line_buffering", "write_through", "newlines")
    seen = {name: getattr(file, name) for name in names}
    seen["types"] = [type(file).__name__, type(file.buffer).__name__]
    seen["asks"] = [file.isatty(), file.seekable(), file.fileno(), file.writable()]
    return seen


def look() -> dict[str, object]:
    main: Any = sys.modules["__main__"]
    return {
        **FIRST,
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "command line": open("/proc/self/cmdline").read().replace("\0", " ").strip(),
        "executable": sys.executable,
        "path": sys.path,
        "flags": repr(sys.flags),
        "options": [sys.warnoptions, sys._xoptions],
        "main": [main.__name__, main.__file__, main.__package__, repr(main.__spec__), main.__doc__],
        "loader": [type(main.__loader__).__name__, main.__loader__.name, main.__loader__.path],
        "main is this": main.__dict__ is globals(),
        "cached": repr(getattr(main, "__cached__", "none")),
        "c environment": subprocess.run(
            ["env"], capture_output=True, text=True, errors="surrogateescape"
        ).stdout.splitlines(),
        "cwd": os.getcwd(),
        "umask": os.umask(0o22),
        "signals": {str(each): repr(signal.getsignal(each)) for each in signal.valid_signals()},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "wakeup": signal.set_wakeup_fd(-1),
        "own session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "dies with": prctl(PR_GET_PDEATHSIG),
        "subreaper": prctl(PR_GET_CHILD_SUBREAPER),
        "threads": [threading.active_count(), threading.current_thread().name, len(os.listdir("/proc/self/task"))],
        "files": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
        "streams": [stream(sys.stdout), stream(sys.stderr), sys.stdout is sys.__stdout__, sys.stdin.encoding],
        "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__, sys.gettrace()],
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), resource.getrlimit(resource.RLIMIT_NOFILE)],
        "collector": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
        "locale": [locale.setlocale(locale.LC_ALL, None), sys.getfilesystemencoding()],
        "affinity": sorted(os.sched_getaffinity(0)),
        "nice": os.nice(0),
        "mp": [multiprocessing.current_process().name, len(multiprocessing.current_process().authkey)],
        "mp method": multiprocessing.get_start_method(),
        "children": multiprocessing.active_children(),
        "ran by": atexit.__name__,
    }


def look_at_torch() -> dict[str, object]:
    import torch

    product = torch.ones(300, 300) @ torch.ones(300, 300)
    return {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "modes": [
            str(torch.get_default_dtype()),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        ],
        "cuda": [torch.cuda.is_available(), torch.cuda.is_initialized()],  # type: ignore[no-untyped-call]
        "product": float(product.sum()),
        "parallel": torch.__config__.parallel_info(),
    }


if __name__ == "__main__":
    seen = look()
    if sys.argv[1:2] == ["torch"]:
        seen["torch"] = look_at_torch()
    print(json.dumps(seen, default=str))
