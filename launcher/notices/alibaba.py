"""Alibaba Cloud: the end of a preemptible instance, named 5 minutes ahead.

As in "Query the interruption events of preemptible instances" of the ECS user guide. Metadata in security hardening
mode asks for a token, just as AWS does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from spotrun.launcher.notices.deadlines import seconds_until
from spotrun.launcher.notices.fetch import Limits
from spotrun.launcher.notices.metadata import MetadataSource, Where, named, present
from spotrun.launcher.notices.notice import Grade, Publish
from spotrun.launcher.notices.polling import Question, Sighting, Standing, poll
from spotrun.launcher.notices.tokens import ALIBABA_HEADERS, TokenClient

LEAD_S = 300.0
REGION, ZONE = "/latest/meta-data/region-id", "/latest/meta-data/zone-id"
TERMINATION = "/latest/meta-data/instance/spot/termination-time"


class AlibabaSource(MetadataSource):
    name = "alibaba"
    url_env = "SPOTRUN_ALIBABA_METADATA_URL"
    default_url = "http://100.100.100.200"

    def run(self, publish: Publish, stop: threading.Event) -> None:
        client = TokenClient(self._url, ALIBABA_HEADERS)
        limits = self._limits(stop)
        question = Question(
            "the spot notice", self._pace.poll_s, lambda: termination(client, limits), Standing(self.name, LEAD_S)
        )
        poll([question], publish, stop, self._pace.backoff_max_s)

    def _answers(self, limits: Limits) -> bool:
        # 100.64.0.0/10 is also used by networks that know nothing of Alibaba: its instances are named i-...
        answer = TokenClient(self._url, ALIBABA_HEADERS).get("/latest/meta-data/instance-id", limits)
        return answer.status == 200 and answer.body.startswith(b"i-")

    def where(self) -> Where:
        client, limits = TokenClient(self._url, ALIBABA_HEADERS), Limits(self._pace.timeout_s)
        return Where(*(named(client.get(path, limits), path) for path in (REGION, ZONE)))


def termination(client: TokenClient, limits: Limits) -> Sequence[Sighting]:
    answer = client.get(TERMINATION, limits)
    if not present(answer, TERMINATION) or not answer.text:
        return ()
    left_s = seconds_until(answer.text, answer, LEAD_S)
    return (Sighting("preempt", Grade.WILL, "spot", left_s, f"ends at {answer.text}"),)
