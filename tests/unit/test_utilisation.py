"""Where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from spotrun.data import Batches
from spotrun.utilisation import STEPS, Utilisation


class Reduced:
    """As DDP tells of itself, in nanoseconds."""

    def _get_ddp_logging_data(self) -> Mapping[str, int]:
        return {"avg_backward_comm_time": 300_000_000, "avg_backward_compute_comm_overlap_time": 200_000_000}


def test_shares_are_of_the_time_of_the_last_steps() -> None:
    utilisation = Utilisation()
    for step in range(1, 11):
        utilisation.step(took_s=1.0, waited_s=0.25 * step)
        utilisation.saved(0.1)
    shares = utilisation.shares([Reduced()])
    assert shares == {"data_share": 0.25, "checkpoint_share": pytest.approx(0.09), "communication_share": 0.1}
    assert utilisation.checkpoint_s == pytest.approx(1.0), "of the whole round"


def test_what_was_long_ago_is_forgotten() -> None:
    utilisation = Utilisation()
    utilisation.step(took_s=100.0, waited_s=90.0)
    for _ in range(STEPS):
        utilisation.step(took_s=1.0, waited_s=90.0)
    assert utilisation.shares([])["data_share"] == 0.0


def test_without_ddp_communication_is_not_known() -> None:
    assert Utilisation().shares([object()]) == {
        "data_share": 0.0,
        "checkpoint_share": 0.0,
        "communication_share": None,
    }


def test_a_slow_dataset_is_what_batches_waited_for() -> None:
    class Counting(list[int]):
        asked = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Counting.asked += 1
            return super().__getitem__(index)

    batches = Batches(Counting(range(8)), global_batch_size=4)
    assert batches.waited_s == 0.0
    for _ in batches:
        before_s = batches.waited_s
        assert before_s > 0.0
        batches.advance()
        assert batches.waited_s == before_s, "only the loader counts"
