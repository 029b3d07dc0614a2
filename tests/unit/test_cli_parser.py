"""A line of torchrun means the same here; what is ours is added, and mistakes are told in one sentence."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch.distributed.run as torchrun

import spotrun.cli
from spotrun.cli.commands import COMMANDS, misspelt
from spotrun.cli.launch import CONF_KEYS, config_from_args, run
from spotrun.cli.parser import parse_args
from spotrun.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a script, and no flag in the environment."""
    for name in list(os.environ):
        if name.startswith(("PET_", "SPOTRUN_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # torch makes a folder for logs as it reads the flags
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "backend"),
    [
        ("train.py", "etcd-v3"),
        ("--nnodes=2:4 --rdzv-endpoint=h:1 train.py", "etcd-v3"),
        ("--standalone --master-port=1 train.py", "etcd-v3"),
        ("--master-addr=localhost train.py", "etcd-v3"),  # torchrun takes this for --standalone, too
        ("--node-rank=0 train.py", "etcd-v3"),
        ("--nnodes=2 --rdzv-endpoint=h:1 --node-rank=1 train.py", "etcd-v3"),
        ("--rdzv-backend=etcd-v3 --master-port=1 train.py", "etcd-v3"),
        ("--master-port=1 train.py", "static"),
        ("--nnodes=2 --node-rank=0 train.py", "static"),
        ("--nnodes=2 --node_rank 1 --master_addr h --master_port 29500 --rdzv-id=x train.py", "static"),
        ("--rdzv-backend=c10d train.py", "c10d"),
        ("--rdzv-backend=c10d --nnodes=2 --node-rank=0 train.py", "c10d"),
        ("--rdzv-backend=static --master-port=1 train.py", "static"),
        ("train.py --master-port=1 --rdzv-backend=c10d", "etcd-v3"),
    ],
)
def test_the_backend_of_a_line(line: str, backend: str) -> None:
    assert parse_args(line.split()).rdzv_backend == backend


def test_the_environment_names_the_backend_or_the_master_as_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_MASTER_PORT", "29501")
    assert parse_args(["train.py"]).rdzv_backend == "static"
    monkeypatch.setenv("PET_RDZV_BACKEND", "c10d")
    assert parse_args(["train.py"]).rdzv_backend == "c10d"


@pytest.mark.parametrize(
    "line",
    [
        "--nnodes=1:2 --nproc_per_node=3 -r 3 -t 0:1,1:2 --max-restarts 2 train.py --nnodes=5 -- x",
        "--redirect=3 --local-ranks-filter=0,1 --duplicate-stdout-filters=a,b,,c -m pkg.mod",
        "--no-python --role=r --monitor-interval=0.5 ./tool",
    ],
)
def test_torchs_flags_are_read_as_torch_reads_them(line: str) -> None:
    theirs = vars(torchrun.parse_args(line.split()))  # type: ignore[no-untyped-call]
    ours = vars(parse_args(line.split()))
    assert {name: ours[name] for name in theirs if name != "rdzv_backend"} == {
        name: value for name, value in theirs.items() if name != "rdzv_backend"
    }


def test_our_flags_reach_the_rendezvous_as_its_settings(here: Path) -> None:
    (here / "x.pem").write_text("x")
    (here / "password").write_text("s3cret\n")
    line = (
        "--rdzv-endpoint=h:1 --rdzv-conf=lease_ttl=9,timeout=60 --lease-ttl=5 --join-window=0 --on-loss=wait:9 "
        "--grow=never --quarantine=3/60 --node-id=n1 --fresh --etcd-cacert=x.pem --etcd-cert=x.pem --etcd-key=x.pem "
        "--etcd-user=u --etcd-password-file=password train.py"
    )
    settings = config_from_args(parse_args(line.split()))[0].rdzv_configs
    assert settings == {
        "timeout": "60",
        "lease_ttl": "5",
        "join_window": "0",
        "on_loss": "wait:9",
        "grow": "never",
        "quarantine": "3/60",
        "node_id": "n1",
        "fresh": True,
        "cacert": "x.pem",
        "cert": "x.pem",
        "key": "x.pem",
        "user": "u",
        "password_file": "password",
    }
    assert set(CONF_KEYS.values()) == set(settings) - {"timeout"}


def test_our_flags_may_come_from_the_environment_but_the_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTRUN_ON_LOSS", "wait")
    monkeypatch.setenv("SPOTRUN_LEASE_TTL", "7")
    monkeypatch.setenv("SPOTRUN_FRESH", "1")
    monkeypatch.setenv("SPOTRUN_NODE_ID", "")
    settings = config_from_args(parse_args(["--rdzv-endpoint=h:1", "--lease-ttl=5", "train.py"]))[0].rdzv_configs
    assert settings == {"timeout": 900, "on_loss": "wait", "lease_ttl": "5"}


