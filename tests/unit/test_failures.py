"""A worker that failed is told of on every node: its traceback, its host and its log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from spotrun.launcher.failures import process_failures, record

RAISES = """
from spotrun.last_words import speak_plainly
speak_plainly()
def train():
    raise {error}
train()
"""


def fail(tmp_path: Path, error: str) -> ProcessFailure:
    """A script on the training API that ends with that error."""
    file = tmp_path / "error.json"
    code = RAISES.format(error=error)
    done = subprocess.run([sys.executable, "-c", code], env={"TORCHELASTIC_ERROR_FILE": str(file)}, capture_output=True)
    assert done.returncode == 1
    assert b"in train" in done.stderr, "in its own log as before"
    return ProcessFailure(0, 7, done.returncode, str(file))


def test_another_node_prints_the_traceback_the_host_and_the_log(tmp_path: Path) -> None:
    told = record(3, fail(tmp_path, "ValueError('bad batch')"), "10.0.0.7", "/logs/3/stderr.log")
    text = str(ChildFailedError("train.py", process_failures([told], {})))
    for part in ("ValueError: bad batch", "in train", "10.0.0.7", "/logs/3/stderr.log"):
        assert text.count(part) >= 1
    assert text.count("in train\n") == 1, "once"
    assert not told.said, "no sentence of ours"


def test_what_tells_of_another_ranks_end_is_known_by_its_error(tmp_path: Path) -> None:
    assert record(3, fail(tmp_path, "RuntimeError('Connection closed by peer')"), "h").peer_loss


def test_a_plain_script_has_its_traceback_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    log.write_text("noise\n" * 2000 + "Traceback (most recent call last):\nKeyError: 'x'\n")
    told = record(0, ProcessFailure(0, 7, 1, ""), "h", str(log))
    assert told.message.endswith("KeyError: 'x'\n")
    assert len(told.message) <= 4000


def test_an_error_file_of_torchs_own_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    extra = {"py_callstack": "Traceback of torch", "timestamp": "1"}
    file.write_text(json.dumps({"message": {"message": "it failed", "extraInfo": extra}}))
    assert record(0, ProcessFailure(0, 7, 1, str(file)), "h", "/no/log").message == "it failed\nTraceback of torch"
