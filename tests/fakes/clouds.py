"""The metadata servers of four clouds, as their documentation says.

    with AwsServer() as server:
        server.spot(in_s=120)                  # what the provider says from now on
        server.fault = Fault.HANG              # a bad day, until it is None again

Sources: the EC2 user guide, aws-node-termination-handler and amazon-ec2-metadata-mock; the Compute Engine documentation
and Google's guest agent; Azure's "Scheduled Events for Linux VMs"; the ECS user guide of Alibaba Cloud.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from email.utils import formatdate
from types import MappingProxyType
from typing import Any

from tests.fakes.metadata import MetadataServer, Reply, Request, record, text

# AWS answers 404 with a page, not with JSON.
NOTHING = Reply(404, b"<?xml version='1.0'?><html><title>404 - Not Found</title></html>", {"Content-Type": "text/html"})


class _TokenServer(MetadataServer):
    """Metadata behind a token, as of AWS and Alibaba."""

    prefix = ""
    place: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.token_ttl_s: float | None = None  # shorter than what is asked for
        self.needs_token = True
        self.refuses_token: int | None = None  # the status of a server that has no tokens
        self.values: dict[str, Reply] = {"/latest/meta-data/instance-id": text("i-0123456789abcdef0")}
        self.values |= {f"/latest/meta-data/{path}": text(value) for path, value in self.place.items()}
        self._tokens: dict[str, float] = {}

    def forget_tokens(self) -> None:
        """As after a restart: each token is refused from now on."""
        self.change(_tokens={})

    def put(self, path: str, reply: Reply | None) -> None:
        """From now on, `path` holds this; None: nothing."""
        with self.changed:
            self.values.pop(path, None)
            if reply is not None:
                self.values[path] = reply
            self.changed.notify_all()

    def answer(self, request: Request) -> Reply | None:
        if request.method == "PUT" and request.path == "/latest/api/token":
            return self._token(request)
        token = request.headers.get(f"{self.prefix}-token", "")
        with self.changed:
            good = self._tokens.get(token, 0.0) > time.monotonic()
            if (token and not good) or (not token and self.needs_token):
                return Reply(401, b"", {})
            return self.values.get(request.path, NOTHING)

    def _token(self, request: Request) -> Reply:
        asked = request.headers.get(f"{self.prefix}-token-ttl-seconds", "")
        if self.refuses_token is not None:
            return Reply(self.refuses_token)
        if not asked.isdecimal() or not 1 <= int(asked) <= 21600:
            return Reply(400)
        ttl_s = float(asked) if self.token_ttl_s is None else self.token_ttl_s
        token = secrets.token_urlsafe(40)
        with self.changed:
            self._tokens[token] = time.monotonic() + ttl_s
        return Reply(200, token.encode(), {f"{self.prefix}-token-ttl-seconds": str(int(ttl_s))})


class AwsServer(_TokenServer):
    prefix = "x-aws-ec2-metadata"
    place = MappingProxyType({"placement/region": "eu-west-1", "placement/availability-zone": "eu-west-1b"})

    def spot(self, in_s: float = 120.0, action: str = "terminate") -> None:
        self.put("/latest/meta-data/spot/instance-action", record({"action": action, "time": self.iso(in_s)}))

    def withdraw_spot(self) -> None:
        self.put("/latest/meta-data/spot/instance-action", None)

    def rebalance(self) -> None:
        self.put("/latest/meta-data/events/recommendations/rebalance", record({"noticeTime": self.iso(0)}))

    def lifecycle(self, state: str) -> None:
        self.put("/latest/meta-data/autoscaling/target-lifecycle-state", text(state))

    def maintenance(self, in_s: float, state: str = "active", id: str = "instance-event-0d59937288b749b32") -> None:
        moment = formatdate(self.now_s() + in_s, usegmt=True).partition(", ")[2]  # 21 Jan 2019 09:00:43 GMT
        event = {"NotBefore": moment, "Code": "system-reboot", "Description": "scheduled reboot", "EventId": id,
                 "NotAfter": moment, "State": state}  # fmt: skip
        self.put("/latest/meta-data/events/maintenance/scheduled", record([event]))


class AlibabaServer(_TokenServer):
    prefix = "x-aliyun-ecs-metadata"
    place = MappingProxyType({"region-id": "cn-hangzhou", "zone-id": "cn-hangzhou-i"})

    def spot(self, in_s: float = 300.0) -> None:
        self.put("/latest/meta-data/instance/spot/termination-time", text(self.iso(in_s)))

    def withdraw_spot(self) -> None:
        self.put("/latest/meta-data/instance/spot/termination-time", None)


class GcpServer(MetadataServer):
    always: Mapping[str, str] = MappingProxyType({"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"})

    def __init__(self) -> None:
        super().__init__()
        self.preempted = "FALSE"
        self.maintenance = "NONE"
        self.zone = "projects/123456789012/zones/europe-west4-a"
        self.holds_s = 0.1  # a request without a change, at most: a server may answer before `timeout_sec` is over

    def answer(self, request: Request) -> Reply | None:
        if request.headers.get("metadata-flavor") != "Google":
            return Reply(403)
        key = request.path.removeprefix("/computeMetadata/v1/instance/")
        name = {"preempted": "preempted", "maintenance-event": "maintenance", "id": "", "zone": "zone"}.get(key)
        if name is None:
            return Reply(404)
        if name and request.query.get("wait_for_change") == "true":
            known, at_most_s = request.query.get("last_etag", ""), float(request.query.get("timeout_sec", "60"))
            self.hold(lambda: self._etag(name) != known, min(at_most_s, self.holds_s))
        if self._closing.is_set():
            return None
        value = getattr(self, name) if name else "1234567890"
        return Reply(200, value.encode(), {"Content-Type": "application/text", "ETag": self._etag(name)})

    def _etag(self, name: str) -> str:
        return format(abs(hash((name, getattr(self, name) if name else ""))), "016x")


class AzureServer(MetadataServer):
    def __init__(self, vm: str = "WestNO_0") -> None:
        super().__init__()
        self.vm = vm
        self.events: list[dict[str, Any]] = []
        self.incarnation = 1
        self.approved: list[str] = []
        self.approved_s: list[float] = []  # monotonic

    def event(
        self,
        what: str = "Preempt",
        in_s: float = 30.0,
        *,
        resources: tuple[str, ...] = ("WestNO_0",),
        status: str = "Scheduled",
        id: str = "602d9444-d2cd-49c7-8624-8643e7171297",
        duration_s: int = -1,
    ) -> None:
        """Schedule an event, or change the one of that id."""
        event = {
            "EventId": id,
            "EventType": what,
            "ResourceType": "VirtualMachine",
            "Resources": list(resources),
            "EventStatus": status,
            "NotBefore": formatdate(self.now_s() + in_s, usegmt=True) if status == "Scheduled" else "",
            "Description": "Host server is undergoing maintenance.",
            "EventSource": "Platform",
            "DurationInSeconds": duration_s,
        }
        kept = [other for other in self.events if other["EventId"] != id]
        self.change(events=[*kept, event], incarnation=self.incarnation + 1)

    def clear(self) -> None:
        """All events are over, or were withdrawn: Azure does not say which."""
        self.change(events=[], incarnation=self.incarnation + 1)

    def answer(self, request: Request) -> Reply | None:
        if request.headers.get("metadata") != "true":
            return Reply(400, b'{"error": "Bad request. Required metadata header not specified"}')
        if request.path == "/metadata/instance/compute/name" and request.query.get("format") == "text":
            return text(self.vm)
        if request.path in ("/metadata/instance/compute/location", "/metadata/instance/compute/zone"):
            return text("westeurope" if request.path.endswith("location") else "2")
        if request.path != "/metadata/scheduledevents" or "api-version" not in request.query:
            return Reply(404)
        if request.method == "POST":
            return self._approve(request)
        with self.changed:
            return record({"DocumentIncarnation": self.incarnation, "Events": self.events})

    def _approve(self, request: Request) -> Reply:
        try:
            ids = [start["EventId"] for start in json.loads(request.body)["StartRequests"]]
        except (ValueError, KeyError, TypeError):
            return Reply(400)
        with self.changed:
            if not {event["EventId"] for event in self.events} >= set(ids):
                return Reply(400)
            self.approved += ids
            self.approved_s += [time.monotonic()] * len(ids)
            self.changed.notify_all()
        return Reply(200)