def test_without_our_flags_the_rendezvous_decides() -> None:
    config, entrypoint, args = config_from_args(parse_args(["--rdzv-endpoint=h:1", "train.py", "a"]))
    assert config.rdzv_configs == {"timeout": 900}
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("etcd-v3", "h:1")
    assert (entrypoint, args) == (sys.executable, ["-u", "train.py", "a"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--nnodes=3:2 train.py", "give 2:3"),
        ("--nnodes=many train.py", "number of nodes"),
        ("--nnodes=2 train.py", "--rdzv-endpoint=HOST:2379"),
        ("--nnodes=2 --standalone train.py", "--standalone is one node"),
        ("--nnodes=2 --rdzv-endpoint=h train.py", "give h:2379"),
        ("--nnodes=2 --rdzv-endpoint=h:1 --rdzv-id=a/b train.py", "no slash"),
        ("--nnodes=2 --rdzv-endpoint=h:1 --rdzv-id= train.py", "1 to 200 characters"),
        (f"--nnodes=2 --rdzv-endpoint=h:1 --rdzv-id={'x' * 201} train.py", "1 to 200 characters"),
        ("--nnodes=2 --rdzv-endpoint=h:1 --rdzv-id=a\x07b train.py", "1 to 200 characters"),
        ("--nproc-per-node=0 train.py", "1 or more"),
        ("--nproc-per-node=-2 train.py", "1 or more"),
        ("--nproc-per-node=few train.py", "few"),
        ("--max-restarts=-1 train.py", "max_restarts must be >= 0"),
        ("--max-restarts=x train.py", "invalid int value: 'x'"),
        ("--rdzv-conf=x train.py", "'x' must have a value"),
        ("--rdzv-conf=on_loss=grow train.py", "--on-loss=grow"),
        ("--no-python --module train.py", "--no-python"),
        ("--lease-ttl=301 train.py", "1 to 300"),
        ("--node-id=a/b train.py", "--node-id"),
        ("--on-loss=grow train.py", "--on-loss=grow"),
        ("--warm=hot train.py", "auto or off"),
        ("--drain-exit-code=x train.py", "0 to 255"),
        ("--rdzv-endpoint=h:1 --etcd-cacert=none train.py", "cannot be read"),
        ("--rdzv-endpoint=h:1 --etcd-user=u train.py", "SPOTRUN_ETCD_PASSWORD"),
        ("--rdzv-endpoint=h:1 --etcd-user=u --etcd-password-file=none train.py", "cannot be read"),
        ("--rdzv-endpoint=h:1 --etcd-password-file=train.py train.py", "without --etcd-user"),
        ("--standalone", "no script to launch"),
        ("none.py", "no script 'none.py'"),
        ("--rdzv-backend=c10d none.py", "no script 'none.py'"),
        ("--no-python ./none", "no program './none'"),
        ("--unheard-of train.py", "--unheard-of is not known"),
        ("--onloss=wait train.py", "did you mean --on-loss?"),
        ("--no train.py", "could match --no-python"),
    ],
)
def test_a_wrong_line_is_refused_in_one_sentence(line: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        run(parse_args(line.split(" ")))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_torch_finds_wrong_is_a_value_error_as_well() -> None:
    with pytest.raises(ValueError, match="--no-python"):
        spotrun.cli.main(["--no-python", "--module", "train.py"])


def test_a_switch_in_the_environment_that_is_no_switch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_STANDALONE", "yes")
    with pytest.raises(UsageError, match="must be 0 or 1"):
        parse_args(["train.py"])


def test_settings_for_the_etcd_of_the_site_do_not_hold_for_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTRUN_ETCD_USER", "u")
    monkeypatch.setenv("SPOTRUN_ETCD_CACERT", "none")
    with pytest.raises(UsageError, match="lease-ttl"):  # so neither the user nor the file was looked at before
        run(parse_args(["--standalone", "--rdzv-conf=lease_ttl=0", "train.py"]))


def test_the_package_stands_in_for_torch_distributed_run() -> None:
    assert spotrun.cli.parse_min_max_nnodes is torchrun.parse_min_max_nnodes
    assert spotrun.cli.parse_args is parse_args
    assert spotrun.cli.run is run
    assert spotrun.cli.config_from_args is config_from_args
    for name in dir(torchrun):
        assert hasattr(spotrun.cli, name), name
    with pytest.raises(AttributeError):
        _ = spotrun.cli.no_such_name


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("ectd", "etcd"),
        ("demmo", "demo"),
        ("etcd", None),
        ("train.py", None),
        ("--etcd", None),
        ("", None),
        ("ls", None),
    ],
)
def test_a_word_that_looks_like_a_command_gets_a_hint(word: str, meant: str | None) -> None:
    assert misspelt(word) == meant


def test_a_file_of_that_name_is_no_misspelling(here: Path) -> None:
    (here / "ectd").touch()
    assert misspelt("ectd") is None


def test_every_command_in_the_table_is_there() -> None:
    for command in COMMANDS.values():
        assert callable(command.load())
