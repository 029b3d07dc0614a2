"""Each value of a flag is taken as people mean it, or refused in a sentence with the value and the remedy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spotrun import config
from spotrun.errors import UsageError


@pytest.mark.parametrize(
    ("parse", "value", "meaning"),
    [
        (config.parse_nnodes, "1", (1, 1)),
        (config.parse_nnodes, "2:8", (2, 8)),
        (config.parse_lease_ttl, "4", 4.0),
        (config.parse_lease_ttl, "2.5", 2.5),
        (config.parse_join_window, "0", 0.0),
        (config.parse_on_loss, "shrink", 0.0),
        (config.parse_on_loss, "wait", math.inf),
        (config.parse_on_loss, "wait:90", 90.0),
        (config.parse_regions, "eu-*, uk-south", ("eu-*", "uk-south")),
        (config.parse_grow, "now", ("now", None)),
        (config.parse_grow, "now:30", ("now", 30.0)),
        (config.parse_grow, "next-save", ("next-save", None)),
        (config.parse_grow, "never", ("never", None)),
        (config.parse_quarantine, "3/600", (3, 600.0)),
        (config.parse_hang_timeout, "90", 90.0),
        (config.parse_hang_timeout, "off", math.inf),
        (config.parse_replicas, "2", 2),
        (config.parse_drain_exit_code, "0", 0),
        (config.parse_drain_exit_code, "255", 255),
        (config.parse_warm, "off", "off"),
        (config.parse_endpoints, "etcd:2379", ("etcd:2379",)),
        (config.parse_endpoints, "a:1, b.c-d:2,[::1]:3", ("a:1", "b.c-d:2", "[::1]:3")),
        (config.split_endpoint, "[fe80::1]:2379", ("fe80::1", 2379)),
    ],
)
def test_a_good_value_is_taken(parse: Callable[[str], Any], value: str, meaning: Any) -> None:
    assert parse(value) == meaning


@pytest.mark.parametrize(
    ("parse", "value", "said"),
    [
        (config.parse_nnodes, "", "number of nodes"),
        (config.parse_nnodes, "two", "number of nodes"),
        (config.parse_nnodes, "2:3:4", "number of nodes"),
        (config.parse_nnodes, "-1", "number of nodes"),
        (config.parse_nnodes, "0", "no node"),
        (config.parse_nnodes, "8:2", "give 2:8"),
        (config.parse_lease_ttl, "0", "out of range"),
        (config.parse_lease_ttl, "301", "out of range"),
        (config.parse_lease_ttl, "4s", "number of seconds"),
        (config.parse_lease_ttl, "nan", "number of seconds"),
        (config.parse_join_window, "-1", "number of seconds"),
        (config.parse_join_window, "9999", "out of range"),
        (config.parse_on_loss, "wait:", "wait:60"),
        (config.parse_on_loss, "wait:0", "wait:60"),
        (config.parse_on_loss, "grow", "wait:60"),
        (config.parse_on_loss, "shrink:3", "wait:60"),
        (config.parse_grow, "", "next-save, or never"),
        (config.parse_grow, "never:3", "next-save, or never"),
        (config.parse_grow, "now:soon", "next-save, or never"),
        (config.parse_quarantine, "3", "such as 3/600"),
        (config.parse_quarantine, "0/60", "such as 3/600"),
        (config.parse_quarantine, "3/0", "such as 3/600"),
        (config.parse_hang_timeout, "1", "2 to 86400 seconds, or off"),
        (config.parse_hang_timeout, "never", "2 to 86400 seconds, or off"),
        (config.parse_replicas, "-1", "is no number of nodes: give 0 to 99"),
        (config.parse_drain_exit_code, "256", "0 to 255"),
        (config.parse_drain_exit_code, "-1", "0 to 255"),
        (config.parse_regions, "", "names no region"),
        (config.parse_regions, " ,", "names no region"),
        (config.parse_warm, "hot", "auto or off"),
        (config.parse_endpoints, "", "no etcd endpoint"),
        (config.parse_endpoints, "etcd", "no port: give etcd:2379"),
        (config.parse_endpoints, "[::1]", "no port"),
        (config.parse_endpoints, "a:1,,b:2", "empty endpoint"),
        (config.parse_endpoints, "a:1,b", "give b:2379"),
        (config.parse_endpoints, "etcd:0", "bad port"),
        (config.parse_endpoints, "etcd:65536", "bad port"),
        (config.parse_endpoints, "etcd:http", "bad port"),
        (config.parse_endpoints, ":2379", "bad host"),
        (config.parse_endpoints, "a b:2379", "bad host"),
        (config.parse_endpoints, "::1:2379", "brackets"),
        (config.parse_endpoints, "http://etcd:2379/", "give etcd:2379 alone"),
    ],
)
def test_a_bad_value_is_refused_with_its_remedy(parse: Callable[[str], Any], value: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(value)
    assert said in str(refused.value)
    assert value in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("environ", "code"),
    [({}, 0), ({"SLURM_JOB_ID": "7"}, 75), ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 143), ({"SLURM_JOB_ID": ""}, 0)],
)
def test_a_drained_node_exits_as_the_scheduler_around_it_understands(environ: dict[str, str], code: int) -> None:
    assert config.agent_options(environ).drain_exit_code == code
    assert config.agent_options(environ, drain_exit_code="9").drain_exit_code == 9


def test_options_that_are_not_given_are_the_defaults_of_the_dataclass() -> None:
    assert config.agent_options({}) == config.AgentOptions()
    assert config.agent_options({}, warm="off", notice="aws, file:/x", events="~/e.jsonl") == config.AgentOptions(
        notice=("aws", "file:/x"), warm="off", events=Path.home() / "e.jsonl"
    )


def test_the_events_cannot_go_to_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        config.parse_events(str(tmp_path))


def test_the_password_is_the_first_line_of_the_file_or_else_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret\r\nnot this\n")
    assert config.read_password(file, {config.PASSWORD_ENV: "other"}) == "s3cret"
    assert config.read_password(None, {config.PASSWORD_ENV: "other"}) == "other"


def test_a_missing_password_is_told_and_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--etcd-password-file, or set SPOTRUN_ETCD_PASSWORD"):
        config.read_password(None, {})
    with pytest.raises(UsageError, match="No such file"):
        config.read_password(tmp_path / "none", {})
    (tmp_path / "empty").write_text("\nsecond\n")
    with pytest.raises(UsageError, match="is empty"):
        config.read_password(tmp_path / "empty", {})


def test_a_client_certificate_needs_its_key_and_files_that_can_be_read(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.write_text("x")
    config.check_tls(pem, pem, pem)
    config.check_tls(None, None, None)
    with pytest.raises(UsageError, match="--etcd-key is missing"):
        config.check_tls(pem, pem, None)
    with pytest.raises(UsageError, match="--etcd-cert is missing"):
        config.check_tls(pem, None, pem)
    with pytest.raises(UsageError, match=r"--etcd-cacert=.*none.* cannot be read \(No such file"):
        config.check_tls(tmp_path / "none", None, None)
    with pytest.raises(UsageError, match="Is a directory"):
        config.check_tls(tmp_path, None, None)
    if os.geteuid() != 0:
        pem.chmod(0)
        with pytest.raises(UsageError, match="Permission denied"):
            config.check_tls(pem, None, None)
