"""Where this machine is, as it was declared or as its cloud says; and whether it may be there."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spotrun.errors import RegionRefused
from spotrun.launcher.notices.alibaba import AlibabaSource
from spotrun.launcher.notices.aws import AwsSource
from spotrun.launcher.notices.azure import AzureSource
from spotrun.launcher.notices.fetch import Unanswered
from spotrun.launcher.notices.gcp import GcpSource
from spotrun.launcher.notices.machine import SYS_VENDOR, cloud_by_firmware
from spotrun.launcher.notices.metadata import MetadataSource, Where

CLOUDS: tuple[type[MetadataSource], ...] = (AwsSource, GcpSource, AzureSource, AlibabaSource)
ZONE_ENV = "SPOTRUN_ZONE"


def find(
    declared: str, *, must_know: bool, environ: Mapping[str, str] = os.environ, sys_vendor: Path = SYS_VENDOR
) -> Where:
    """At most a second or two. Unless it `must_know`, no cloud is asked where nothing hints that this is one."""
    if declared:
        return Where(declared, environ.get(ZONE_ENV, ""))
    clouds = [cloud(environ, sys_vendor=sys_vendor) for cloud in CLOUDS]
    hinted = cloud_by_firmware(sys_vendor) or any(environ.get(cloud.url_env) for cloud in clouds)
    if must_know or hinted:
        with ThreadPoolExecutor(len(clouds)) as pool:
            for where in pool.map(_ask, clouds):
                if where is not None:
                    return where
    return Where("", environ.get(ZONE_ENV, ""))


def check(where: Where, regions: Sequence[str]) -> None:
    """Raises RegionRefused where this machine is in none of `regions`, patterns such as eu-*; without any it may be."""
    if not regions or any(fnmatch.fnmatch(where.region, pattern) for pattern in regions):
        return
    allowed = ",".join(regions)
    if not where.region:
        raise RegionRefused(
            f"The region of this machine is not known, and --regions={allowed} asks for it: give --region=NAME."
        )
    raise RegionRefused(
        f"This machine is in {where.region}, outside of --regions={allowed}: it takes no part in the job."
    )


def _ask(cloud: MetadataSource) -> Where | None:
    try:
        return cloud.where() if cloud.detect() else None
    except Unanswered:
        return None
