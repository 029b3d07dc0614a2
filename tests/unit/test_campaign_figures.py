"""What campaigns have shown adds up over runs."""

from __future__ import annotations

from pathlib import Path

from tests.fault.figures import append, figures, load, table
from tests.fault.history import Violation
from tests.unit.test_history import GOOD


def test_the_jobs_of_several_runs_make_one_table(tmp_path: Path) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    for seed, directory in enumerate(runs):
        directory.mkdir()
        append(directory, figures(seed, "ddp", "", GOOD, []))
    append(runs[1], figures(7, "fsdp", "--seed 7", GOOD, [Violation("one world", "there were two")]))
    jobs = load([*runs, tmp_path / "not there"])
    assert jobs[2].broken == ["one world: there were two"]
    said, _, *rows = table(jobs).splitlines()
    assert said == (
        "3 faults in 3 jobs, 1 of them broke promises. 6 rounds, 15 steps. Pauses: median 1.0 s, worst 1.0 s."
    )
    assert rows[2:] == ["| kill node | 2 | 1 | 0.4 s |", "| all | 2 | 1 | 0.4 s |"]
