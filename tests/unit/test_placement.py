"""Where a machine is, and whether the job may run there; the clouds' servers are stand-ins over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotrun import cli
from spotrun.checkpoint.region import check_region
from spotrun.checkpoint.storage_local import LocalStorage
from spotrun.errors import CheckpointError, RegionRefused, UsageError
from spotrun.launcher import placement
from spotrun.launcher.notices.metadata import Where
from tests.fakes.clouds import AlibabaServer, AwsServer, AzureServer, GcpServer
from tests.fakes.metadata import MetadataServer

SERVERS: dict[str, tuple[type[MetadataServer], Where]] = {
    "SPOTRUN_AWS_METADATA_URL": (AwsServer, Where("eu-west-1", "eu-west-1b")),
    "SPOTRUN_GCP_METADATA_URL": (GcpServer, Where("europe-west4", "europe-west4-a")),
    "SPOTRUN_AZURE_METADATA_URL": (AzureServer, Where("westeurope", "westeurope-2")),
    "SPOTRUN_ALIBABA_METADATA_URL": (AlibabaServer, Where("cn-hangzhou", "cn-hangzhou-i")),
}
NOWHERE = dict.fromkeys(SERVERS, "http://127.0.0.1:9")


@pytest.mark.parametrize("variable", SERVERS)
def test_the_cloud_says_where_its_machine_is(variable: str, tmp_path: Path) -> None:
    kind, where = SERVERS[variable]
    with kind() as server:
        environ = {**NOWHERE, variable: server.url}
        assert placement.find("", must_know=True, environ=environ, sys_vendor=tmp_path / "none") == where


def test_what_is_declared_counts_and_without_a_cloud_nothing_is_known(tmp_path: Path) -> None:
    with AwsServer() as server:
        environ = {"SPOTRUN_AWS_METADATA_URL": server.url, "SPOTRUN_ZONE": "rack-7"}
        assert placement.find("cellar", must_know=True, environ=environ) == Where("cellar", "rack-7")
    assert placement.find("", must_know=True, environ=NOWHERE, sys_vendor=tmp_path / "none") == Where("")


@pytest.mark.parametrize("region", ["eu-west-1", "eu-central-1", "uk-south"])
def test_a_machine_inside_may_take_part(region: str) -> None:
    placement.check(Where(region), ("eu-*", "uk-south"))
    placement.check(Where(region), ())


@pytest.mark.parametrize(("region", "says"), [("us-east-1", "is in us-east-1, outside"), ("", "is not known")])
def test_a_machine_outside_or_of_an_unknown_region_is_refused(region: str, says: str) -> None:
    with pytest.raises(RegionRefused, match=says):
        placement.check(Where(region), ("eu-*",))


def test_a_path_is_where_the_machine_is_and_a_bucket_may_be_declared(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    allowed = {"SPOTRUN_REGIONS": "eu-*"}
    assert check_region(storage, {}) == ""
    assert check_region(storage, {**allowed, "SPOTRUN_REGION": "eu-west-1"}) == "eu-west-1"
    with pytest.raises(CheckpointError, match="is in us-east-1, outside of --regions=eu-"):
        check_region(storage, {**allowed, "SPOTRUN_REGION": "eu-west-1", "SPOTRUN_STORAGE_REGION": "us-east-1"})
    with pytest.raises(CheckpointError, match="is not known"):
        check_region(storage, allowed)


@pytest.mark.parametrize("flag", ["--regions=eu-*", "--wipe-on-exit"])
def test_torchs_own_backends_which_keep_neither_are_refused(flag: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    with pytest.raises(UsageError, match=f"{flag.partition('=')[0]} is not kept by --rdzv-backend=c10d"):
        cli.main(["--rdzv-backend=c10d", flag, str(script)])
