"""When workers count as hung, and which rank the others wait for."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
from types import FrameType

import pytest

from spotrun.launcher.hangs import LEAST_ON_THE_WAY_S, LEAST_S, Told, hung_at_s
from spotrun.launcher.progress import Steps
from spotrun.rendezvous.hangs import behind, explain
from spotrun.rendezvous.state import Stall
from spotrun.whereabouts import whereabouts

FAST = Steps(3, 10, 640, 0.5, 2.25, 9, 5)
SLOW = dataclasses.replace(FAST, step_s=6.0)


@pytest.mark.parametrize(
    ("workers", "limit_s", "at_s"),
    [
        ([Told(FAST, 100.0)], None, 100.0 + LEAST_S),
        ([Told(FAST, 100.0), Told(SLOW, 101.0)], None, 100.0 + 20 * 6.0),
        ([Told(FAST, 100.0), Told(SLOW, 101.0)], 5.0, 105.0),
        ([Told(FAST, 100.0)], math.inf, math.inf),
        ([], 5.0, math.inf),
        ([Told(FAST, 100.0), None], 5.0, math.inf),
        ([Told(FAST, 100.0), Told(dataclasses.replace(FAST, round=2), 100.0)], 5.0, math.inf),
        ([Told(FAST, 100.0), Told(dataclasses.replace(FAST, busy=True), 100.0)], 5.0, math.inf),
    ],
    ids=["at least a minute", "twenty of the slowest steps", "as given", "off", "no worker", "one has not stepped yet",
         "one has not stepped in this round yet", "one is busy"],
)  # fmt: skip
def test_workers_hang_from_then_on(workers: list[Told | None], limit_s: float | None, at_s: float) -> None:
    assert hung_at_s(workers, 3, limit_s) == at_s


@pytest.mark.parametrize(
    ("worker", "limit_s", "at_s"),
    [(FAST, None, 110.0), (SLOW, None, 220.0), (FAST, 3.0, 103.0), (FAST, 90.0, 110.0), (FAST, math.inf, math.inf)],
)
def test_workers_on_their_way_out_hang_sooner(worker: Steps, limit_s: float | None, at_s: float) -> None:
    assert hung_at_s([Told(worker, 100.0)], 3, limit_s, leaving=True) == at_s
    instant = dataclasses.replace(worker, step_s=0.01)
    assert hung_at_s([Told(instant, 100.0)], 3, None, leaving=True) == 100.0 + LEAST_ON_THE_WAY_S


def stall(rank: int, step: int = 7, place: str = "train.py:3 in train", *, waits: bool = True) -> Stall:
    return Stall(rank, step, place, waits, "10.0.0.1")


@pytest.mark.parametrize(
    ("stalls", "ranks"),
    [
        ([stall(0), stall(1, 6), stall(2)], [1]),
        ([stall(0), stall(1, waits=False), stall(2)], [1]),
        ([stall(0), stall(1, place="", waits=False)], [1]),
        ([stall(0, 6), stall(1, 6, waits=False), stall(2)], [1]),
        ([stall(0), stall(1)], []),
        ([stall(0, waits=False), stall(1, waits=False)], []),
        ([stall(0)], [0]),
    ],
    ids=["fewer steps", "in no collective", "no answer", "fewer steps and in no collective", "all wait", "none waits",
         "alone"],
)  # fmt: skip
def test_the_rank_that_is_behind(stalls: list[Stall], ranks: list[int]) -> None:
    assert [late.rank for late in behind(stalls)] == ranks


def test_a_hang_is_explained_by_the_rank_that_is_behind_or_else_by_where_all_stand() -> None:
    assert explain([stall(0, 8), stall(1, place="", waits=False)]) == (
        "no step after step 8: the others wait for rank 1 on 10.0.0.1 (after step 7, it gives no answer)"
    )
    everyone = explain([stall(rank) for rank in range(9)])
    assert everyone.startswith("no step after step 7, and no rank is behind the others: rank 0 on 10.0.0.1 (after")
    assert everyone.endswith("5 more")


def _frame_of(thread: threading.Thread) -> FrameType:
    assert thread.ident is not None
    return sys._current_frames()[thread.ident]


def test_a_thread_stands_at_the_line_of_the_script_that_it_is_in() -> None:
    release, entered = threading.Event(), threading.Event()

    def in_my_script() -> None:
        entered.set()
        release.wait()

    thread = threading.Thread(target=in_my_script)
    thread.start()
    entered.wait()
    try:
        place, waits = whereabouts(_frame_of(thread))
    finally:
        release.set()
        thread.join()
    assert place.startswith("test_hangs.py:")
    assert place.endswith(" in in_my_script"), "not in the standard library's wait"
    assert not waits


def test_a_thread_in_a_collective_waits_for_other_ranks() -> None:
    frames: list[FrameType] = []
    namespace = {"look": lambda: frames.append(sys._getframe(1))}
    exec(compile("def all_reduce():\n    look()\n", "/x/torch/distributed/distributed_c10d.py", "exec"), namespace)
    namespace["all_reduce"]()
    place, waits = whereabouts(frames[0])
    assert waits
    assert whereabouts(None) == ("", False)
    assert place
