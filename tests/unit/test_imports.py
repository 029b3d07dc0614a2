"""Which modules of a script are imported before its workers are forked."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotrun.cli.early import preload
from spotrun.config import parse_preload
from spotrun.errors import UsageError
from spotrun.launcher.imports import chosen

SCRIPT = """
from __future__ import annotations
import sys, json.decoder as decoder
import torch.optim
from click import echo
from . import sibling
import neighbour
import folder.inner
import there_is_no_such_module
try:
    import rich
except ImportError:
    pass
def late():
    import psutil
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").touch()
    (tmp_path / "folder").mkdir()
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_auto_is_what_the_script_imports_at_its_top_and_is_installed(script: Path) -> None:
    assert chosen("auto", str(script)) == ("json.decoder", "torch.optim", "click")
    assert chosen("rich, auto,click", str(script)) == ("rich", "json.decoder", "torch.optim", "click")


@pytest.mark.parametrize("text", [None, "def broken(:", "\0"])
def test_of_a_script_that_cannot_be_read_nothing_is_imported(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "train.py"
    if text is not None:
        path.write_text(text)
    assert chosen("auto", str(path)) == ()
    assert chosen("auto,click", None) == ("click",), "such as a module (-m)"


def test_it_is_guessed_from_the_line_as_it_will_be_parsed(script: Path) -> None:
    named = chosen("auto", str(script))
    assert preload(["--preload=auto", "--nproc-per-node", "2", str(script), "--epochs=3"], {}) == named
    assert preload(["--preload", "click,rich", str(script)], {"SPOTRUN_PRELOAD": "auto"}) == ("click", "rich")
    assert preload([str(script)], {"SPOTRUN_PRELOAD": "auto"}) == named
    assert preload([str(script)], {}) == ()


@pytest.mark.parametrize("value", ["a b", "a,b-c", "a..b", "../x"])
def test_what_is_no_name_of_a_module_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="no name of a module"):
        parse_preload(value)
    assert parse_preload("auto,transformers, torch.optim") == "auto,transformers, torch.optim"
