"""The word of etcd on a checkpoint: whether its round is still the present one, and the record that it is whole.

A worker asks its agent before the manifest is published ("fence") and after it ("record"). While etcd is away the
answer waits; a round that is over gets no. Each question is answered on a thread of its own: the agent's loop does not
wait for etcd.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from spotrun.errors import BadRecord, EtcdError
from spotrun.rendezvous.etcd import Compare, Op
from spotrun.rendezvous.membership import Membership
from spotrun.rendezvous.state import Round, decode

logger = logging.getLogger("spotrun")

RETRY_S = 0.5


class Commits:
    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def take(self, question: dict[str, Any], answer: Callable[[bool], None]) -> None:
        threading.Thread(target=self._answer, args=(question, answer), name="spotrun-commit", daemon=True).start()

    def _answer(self, question: dict[str, Any], answer: Callable[[bool], None]) -> None:
        while True:
            try:
                answer(self._ask(question))
                return
            except BadRecord as error:
                logger.warning("the round cannot be read: %s", error)
                answer(False)
                return
            except EtcdError as error:
                logger.warning("the checkpoint of step %s waits for etcd: %s", question["step"], error)
                time.sleep(RETRY_S)

    def _ask(self, question: dict[str, Any]) -> bool:
        keys, client = self._membership.keys, self._membership.client
        found = client.get(keys.round)
        # A round that was left by agreement may still publish the step it was left after: no newer one has begun
        # before all of its workers have entered, and they save first.
        if found is None or not decode(Round, found.value).unplanned <= int(question["round"]):
            return False
        if question["what"] == "fence":
            return True
        record = {"v": 1, **{name: question[name] for name in ("round", "step", "name")}}
        value = json.dumps(record).encode()
        # The round is compared again: between the question and this write another may have been formed.
        unchanged = Compare.modified(keys.round, found.mod_revision)
        return client.txn([unchanged], [Op.put(keys.latest_checkpoint, value)]).succeeded
