"""The part of Google Cloud Storage's JSON API that tells what a bucket is, its answers shaped as in the docs.

https://cloud.google.com/storage/docs/json_api/v1/buckets/get
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.fakes.metadata import MetadataServer, Reply, Request, record

BUCKETS = "/storage/v1/b/"


class GoogleStorage(MetadataServer):
    """`locations`: those of its buckets, in capitals as Google writes them."""

    def __init__(self, locations: Mapping[str, str]) -> None:
        super().__init__()
        self._locations = locations

    def answer(self, request: Request) -> Reply:
        name = request.path.removeprefix(BUCKETS)
        if name not in self._locations:
            error = {"error": {"code": 404, "message": "The specified bucket does not exist."}}
            return Reply(404, json.dumps(error).encode(), {"Content-Type": "application/json"})
        location = {"location": self._locations[name], "locationType": "region"}
        return record({"kind": "storage#bucket", "id": name, "name": name, **location})
