from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotrun.checkpoint.manifest import Manifest, directory_name
from spotrun.checkpoint.retention import to_delete


def at(step: int, round: int = 1, attempt: int = 1, generation: int = 1) -> Manifest:
    return Manifest(step, round, attempt, generation, "job", "id", 1, (), "", "", 0.0)


def steps(names: list[str]) -> list[int]:
    return [int(name.split("-")[1]) for name in names]


def test_the_last_ones_are_kept() -> None:
    whole = [at(step) for step in (10, 20, 30, 40)]
    assert steps(to_delete(whole, [], keep_last=2)) == [10, 20]


def test_one_in_so_many_steps_is_kept_besides() -> None:
    whole = [at(step) for step in (90, 130, 170, 210, 260, 300, 340)]
    assert steps(to_delete(whole, [], keep_last=1, keep_every=100)) == [90, 170, 260]


def test_without_a_limit_no_whole_checkpoint_is_deleted() -> None:
    assert to_delete([at(1), at(2)], [], keep_last=None) == []


def test_newest_means_newest_in_the_job_s_history_not_the_highest_step() -> None:
    whole = [at(100, round=2, generation=1), at(50, round=3, generation=2)]
    assert to_delete(whole, [], keep_last=1) == [directory_name(100, 2, 1)]


def test_dead_unfinished_saves_go_and_those_that_may_be_under_way_stay() -> None:
    unfinished = [
        directory_name(10, 1, 1),
        directory_name(20, 1, 1),
        directory_name(30, 1, 1),
        directory_name(20, 2, 1),
    ]
    assert to_delete([at(20, attempt=2)], unfinished, keep_last=1) == unfinished[:2]


def test_without_a_whole_checkpoint_nothing_is_deleted() -> None:
    assert to_delete([], [directory_name(10, 1, 1)], keep_last=1) == []


@pytest.mark.parametrize("settings", [{"keep_last": 0}, {"keep_last": 1, "keep_every": 0}])
def test_settings_that_would_keep_nothing_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        to_delete([at(1)], [], **settings)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3), st.integers(1, 2), st.integers(1, 3)), unique=True),
    st.integers(1, 4),
    st.none() | st.integers(1, 20),
)
def test_the_newest_whole_checkpoint_is_never_deleted(
    keys: list[tuple[int, int, int, int]], keep_last: int, keep_every: int | None
) -> None:
    whole = [at(*key) for key in {key[:3]: key for key in keys}.values()]
    doomed = to_delete(whole, [], keep_last=keep_last, keep_every=keep_every)
    kept = sorted((m for m in whole if m.name not in doomed), key=lambda m: m.order)
    newest_first = sorted(whole, key=lambda m: m.order, reverse=True)
    assert [m.name for m in newest_first[:keep_last]] == [m.name for m in kept[::-1]][:keep_last]
    assert len(doomed) == len(set(doomed))
