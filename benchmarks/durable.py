"""How soon a checkpoint is safe on the disk, and how soon it is back: beside the disk's own speed, and DCP's.

    python -m spotrun.benchmarks.durable [--mb 1000] [--world 4] [--restore-world 3] [--repeat 5] [--dir DIR]
                                 [--out FILE.json]

The sharded state of an FSDP job of --world ranks is saved, then restored by --restore-world ranks; all on this machine,
the methods taking turns.

    disk                   a save: each rank writes its bytes to a file and syncs it; a restore: it reads its share
    spotrun                until the manifest is published; every byte is on the disk then, with its checksum
    spotrun, verify=True   a restore that reads the checksums first
    dcp                    torch.distributed.checkpoint.save (which syncs its files) and load

    seconds     until the last rank is done
    ratio       seconds / those of `disk` in the same turn
    blocked_s   how much of it training waits for; spotrun writes in the background

Restores come from the page cache where the state fits in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from spotrun.benchmarks.jobs_under_test import ROOT
from spotrun.benchmarks.measurement import Measurement

RANKS = Path(__file__).parent / "durable_ranks.py"
TITLE = "Durable: a checkpoint to the disk and back"
HOW = (
    "Sharded state of an FSDP job; the methods take turns. disk: each rank writes its bytes and syncs, or reads them. "
    "ratio: seconds / those of the disk in the same turn. Restores into a world of another size, from the page cache."
)
FEATURED = ("ratio", "seconds", "blocked_s")
LIMIT_S = 600.0


def ranks(folder: Path, world: int, what: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What rank 0 tells of each act."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    arguments = (what, str(options.mb * 10**6), str(options.repeat))
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(folder), str(rank), str(world), *arguments],
            env=env,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        told, _ = processes[0].communicate(timeout=LIMIT_S)
        if any(process.wait(LIMIT_S) for process in processes):
            raise SystemExit(f"a rank of the {what} failed")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads(line) for line in told.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000, help="of all ranks together")
    parser.add_argument("--world", type=int, default=4)
    parser.add_argument("--restore-world", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="on the disk that is to be measured; else where temporary files go")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("mb", "world", "restore_world")}
    document = Measurement("durable", TITLE, HOW, FEATURED, settings)
    with tempfile.TemporaryDirectory(prefix="spotrun-bench-", dir=options.dir) as name:
        folder = Path(name)
        for what, world in (("save", options.world), ("restore", options.restore_world)):
            told = ranks(folder, world, what, options)
            disk_s = {line["turn"]: line["seconds"] for line in told if line["by"] == "disk"}
            act = what if what == "save" else f"restore {options.world} -> {world}"
            for line in told:
                by, turn = line.pop("by"), line.pop("turn")
                document.add({"ratio": line["seconds"] / disk_s[turn], **line}, launcher=by, act=act)
            document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
