"""What `spotrun pool --provider=exec:...` asks in a campaign: real agents, each on a machine of its own.

fleet.py DIR ask NAME PLACE FLAGS... | release NAME | list

DIR/slots.json says what machines there may be; DIR/machines/NAME holds the process of each that was started, DIR/calls
all that was asked. What lies in DIR harms it: `refuses`, `slow` (seconds a call), `barren` (the next machine never
joins), `stillborn` (the next machine ends at once).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOCK = Path(__file__).with_name("clock")  # see surroundings.py, which would import too much here
# Two that never become nodes.
BARREN = "import signal; signal.pause()"
STILLBORN = "pass"


def main() -> int:
    state, what, *rest = Path(sys.argv[1]), *sys.argv[2:]
    with contextlib.suppress(OSError):
        time.sleep(float((state / "slow").read_text()))
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if what == "list":
            print(*(path.name for path in (state / "machines").iterdir() if _lives(path)), sep="\n")
            return 0
        with (state / "calls").open("a") as calls:
            calls.write(json.dumps([what, *rest[:2]]) + "\n")
        if (state / "refuses").exists():
            print("no capacity", file=sys.stderr)
            return 1
        if what == "release":
            _release(state / "machines" / rest[0])
        else:
            _start(state, rest[0], rest[2:])
    return 0


def _start(state: Path, name: str, line: list[str]) -> None:
    slots = json.loads((state / "slots.json").read_text())
    taken = {json.loads(path.read_text())["slot"] for path in (state / "machines").iterdir() if _lives(path)}
    slot = next(number for number in range(len(slots)) if number not in taken)
    within, endpoint = slots[slot]["within"], slots[slot]["endpoint"]
    line = [f"--rdzv-endpoint={endpoint}" if word.startswith("--rdzv-endpoint=") else word for word in line]
    line = [f"--events={state / name}.events" if word.startswith("--events=") else word for word in line]
    command = [*within, sys.executable, "-m", "spotrun", "run", f"--node-id={name}", *line]
    for harm, program in (("barren", BARREN), ("stillborn", STILLBORN)):
        if (state / harm).exists():
            (state / harm).unlink()
            command = [sys.executable, "-c", program, f"--node-id={name}", str(state)]
    clock = state / f"clock-{name}"
    clock.write_text("0")
    own = {"SPOTRUN_NOTICE_FILE": str(state / f"notice-{name}"), "PYTHONPATH": str(CLOCK), "CAMPAIGN_CLOCK": str(clock)}
    with (state / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **own}, start_new_session=True
        )
    (state / "machines" / name).write_text(json.dumps({"pid": process.pid, "slot": slot}))


def _lives(machine: Path) -> bool:
    try:
        process = Path("/proc") / str(json.loads(machine.read_text())["pid"])
        ended = (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        return not ended and f"--node-id={machine.name}".encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _release(machine: Path) -> None:
    """As a cloud does it: the machine is gone at once, and what ran on it."""
    if _lives(machine):
        os.killpg(json.loads(machine.read_text())["pid"], signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
