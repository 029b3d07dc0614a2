"""Whether a checkpoint directory is in the regions that `spotrun --regions` allows: asked before anything is read.

A path is where this machine is, which the launcher has checked. A bucket tells by itself: S3 by GetBucketLocation,
Google by the bucket's own record. For any other kind, and for a bucket that does not tell, SPOTRUN_STORAGE_REGION does.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from typing import Any

from spotrun.checkpoint.storage import Storage
from spotrun.errors import CheckpointError

REGIONS_ENV = "SPOTRUN_REGIONS"  # what `spotrun --regions` sets for its workers
REGION_ENV = "SPOTRUN_REGION"  # where this machine is
DECLARED_ENV = "SPOTRUN_STORAGE_REGION"
_OLD_NAMES = {"": "us-east-1", "EU": "eu-west-1"}  # of S3


def check_region(storage: Storage, environ: Mapping[str, str] = os.environ) -> str:
    """The region, "" where none is asked for; raises CheckpointError where it is none of those that are allowed."""
    allowed = environ.get(REGIONS_ENV, "")
    if not allowed:
        return ""
    try:
        region = environ.get(DECLARED_ENV, "") or region_of(storage, environ)
    except Exception as error:  # whatever the storage's library raises
        why = f"the region of {storage.url} cannot be asked for ({type(error).__name__}: {error})"
        raise CheckpointError(f"{why}: set {DECLARED_ENV}, or allow it", retry=True) from error
    if not region:
        raise CheckpointError(f"the region of {storage.url} is not known, and --regions={allowed}: set {DECLARED_ENV}")
    if not any(fnmatch.fnmatch(region, pattern) for pattern in allowed.split(",")):
        raise CheckpointError(f"{storage.url} is in {region}, outside of --regions={allowed}: use a bucket inside")
    return region


def region_of(storage: Storage, environ: Mapping[str, str]) -> str:
    """In the names of its cloud, in small letters; "" where nothing tells. Raises what the storage's library raises."""
    scheme, separator, rest = storage.url.partition("://")
    if not separator:
        return environ.get(REGION_ENV, "")
    filesystem: Any = getattr(storage, "filesystem", None)
    bucket = rest.partition("/")[0]
    if scheme in ("s3", "s3a"):
        told = filesystem.call_s3("get_bucket_location", Bucket=bucket).get("LocationConstraint") or ""
        return _OLD_NAMES.get(told, told)
    if scheme in ("gs", "gcs"):
        return str(filesystem.call("GET", "b/{}", bucket, json_out=True)["location"]).lower()
    return ""
