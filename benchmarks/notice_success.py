"""Of so many notices, how often is everything safe before the machine is gone?

    python -m spotrun.benchmarks.notice_success [--mb 10,200,1000] [--deadlines 30,10,5,2] [--repeat 5]
                                        [--out FILE.json]

The hardest case: a job of one node with --nproc workers, so that nobody stays who could keep the state; all of it has
to reach the disk. The node gets a notice of so many seconds, and everything of it is killed when they are over.

    spotrun-api   the notice comes as a file with the seconds left, as a cloud's metadata would tell
    torchrun      has no notices: SIGTERM is sent at once, and the script does by hand what can be done

    saved     1 if the last step that was made lies whole on the disk, else 0
    safe_s    from the notice until then; infinite where it never was
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from spotrun.benchmarks.jobs_under_test import LAUNCHERS, LOOK_S, DidNotHappen, JobUnderTest
from spotrun.benchmarks.measurement import Measurement, some_of

ROWS = ("spotrun-api", "torchrun")
SCRIPT = Path(__file__).parent / "notice_steps.py"
TITLE = "Notices: is everything safe before the machine is gone?"
HOW = (
    "A job of one node is told that it has so many seconds, then killed. saved: the share of notices after which the "
    "last step made lay whole on the disk; safe_s: from the notice until it did. torchrun: SIGTERM at once to a script "
    "that agrees on the step and saves with DCP by hand."
)
FEATURED = ("saved", "safe_s")
START_LIMIT_S = 120.0


def observe(name: str, size_bytes: int, deadline_s: float, options: argparse.Namespace) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory(prefix="spotrun-bench-") as folder:
        notice = Path(folder) / "notice"
        launcher = LAUNCHERS[name]
        launcher = replace(launcher, env=(*launcher.env, ("SPOTRUN_NOTICE_FILE", str(notice))))
        with JobUnderTest(
            launcher, "1:1", options.nproc, script=SCRIPT, arguments=(str(size_bytes),), checkpoints=True
        ) as job:
            node = job.start()
            job.until_world(options.nproc, START_LIMIT_S)
            node.leaves = True
            began_s, began_wall_s = time.monotonic(), time.time()
            if launcher.etcd:
                whole = notice.with_suffix(".new")
                whole.write_text(json.dumps({"seconds_left": deadline_s}))
                whole.rename(notice)
            else:
                node.process.terminate()
            while node.process.poll() is None and time.monotonic() < began_s + deadline_s:
                time.sleep(LOOK_S)
            job.kill_node(node)
            made = max(line["step"] for line in job.look())
            found = saved(job.dir / "checkpoints")
    if found is None or found[0] != made:
        return {"saved": 0.0, "safe_s": None}
    return {"saved": 1.0, "safe_s": found[1] - began_wall_s}


def saved(checkpoints: Path) -> tuple[int, float] | None:
    """The newest step that lies there whole, in either format, and the wall clock when it did."""
    found = []
    for path in (*checkpoints.glob("*/manifest.json"), *checkpoints.glob("*/.metadata")):
        with suppress(ValueError):
            name = path.parent.name
            step = int(name) if name.isdigit() else int(json.loads(path.read_text())["step"])
            found.append((step, path.stat().st_mtime))
    return max(found, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", default="10,200,1000", help="of state")
    parser.add_argument("--deadlines", default="30,10,5,2", help="seconds")
    parser.add_argument("--launchers", type=some_of(ROWS), default=",".join(ROWS))
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: every job is ended first
    document = Measurement("notice_success", TITLE, HOW, FEATURED, {"nproc": options.nproc}, ("saved",))
    for _ in range(options.repeat):
        for mb in map(int, options.mb.split(",")):
            for deadline in map(int, options.deadlines.split(",")):
                for name in options.launchers:
                    try:
                        run = observe(name, mb * 10**6, deadline, options)
                    except DidNotHappen as error:
                        print(f"{name}, {mb} MB: no run, the job did not start: {error}", file=sys.stderr)
                        continue
                    document.add(run, launcher=name, mb=mb, deadline_s=deadline)
                    print(f"{name}, {mb} MB, {deadline} s: {run}", file=sys.stderr)
                document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
