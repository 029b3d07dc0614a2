"""The default process groups of rounds that follow each other in one process."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import torch.distributed as dist

from tests.waiting import until

RANK = """
import os, sys, threading
import torch, torch.distributed as dist
from spotrun.runner import Groups

def heed():
    for _ in sys.stdin:
        groups.abort()

groups = Groups()
threading.Thread(target=heed, daemon=True).start()
os.environ.update(MASTER_ADDR="127.0.0.1", RANK=sys.argv[1], WORLD_SIZE="2", TORCHELASTIC_USE_AGENT_STORE="True")
for port in sys.argv[2:]:
    os.environ["MASTER_PORT"] = port
    try:
        groups.open()
    except RuntimeError:
        groups.close()
        continue
    total = torch.ones(1)
    dist.all_reduce(total)
    print(f"met {total.item():.0f}", flush=True)
"""


def start(rank: int, *stores: dist.TCPStore) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RANK, str(rank), *(str(store.port) for store in stores)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_rank_whose_round_ended_before_all_had_met_meets_those_who_were_never_in_it() -> None:
    given_up, next_one = (
        dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
        for _ in range(2)
    )
    unused = given_up.num_keys()
    ranks = [start(0, given_up, next_one), start(1, next_one)]
    try:
        until("rank 0 waits for rank 1", lambda: given_up.num_keys() > unused)
        assert ranks[0].stdin is not None
        ranks[0].stdin.write("the round is over\n")
        ranks[0].stdin.flush()
        for rank in ranks:
            told, error = rank.communicate(timeout=30)
            assert told == "met 2\n", error
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
