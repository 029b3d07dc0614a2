"""Which samples a rank gets: how fast, in how much memory, and how soon after a restart in the middle of an epoch.

    python -m spotrun.benchmarks.sampler [--samples 1e6,1e7,1e8,1e9] [--world 4] [--batch 4096] [--repeat 5]
                                 [--most 1e8] [--out FILE.json]

spotrun's batches beside torch's DataLoader with a DistributedSampler, both as a script uses them, over a data set whose
sample is its number. Each run is a process of its own. DistributedSampler makes a list of all samples first: beyond
--most, it is not run, and counts as infinite (1e9: 8 GB for the tensor and some 40 GB for the list).

    first_s          from making the loader to its first batch
    per_s            samples a second of one rank after that, in a loop that does nothing
    resume_s         from making the loader to the first batch of the second half of the epoch; DistributedSampler has
                     no position, so that the batches before are skipped without being loaded
    memory_mb        what the process grew by at most
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spotrun.benchmarks.measurement import Measurement

KINDS = ("spotrun", "DistributedSampler")
TITLE = "Sampler: an epoch of many samples"
HOW = (
    "spotrun's batches beside torch's DataLoader with a DistributedSampler: seconds to the first batch, samples a"
    " second of one rank, seconds to the first batch in the middle of an epoch, memory. Each run in a new process."
)
FEATURED = ("first_s", "per_s", "resume_s", "memory_mb")
BATCHES = 200  # timed


class Numbers:
    """As many samples; each is its own number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def spotrun_batches(count: int, world: int, batch: int, *, resumed: bool) -> Iterator[Any]:
    from spotrun.data import Batches

    batches = Batches(Numbers(count), global_batch_size=batch, world_size=world, collate_fn=list)
    if resumed:
        batches.load_state_dict({**batches.state_dict(), "step": len(batches) // 2})
    for loaded in batches:
        yield loaded
        batches.advance()


def torch_batches(count: int, world: int, batch: int, *, resumed: bool) -> Iterator[Any]:
    from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

    numbers: Any = Numbers(count)
    sampler: DistributedSampler[int] = DistributedSampler(numbers, num_replicas=world, rank=0)
    in_batches = BatchSampler(sampler, batch // world, drop_last=False)
    loader: DataLoader[int] = DataLoader(
        numbers,
        batch_sampler=_Rest(in_batches, len(in_batches) // 2 if resumed else 0),
        collate_fn=list,
    )
    yield from loader


class _Rest:
    """Without the first `skipped`."""

    def __init__(self, batches: Any, skipped: int) -> None:
        self._batches, self._skipped = batches, skipped

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._batches, self._skipped, None)


def observe(kind: str, count: int, world: int, batch: int) -> dict[str, float]:
    """In this process."""
    import torch.utils.data  # noqa: F401 - not part of what is timed

    make = spotrun_batches if kind == "spotrun" else torch_batches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.perf_counter()
    batches = make(count, world, batch, resumed=False)
    next(batches)
    first_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    taken = sum(len(each) for each in itertools.islice(batches, BATCHES))
    per_s = taken / (time.perf_counter() - began_s)
    del batches
    began_s = time.perf_counter()
    next(make(count, world, batch, resumed=True))
    resume_s = time.perf_counter() - began_s
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"first_s": first_s, "per_s": per_s, "resume_s": resume_s, "memory_mb": grown / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="1e6,1e7,1e8,1e9")
    parser.add_argument("--world", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4096, help="samples of all ranks")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--most", type=float, default=1e8, help="samples, for DistributedSampler")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    document = Measurement(
        "sampler", TITLE, HOW, FEATURED, {"world": options.world, "batch": options.batch}, ("per_s",)
    )
    for count in (int(float(each)) for each in options.samples.split(",")):
        for _ in range(options.repeat):
            for kind in KINDS:
                samples = f"{count:.0e}".replace("+0", "")
                if kind == "spotrun" or count <= options.most:
                    arguments = (kind, str(count), str(options.world), str(options.batch))
                    command = [sys.executable, "-m", __spec__.name, "observe", *arguments]
                    told = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                    document.add(json.loads(told.stdout), launcher=kind, samples=samples)
                else:
                    document.add({**dict.fromkeys(FEATURED), "per_s": 0.0}, launcher=kind, samples=samples)
        document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    if sys.argv[1:2] == ["observe"]:
        print(json.dumps(observe(sys.argv[2], *map(int, sys.argv[3:6]))))
    else:
        main()
