"""The audit proves what is true and names what is not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from spotrun.audit import AuditWriter, Layout, Part, Report, check, load, pack, unpack
from spotrun.cli.audit import audit
from spotrun.errors import DataError
from spotrun.permutation import Permutation
from spotrun.slices import share

LAYOUT = Layout(n=22, global_batch_size=4, drop_last=False)  # 6 steps, the last of 2 samples


def parts(round: int, steps: Iterable[int], world: int, layout: Layout = LAYOUT) -> list[Part]:
    """What a right job records."""
    made = []
    for step in steps:
        epoch, in_epoch = divmod(step, layout.steps)
        low = in_epoch * layout.global_batch_size
        order = Permutation(layout.n, (0, epoch))
        for rank in range(world):
            span = share(low, min(low + layout.global_batch_size, layout.n), rank, world)
            made.append(Part(round, rank, world, step, order(range(*span))))
    return made


def kinds(report: Report) -> list[str]:
    return [violation.kind for violation in report.violations]


def test_a_run_without_incident_is_proved() -> None:
    report = check(LAYOUT, parts(1, range(14), 3))
    assert not report.violations
    assert report.summary() == (
        "exactly once: 52 samples in 2 whole epochs and 2 steps, 1 round with worlds of 3, 0 steps redone"
    )


def test_steps_that_were_rolled_back_and_done_again_count_once() -> None:
    report = check(LAYOUT, parts(1, range(5), 3) + parts(2, range(3, 8), 2) + parts(4, range(7, 12), 5))
    assert not report.violations
    assert (report.steps, report.samples, report.redone, report.worlds) == (12, 44, 3, (3, 2, 5))


def test_what_was_rolled_back_and_never_redone_does_not_count() -> None:
    report = check(LAYOUT, parts(1, range(10), 2) + parts(2, range(4, 6), 2))
    assert not report.violations
    assert (report.steps, report.redone) == (6, 6)


def test_a_step_that_some_ranks_recorded_before_they_died_does_not_count() -> None:
    report = check(LAYOUT, parts(1, range(5), 3)[:-1] + parts(2, range(4, 6), 2))
    assert not report.violations
    assert report.steps == 6
    assert not check(LAYOUT, parts(1, range(6), 3)[:-1]).violations


def test_a_round_that_went_on_from_an_older_state_than_the_round_before_it_is_followed() -> None:
    report = check(LAYOUT, parts(1, range(9), 3) + parts(2, range(4, 6), 2) + parts(3, range(9, 12), 2))
    assert not report.violations
    assert report.worlds == (3, 2)
    assert report.redone == 2


def test_skipped_steps_are_named_with_their_round() -> None:
    report = check(LAYOUT, parts(1, range(3), 2) + parts(2, range(5, 12), 2))
    assert kinds(report) == ["lost step"]
    assert "round 2 began at step 5, and no earlier round had recorded steps 3 to 4" in report.violations[0].text


def test_a_job_that_did_not_begin_at_the_beginning_is_named() -> None:
    report = check(LAYOUT, parts(2, range(1, 6), 2))
    assert kinds(report) == ["lost step"]
    assert "step 0" in report.violations[0].text


def test_a_hole_within_a_round_is_named() -> None:
    report = check(LAYOUT, [part for part in parts(1, range(6), 2) if part.step != 3])
    assert "round 1 went past step 3" in report.violations[0].text


def test_a_rank_without_a_record_of_a_step_that_counts_is_named() -> None:
    told = [part for part in parts(1, range(6), 3) if (part.step, part.rank) != (2, 1)]
    report = check(LAYOUT, told)
    assert kinds(report) == ["incomplete step", "lost"]
    assert "step 2" in report.violations[0].text and "rank 1 of 3" in report.violations[0].text


def test_a_step_counts_for_the_next_round_only_if_every_rank_recorded_it() -> None:
    report = check(LAYOUT, parts(1, range(4), 3)[:-1] + parts(2, range(4, 8), 2))
    assert "incomplete step" in kinds(report)
    assert "rank 2 of 3" in report.violations[0].text


def test_a_sample_seen_twice_is_named_with_each_place() -> None:
    told = parts(1, range(6), 2)
    twice = int(told[0].ids[0])
    told[-1] = Part(1, 1, 2, 5, np.array([twice]))
    report = check(LAYOUT, told)
    text = next(violation.text for violation in report.violations if violation.kind == "repeated")
    assert text == (f"sample {twice} was consumed 2 times in epoch 0: step 0 rank 0 round 1; step 5 rank 1 round 1")
    assert "lost" in kinds(report)
    assert report.summary().startswith("NOT exactly once: 2 violations")


def test_a_sample_on_two_ranks_of_one_step_is_named() -> None:
    told = parts(1, range(6), 2)
    told[1] = Part(1, 1, 2, 0, told[0].ids)
    text = next(v.text for v in check(LAYOUT, told).violations if v.kind == "repeated")
    assert "step 0 rank 0 round 1; step 0 rank 1 round 1" in text


def test_a_lost_sample_is_named() -> None:
    told = parts(1, range(6), 2)
    lost = int(told[2].ids[0])
    told[2] = Part(1, 0, 2, 1, told[2].ids[1:])
    report = check(LAYOUT, told)
    assert kinds(report) == ["batch size", "lost"]
    assert report.violations[1].text == f"1 sample of epoch 0 consumed by no step: {lost}"


def test_a_step_with_other_samples_than_when_it_was_done_first_is_named() -> None:
    redone = parts(2, range(3, 6), 2)
    other = Part(1, 0, 1, 3, np.array([0, 1, 2, 3]))
    report = check(LAYOUT, [*parts(1, range(3), 1), other, *redone])
    assert kinds(report) == ["differs"]
    assert "round 1" in report.violations[0].text and "round 2" in report.violations[0].text


def test_samples_that_the_dataset_does_not_have_are_named() -> None:
    told = parts(1, range(1), 1)
    report = check(LAYOUT, [Part(1, 0, 1, 0, np.array([22, *told[0].ids[1:]]))])
    assert kinds(report) == ["unknown sample"]


def test_two_records_of_one_rank_and_step_are_named() -> None:
    assert "recorded twice" in kinds(check(LAYOUT, parts(1, range(2), 1) + parts(1, range(1, 2), 1)))


def test_dropped_samples_are_not_lost() -> None:
    layout = Layout(n=22, global_batch_size=4, drop_last=True)
    report = check(layout, parts(1, range(10), 3, layout))
    assert not report.violations
    assert report.samples == 40


@given(st.data())
def test_any_sequence_of_worlds_and_rollbacks_is_proved_and_any_change_to_it_found(data: st.DataObject) -> None:
    layout = Layout(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12)), False)
    told: list[Part] = []
    at = 0
    for round in range(1, data.draw(st.integers(2, 6))):
        steps, world = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
        told += parts(round, range(at, at + steps), world, layout)
        at = data.draw(st.integers(0, at + steps))
    report = check(layout, told)
    assert not report.violations
    full = [part for part in told if part.ids.size]
    victim = data.draw(st.sampled_from(full))
    changed = [Part(p.round, p.rank, p.world_size, p.step, p.ids[1:]) if p is victim else p for p in told]
    counts = len({p.round for p in told if p.step == victim.step}) == 1 and victim.step < report.steps
    if counts:
        assert check(layout, changed).violations


@given(st.lists(st.integers(-5, 60)))
def test_ids_survive_their_short_form(ids: list[int]) -> None:
    assert unpack(json.loads(json.dumps(pack(ids)))).tolist() == ids


def test_runs_are_stored_as_their_ends() -> None:
    assert pack([4, 5, 6, 7, 1, 2, 9]) == [[4, 7], 1, 2, 9]


def write(directory: Path, told: Iterable[Part], layout: Layout = LAYOUT) -> None:
    data = {"n": layout.n, "global_batch_size": layout.global_batch_size, "drop_last": layout.drop_last}
    writers: dict[tuple[int, int], AuditWriter] = {}
    for part in told:
        if (part.round, part.rank) not in writers:
            writers[part.round, part.rank] = AuditWriter(
                directory, round=part.round, rank=part.rank, world_size=part.world_size, data=data
            )
        writers[part.round, part.rank].committed(*divmod(part.step, layout.steps), part.ids.tolist())
    for writer in writers.values():
        writer.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    told = parts(1, range(4), 3) + parts(2, range(3, 9), 2)
    write(tmp_path, told)
    layout, read = load(tmp_path)
    assert layout == LAYOUT
    assert sorted((p.round, p.rank, p.world_size, p.step, p.ids.tolist()) for p in read) == sorted(
        (p.round, p.rank, p.world_size, p.step, p.ids.tolist()) for p in told
    )


def test_a_line_that_was_cut_short_by_death_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, parts(1, range(4), 1))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    assert len(load(tmp_path)[1]) == 3


def test_a_file_that_is_no_record_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, parts(1, range(2), 1))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes() + b'{"step": 2}\n')
    with pytest.raises(DataError, match=r"rank-00000.jsonl, line 4"):
        load(tmp_path)


def test_two_jobs_in_one_directory_are_refused(tmp_path: Path) -> None:
    write(tmp_path, parts(1, range(2), 1))
    write(tmp_path, parts(2, range(2), 1), Layout(23, 4, False))
    with pytest.raises(DataError, match="each job in its own directory"):
        load(tmp_path)


def test_the_command_prints_the_proof_or_the_violations(tmp_path: Path) -> None:
    assert CliRunner().invoke(audit, [str(tmp_path)]).exit_code == DataError.exit_code
    write(tmp_path, parts(1, range(6), 2))
    proved = CliRunner().invoke(audit, [str(tmp_path)])
    assert (proved.exit_code, proved.output.count("\n")) == (0, 1)
    assert proved.output.startswith("exactly once: 22 samples in 1 whole epoch")
    write(tmp_path, parts(2, range(8, 9), 2))
    refuted = CliRunner().invoke(audit, [str(tmp_path)])
    assert refuted.exit_code == 1
    assert "lost step: round 2 began at step 8" in refuted.output


def test_a_full_disk_ends_the_audit_and_not_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "round-000001-rank-00000.jsonl"
    target.symlink_to("/dev/full")
    write(tmp_path, parts(1, range(3), 1))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
