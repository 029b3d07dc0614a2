"""Where a thread of this process stands, for people, and whether it waits for other ranks there. Pure."""

from __future__ import annotations

import os
from pathlib import Path
from types import FrameType

# The innermost Python frame of a rank that waits for the others: a collective, a gradient that is exchanged, the
# agreed step. A rank that is in none of them is what the others wait for. (On a GPU many waits look like computing.)
WAITS = ("torch/distributed/distributed_c10d.py", "torch/autograd/graph.py", "spotrun/consensus.py")
_LIBRARY = os.path.dirname(os.__file__)
_OURS = str(Path(__file__).resolve().parent)


def whereabouts(innermost: FrameType | None) -> tuple[str, bool]:
    """`file:line in function` of the innermost frame that is the script's own, and whether it waits for other ranks."""
    if innermost is None:
        return "", False
    waits = innermost.f_code.co_filename.endswith(WAITS)
    frame: FrameType | None = innermost
    while frame is not None and not _is_scripts(frame.f_code.co_filename):
        frame = frame.f_back
    shown = frame or innermost
    return f"{os.path.basename(shown.f_code.co_filename)}:{shown.f_lineno} in {shown.f_code.co_name}", waits


def _is_scripts(file: str) -> bool:
    """Whether that is no code of torch, of spotrun, or of the standard library."""
    if "site-packages" not in file and file.startswith(_LIBRARY):
        return False
    return not (file.startswith((_OURS, "<")) or "/site-packages/torch/" in file)
