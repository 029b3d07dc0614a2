"""How a process that trains ends with an error of `spotrun.errors`: one sentence and the documented exit code.

Under an agent the sentence goes into the error file that torch's agents read, with what spotrun's agent needs to know
to end the job where starting again cannot help; the agent prints it, once for all its workers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from types import TracebackType
from typing import Any

from spotrun.errors import SpotrunError
from spotrun.link import ENVIRONMENT

MARK = "spotrun"  # in the error file's extraInfo: {"exit_code": n, "retry": bool}


def speak_plainly() -> None:
    """From now on such an error ends this process without a traceback; all others as before."""
    before = sys.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, SpotrunError):
            before(kind, error, trace)
            return
        if not (_to_error_file(error) and ENVIRONMENT in os.environ):
            # Not by sys.stderr: torch's own hook, around this one, holds back what is written there.
            os.write(2, f"spotrun: {error}\n".encode())
        raise SystemExit(error.exit_code)

    sys.excepthook = hook


def _to_error_file(error: SpotrunError) -> bool:
    """In torch's format, see torch.distributed.elastic.multiprocessing.errors.ErrorHandler."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    extra: dict[str, Any] = {MARK: {"exit_code": error.exit_code, "retry": error.retry}}
    extra |= {"py_callstack": "", "timestamp": str(int(time.time()))}
    try:
        with open(path, "w") as file:
            json.dump({"message": {"message": str(error), "extraInfo": extra}}, file)
    except OSError:
        return False
    return True
