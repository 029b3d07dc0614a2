"""Metadata behind a session token, as AWS (IMDSv2) and Alibaba serve it.

A PUT gets a token for some time, and each GET shows it. A server that refuses the PUT speaks only the older protocol
without tokens, and one that does not answer it may be too many hops away from a container: both are then asked without
a token, and for a token again after a minute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from spotrun.launcher.notices.fetch import Answer, Limits, Unanswered, fetch

TOKEN_TTL_S = 3600
REFRESH_EARLY_S = 15.0  # a token that expires between our look at the clock and the server's is no token
REFUSED = (403, 404, 405)
TOKENLESS_S = 60.0


@dataclass(frozen=True, slots=True)
class TokenHeaders:
    ttl: str
    token: str


AWS_HEADERS = TokenHeaders("X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token")
ALIBABA_HEADERS = TokenHeaders("X-aliyun-ecs-metadata-token-ttl-seconds", "X-aliyun-ecs-metadata-token")


class TokenClient:
    """GETs below `url`. For one thread."""

    def __init__(self, url: str, headers: TokenHeaders) -> None:
        self._url = url
        self._headers = headers
        self._token = ""
        self._renew_s = 0.0
        self._tokenless_until_s = 0.0

    def get(self, path: str, limits: Limits) -> Answer:
        """The answer; one more try with a new token where the server says that the token is not good."""
        answer = self._get_once(path, limits)
        if answer.status == 401:
            self._token, self._tokenless_until_s = "", 0.0
            answer = self._get_once(path, limits)
            if answer.status == 401:
                raise Unanswered(f"{self._url}{path}: status 401 with a new token")
        return answer

    def _get_once(self, path: str, limits: Limits) -> Answer:
        now_s = time.monotonic()
        if (not self._token or now_s >= self._renew_s) and now_s >= self._tokenless_until_s:
            self._get_token(limits)
        return fetch(self._url + path, limits, headers={self._headers.token: self._token} if self._token else {})

    def _get_token(self, limits: Limits) -> None:
        asked_s = time.monotonic()
        headers = {self._headers.ttl: str(TOKEN_TTL_S), "Content-Length": "0"}
        self._token = ""
        try:
            answer = fetch(f"{self._url}/latest/api/token", limits, method="PUT", headers=headers)
        except Unanswered:
            if limits.stop.is_set():
                raise
            self._tokenless_until_s = time.monotonic() + TOKENLESS_S
            return
        if answer.status in REFUSED:
            self._tokenless_until_s = time.monotonic() + TOKENLESS_S
            return
        # What goes into a header must not be able to end it.
        if answer.status != 200 or not answer.text.isascii() or not answer.text.isprintable() or not answer.text:
            raise Unanswered(f"{self._url}/latest/api/token: status {answer.status}")
        granted = answer.headers.get(self._headers.ttl.lower(), "")
        ttl_s = int(granted) if granted.isdecimal() else TOKEN_TTL_S
        self._token, self._renew_s = answer.text, asked_s + ttl_s - REFRESH_EARLY_S
