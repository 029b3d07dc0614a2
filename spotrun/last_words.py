"""How a process that trains ends with an error.

Under an agent the error goes into the error file that torch's agents read, so that every node can tell of it. One of
`spotrun.errors` is one sentence and the documented exit code, with what spotrun's agent needs to know to end the job
where starting again cannot help; the agent prints it, once for all its workers. All others keep their traceback.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from types import TracebackType
from typing import Any

from spotrun.errors import SpotrunError
from spotrun.link import ENVIRONMENT

MARK = "spotrun"  # in the error file's extraInfo: {"exit_code": n, "retry": bool}


def speak_plainly() -> None:
    """From now on an error of ours ends this process without a traceback; all others as before."""
    before = sys.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, SpotrunError):
            _to_error_file(error, {}, "".join(traceback.format_exception(kind, error, trace)))
            before(kind, error, trace)
            return
        mark = {MARK: {"exit_code": error.exit_code, "retry": error.retry}}
        if not (_to_error_file(error, mark, "") and ENVIRONMENT in os.environ):
            # Not by sys.stderr: torch's own hook, around this one, holds back what is written there.
            os.write(2, f"spotrun: {error}\n".encode())
        raise SystemExit(error.exit_code)

    sys.excepthook = hook


def _to_error_file(error: BaseException, mark: dict[str, Any], stack: str) -> bool:
    """In torch's format, see torch.distributed.elastic.multiprocessing.errors.ErrorHandler."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    extra = {**mark, "py_callstack": stack, "timestamp": str(int(time.time()))}
    try:
        with open(path, "w") as file:
            json.dump(
                {
                    "message": {
                        "message": str(error) if mark else f"{type(error).__name__}: {error}",
                        "extraInfo": extra,
                    }
                },
                file,
            )
    except OSError:
        return False
    return True
