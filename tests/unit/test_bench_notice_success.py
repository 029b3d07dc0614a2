"""What counts as saved after a notice: the newest step that lies whole on the disk, in either format."""

from __future__ import annotations

import json
import os
from pathlib import Path

from spotrun.benchmarks.notice_success import saved


def put(path: Path, text: str, at_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (at_s, at_s))


def test_nothing_is_saved_before_the_first_manifest(tmp_path: Path) -> None:
    assert saved(tmp_path / "not yet there") is None
    put(tmp_path / "step-00000009-r1-a1" / "__0_0.distcp", "", 1.0)
    put(tmp_path / "9" / ".metadata.tmp", "", 1.0)
    assert saved(tmp_path) is None


def test_the_newest_manifest_tells_step_and_time(tmp_path: Path) -> None:
    put(tmp_path / "step-00000009-r1-a1" / "manifest.json", json.dumps({"step": 9}), 100.0)
    put(tmp_path / "step-00000007-r1-a1" / "manifest.json", json.dumps({"step": 7}), 90.0)
    put(tmp_path / "step-00000011-r1-a1" / ".metadata", "", 110.0)  # of spotrun's, not yet published
    assert saved(tmp_path) == (9, 100.0)


def test_dcps_own_checkpoints_are_whole_with_their_metadata(tmp_path: Path) -> None:
    put(tmp_path / "12" / ".metadata", "", 50.0)
    put(tmp_path / "14" / "__0_0.distcp", "", 60.0)
    assert saved(tmp_path) == (12, 50.0)
