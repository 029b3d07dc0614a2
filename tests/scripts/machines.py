"""A provider for `spotrun pool --provider=exec:...`: machines.py STATE_DIR ask NAME PLACE ... | release NAME | list.

What it was told lies in STATE_DIR/calls, the machines that there are in STATE_DIR/machines; it refuses the places that
are named in STATE_DIR/full.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    state, what, *rest = Path(sys.argv[1]), *sys.argv[2:]
    machines = state / "machines"
    machines.mkdir(exist_ok=True)
    if what == "list":
        print(*(path.name for path in machines.iterdir()), sep="\n")
        return 0
    with (state / "calls").open("a") as calls:
        calls.write(" ".join([what, *rest]) + "\n")
    if what == "release":
        (machines / rest[0]).unlink(missing_ok=True)
        return 0
    full = state / "full"
    if full.exists() and rest[1] in full.read_text().split():
        print(f"{rest[1]} has no capacity", file=sys.stderr)
        return 1
    (machines / rest[0]).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
