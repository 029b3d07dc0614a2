"""AWS: spot interruptions, rebalance recommendations, scheduled maintenance, and the end by an Auto Scaling group.

Paths and bodies as in the EC2 user guide (spot instance interruption notices, rebalance recommendations, scheduled
events) and in aws-node-termination-handler. The spot notice comes 2 minutes ahead, by best effort; a hibernation starts
at once. A rebalance recommendation is a raised risk and no more: save, and stay.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from spotrun.launcher.notices.deadlines import MAINTENANCE_NEAR_S, seconds_until
from spotrun.launcher.notices.fetch import Limits
from spotrun.launcher.notices.metadata import MetadataSource, Where, named, parsed, present, text_of
from spotrun.launcher.notices.notice import Grade, Publish
from spotrun.launcher.notices.polling import Question, Sighting, Standing, poll
from spotrun.launcher.notices.tokens import AWS_HEADERS, TokenClient

LEAD_S = 120.0
SPOT = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
MAINTENANCE = "/latest/meta-data/events/maintenance/scheduled"
REGION = "/latest/meta-data/placement/region"
ZONE = "/latest/meta-data/placement/availability-zone"
LIFECYCLE = "/latest/meta-data/autoscaling/target-lifecycle-state"


class AwsSource(MetadataSource):
    name = "aws"
    url_env = "SPOTRUN_AWS_METADATA_URL"
    default_url = "http://169.254.169.254"

    def run(self, publish: Publish, stop: threading.Event) -> None:
        client = TokenClient(self._url, AWS_HEADERS)
        limits = self._limits(stop)
        often, seldom = self._pace.poll_s, self._pace.planned_poll_s
        questions = [
            Question("the spot notice", often, lambda: spot(client, limits), Standing(self.name, LEAD_S)),
            Question("the rebalance recommendation", often, lambda: rebalance(client, limits),
                     Standing(self.name, LEAD_S)),
            Question("the lifecycle state", often, lambda: lifecycle(client, limits), Standing(self.name, LEAD_S)),
            Question("the scheduled maintenance", seldom, lambda: maintenance(client, limits),
                     Standing(self.name, LEAD_S)),
        ]  # fmt: skip
        poll(questions, publish, stop, self._pace.backoff_max_s)

    def _answers(self, limits: Limits) -> bool:
        answer = TokenClient(self._url, AWS_HEADERS).get("/latest/meta-data/instance-id", limits)
        return answer.status == 200 and answer.body.startswith(b"i-")

    def where(self) -> Where:
        client, limits = TokenClient(self._url, AWS_HEADERS), Limits(self._pace.timeout_s)
        return Where(*(named(client.get(path, limits), path) for path in (REGION, ZONE)))


def spot(client: TokenClient, limits: Limits) -> Sequence[Sighting]:
    answer = client.get(SPOT, limits)
    if not present(answer, SPOT):
        return ()
    record = parsed(answer, dict, SPOT)
    action, moment = text_of(record, "action", SPOT), text_of(record, "time", SPOT)
    left_s = 0.0 if action == "hibernate" else seconds_until(moment, answer, LEAD_S)
    return (Sighting("preempt", Grade.WILL, "spot", left_s, f"{action} at {moment}"),)


def rebalance(client: TokenClient, limits: Limits) -> Sequence[Sighting]:
    answer = client.get(REBALANCE, limits)
    if not present(answer, REBALANCE):
        return ()
    moment = text_of(parsed(answer, dict, REBALANCE), "noticeTime", REBALANCE)
    return (Sighting("rebalance", Grade.MAY, "rebalance", None, f"recommended at {moment}"),)


def lifecycle(client: TokenClient, limits: Limits) -> Sequence[Sighting]:
    answer = client.get(LIFECYCLE, limits)
    if not present(answer, LIFECYCLE) or answer.text != "Terminated":
        return ()
    return (Sighting("preempt", Grade.WILL, "lifecycle", None, "the Auto Scaling group ends this instance"),)


def maintenance(client: TokenClient, limits: Limits) -> Sequence[Sighting]:
    answer = client.get(MAINTENANCE, limits)
    if not present(answer, MAINTENANCE):
        return ()
    sightings = []
    for event in parsed(answer, list, MAINTENANCE):
        if text_of(event, "State", MAINTENANCE) == "active":
            moment, code = text_of(event, "NotBefore", MAINTENANCE), text_of(event, "Code", MAINTENANCE)
            left_s = seconds_until(moment, answer)
            grade = Grade.WILL if left_s <= MAINTENANCE_NEAR_S else Grade.MAY
            id = text_of(event, "EventId", MAINTENANCE)[:100]
            sightings.append(Sighting("maintenance", grade, id, left_s, f"{code} not before {moment}"))
    return sightings
