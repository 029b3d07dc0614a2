"""A slice of the fault campaign; `make campaign HOURS=h SEED=s` goes on from here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.campaign import KINDS_OF_JOB, reference, run

SEED, FAULTS = 1, 8


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return reference(tmp_path_factory.mktemp("reference"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", KINDS_OF_JOB)
def test_no_promise_is_broken_by_faults_in_any_order(kind: str, curve: dict[int, float], tmp_path: Path) -> None:
    result = run(SEED, FAULTS, kind, curve, tmp_path)
    assert len(result.history.harms) == FAULTS
    assert result.violations == []
