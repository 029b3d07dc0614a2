"""What workers leave on a machine is overwritten and removed; what a dead agent has left, by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spotrun.launcher.scratch import scratch, wipe


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_gone_at_the_end(temporary: Path) -> None:
    with scratch() as environment:
        assert set(environment) == {"TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
        (directory,) = temporary.iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
        (Path(environment["TMPDIR"]) / "secret").write_text("a sample")
    assert list(temporary.iterdir()) == []


def test_what_else_has_open_is_overwritten_and_what_links_lead_to_stays(temporary: Path) -> None:
    outside = temporary / "data"
    outside.write_text("stays")
    directory = temporary / "scratch"
    directory.mkdir()
    (directory / "link").symlink_to(outside)
    (directory / "secret").write_bytes(b"secret" * 1000)
    os.link(outside, directory / "hard-link")
    os.mkfifo(directory / "pipe")
    with (directory / "secret").open("rb") as held:
        wipe(directory)
        assert held.read() == bytes(6000)
    assert not directory.exists()
    assert outside.read_text() == "stays"


def test_what_a_killed_agent_left_is_wiped_by_the_next_and_what_a_living_one_has_is_not(temporary: Path) -> None:
    code = "import sys, os; from spotrun.launcher.scratch import scratch\nwith scratch() as e:\n"
    dies = f"{code}    open(e['TMPDIR'] + '/secret', 'w').write('x'); os.kill(os.getpid(), 9)"
    lives = f"{code}    print(e['TMPDIR'], flush=True); sys.stdin.read()"
    environ = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", dies], env=environ)
    assert len(list(temporary.glob("*/tmp/secret"))) == 1
    with subprocess.Popen(
        [sys.executable, "-c", lives], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with scratch():
            assert theirs.exists()
            assert len(list(temporary.iterdir())) == 2, "its own and that of the living one"
        other.communicate("")
    assert list(temporary.iterdir()) == []


def test_a_directory_that_a_starting_agent_took_for_a_dead_ones_is_made_anew(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def wiped_at_once(prefix: str) -> str:
        made.append(make(prefix=prefix))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr("tempfile.mkdtemp", wiped_at_once)
    with scratch() as environment:
        assert environment["TMPDIR"].startswith(made[1])
    assert list(temporary.iterdir()) == []
