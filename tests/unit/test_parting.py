"""What is written where when nodes are told to go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spotrun.parting import Choice, Parting, choose, lost

SHARDED = Parting(in_memory=False, all_leave=False, storage=True, left_s=20.0, need_s=10.0)


def test_what_survivors_hold_is_not_written() -> None:
    assert choose(replace(SHARDED, in_memory=True, left_s=0.0)) is Choice.IN_MEMORY
    assert choose(replace(SHARDED, in_memory=True, all_leave=True)) is Choice.SAVE


@pytest.mark.parametrize(
    ("need_s", "pending_s", "choice"),
    [
        (None, None, Choice.SAVE),  # nothing is known: it is tried
        (19.0, None, Choice.SAVE),
        (39.0, None, Choice.SAVE),  # in doubt it is tried
        (41.0, None, Choice.NOTHING),  # the survivors would wait for nothing
        (10.0, 5.0, Choice.SAVE),
        (39.0, 5.0, Choice.FINISH),  # the older state is better than none
        (100.0, 100.0, Choice.NOTHING),
    ],
)
def test_the_choice_follows_from_what_a_save_takes_and_the_seconds_left(
    need_s: float | None, pending_s: float | None, choice: Choice
) -> None:
    assert choose(replace(SHARDED, need_s=need_s, pending_s=pending_s)) is choice


def test_without_a_storage_or_time_nothing_is_begun() -> None:
    assert choose(replace(SHARDED, storage=False)) is Choice.NOTHING
    assert choose(replace(SHARDED, left_s=0.0, need_s=0.0)) is Choice.NOTHING


def test_a_loss_is_told_with_its_steps_and_the_reason() -> None:
    assert lost(120, 119, "x") == "1 step up to step 120 is lost: x; step 119 is the last that is saved"
    assert lost(120, 0, "x") == "120 steps up to step 120 are lost: x; nothing has been saved before"
