"""While all is well, a line now and then."""

from __future__ import annotations

from spotrun.launcher.progress_line import CURVE_S, ProgressLine, text_of
from spotrun.rendezvous.state import Progress


def test_a_line_says_where_training_is() -> None:
    word = Progress("a", "i", 1, (120,), 3840, 0.5, 2.251234, 119, 100)
    assert text_of(word) == "step 120  2.00 steps/s  loss 2.251  saved 100"


def test_lines_come_at_their_interval_and_points_of_the_curve_in_between() -> None:
    line = ProgressLine(30.0)
    assert line.due(100.0) == (True, True)
    assert line.due(100.0 + CURVE_S / 2) == (False, False)
    assert line.due(100.0 + CURVE_S) == (True, False)
    assert line.due(130.0) == (True, True)
