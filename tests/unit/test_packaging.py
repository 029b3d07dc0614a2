"""What gets installed is `spotrun` and nothing beside it, by whatever way; and importing it is light."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "spotrun", "benchmarks", "launcher", "rendezvous")
BUILD = """
import os, sys
from setuptools import build_meta
os.chdir(sys.argv[1])
print(getattr(build_meta, "build_" + sys.argv[2])(sys.argv[3]))
"""
MODULES = (
    "spotrun",
    "spotrun.cli.help",
    "spotrun.launcher",
    "spotrun.rendezvous.transitions",
    "spotrun.benchmarks.compare",
)
# Without site-packages (-S), so that an installed spotrun cannot stand in for a broken build.
ASK = """
import importlib, site, sys
site.addsitedir(sys.argv[1])
for module in sys.argv[2:]:
    print(importlib.import_module(module).__file__)
"""


@dataclass(frozen=True)
class Builds:
    checkout: Path
    installed: Path  # the wheel that was built from the sdist
    editable: Path  # the wheel of `pip install -e`
    wheel: Path


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """All ways to install, from a copy of the checkout, without a network."""
    folder = tmp_path_factory.mktemp("builds")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "out")
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, checkout / name)
    with tarfile.open(build("sdist", checkout, folder)) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    wheel = build("wheel", unpacked, folder)
    return Builds(checkout, unzip(wheel), unzip(build("editable", checkout, folder / "for-editable")), wheel)


def build(kind: str, source: Path, into: Path) -> Path:
    into.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, str(source), kind, str(into)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return into / done.stdout.splitlines()[-1]


def unzip(wheel: Path) -> Path:
    folder = wheel.parent / f"{wheel.stem}.installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_of(*modules: str, folder: Path) -> list[Path]:
    """Where a fresh interpreter finds the modules if only `folder` is there."""
    command = [sys.executable, "-I", "-S", "-c", ASK, str(folder), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def test_the_wheel_has_spotrun_as_its_only_top_level_name(builds: Builds) -> None:
    with zipfile.ZipFile(builds.wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"spotrun"}


def test_the_wheel_has_every_module_of_the_checkout(builds: Builds) -> None:
    with zipfile.ZipFile(builds.wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith((".py", "py.typed"))}
    here = {
        path.relative_to(builds.checkout).as_posix()
        for pattern in ("*.py", "py.typed")
        for folder in ("spotrun", "spotrun/benchmarks", "spotrun/launcher", "spotrun/rendezvous")
        for path in (builds.checkout / folder).rglob(pattern)
    }
    assert packed == here


def test_installed_from_the_sdist_it_works(builds: Builds) -> None:
    for file in files_of(*MODULES, folder=builds.installed):
        assert file.is_relative_to(builds.installed)


def test_installed_in_place_it_works(builds: Builds) -> None:
    for file in files_of(*MODULES, folder=builds.editable):
        assert file.resolve().is_relative_to(builds.checkout)


def test_a_checkout_works_without_being_installed(builds: Builds) -> None:
    for file in files_of(*MODULES, folder=builds.checkout):
        assert file.is_relative_to(builds.checkout)


def test_importing_spotrun_imports_neither_torch_nor_grpc_nor_the_launcher() -> None:
    code = "import sys, spotrun, spotrun.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "spotrun" in loaded
    assert not [name for name in loaded if name.split(".")[0] in ("torch", "grpc", "numpy", "google")]
    assert not [name for name in loaded if name.startswith(("spotrun.launcher", "spotrun.rendezvous"))]


@pytest.mark.parametrize("name", ["benchmarks", "launcher", "rendezvous"])
def test_lint_refuses_the_bare_names_of_the_folders(name: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "-"]
    done = subprocess.run(command, input=f"import {name}\nprint({name})\n", capture_output=True, text=True)
    assert "TID251" in done.stdout
    assert f"spotrun.{name}" in done.stdout
