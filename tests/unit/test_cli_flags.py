"""The table of flags says what torch's parser does, and the help text holds all of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed.run as torchrun

from spotrun.cli.flags import BACKEND, OWN_FLAGS, TORCH_FLAGS, Flag
from spotrun.cli.help import help_text
from spotrun.cli.parser import get_args_parser
from spotrun.rendezvous import settings


@pytest.fixture(autouse=True)
def no_flags_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PET_", "SPOTRUN_")):
            monkeypatch.delenv(name)


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from (action for action in parser._actions if action.option_strings and action.dest != "help")


def test_the_table_has_every_flag_of_torchrun_with_all_its_names() -> None:
    theirs = {action.dest: sorted(action.option_strings) for action in options(torchrun.get_args_parser())}
    assert {flag.dest: sorted(flag.names) for flag in TORCH_FLAGS} == theirs


def test_the_table_has_torchs_default_for_every_flag_but_the_backend() -> None:
    for action in options(torchrun.get_args_parser()):
        flag = next(flag for flag in TORCH_FLAGS if flag.dest == action.dest)
        none = action.default is None or action.default is False or action.default == []
        expected = "" if none else str(action.default)
        assert flag.default == (BACKEND if flag.dest == "rdzv_backend" else expected), flag.dest
        assert flag.choices == tuple(action.choices or ()), flag.dest
        assert (flag.value == "") == (action.nargs == 0), flag.dest


@pytest.mark.parametrize("flag", TORCH_FLAGS, ids=lambda flag: flag.dest)
def test_the_table_knows_which_flags_the_environment_sets(flag: Flag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PET_{flag.dest.upper()}", "1")
    default = next(action.default for action in options(torchrun.get_args_parser()) if action.dest == flag.dest)
    assert (default in ("1", True)) == flag.env


def test_our_parser_is_torchs_with_our_flags_and_backend() -> None:
    ours = {action.dest: action for action in options(get_args_parser())}
    for action in options(torchrun.get_args_parser()):
        mine = ours.pop(action.dest)
        assert type(mine) is type(action)
        assert (mine.option_strings, mine.nargs) == (action.option_strings, action.nargs)
        assert mine.default == (BACKEND if action.dest == "rdzv_backend" else action.default)
    assert set(ours) == {flag.dest for flag in OWN_FLAGS}


def test_every_flag_is_in_the_help() -> None:
    text = help_text(80)
    for flag in (*OWN_FLAGS, *TORCH_FLAGS):
        assert all(name in text for name in flag.names if "_" not in name)
        assert flag.default in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def test_the_help_gives_the_defaults_of_the_rendezvous() -> None:
    defaults = {flag.dest: flag.default for flag in OWN_FLAGS}
    assert float(defaults["lease_ttl"]) == settings.LEASE_TTL_S
    assert float(defaults["join_window"]) == settings.JOIN_WINDOW_S


def test_the_page_for_those_who_come_from_torchrun_names_every_flag() -> None:
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
    missing = [flag.names for flag in (*OWN_FLAGS, *TORCH_FLAGS) if not any(f"`{name}`" in page for name in flag.names)]
    assert not missing
