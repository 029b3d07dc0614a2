"""The word of etcd on a checkpoint: whether its round is still the present one, and the record that it is whole.

A worker asks its agent before the manifest is published ("fence") and after it ("record"), and says when it deletes a
checkpoint ("forget"). While etcd is away the answer waits; a round that is over gets no. Each question is answered on a
thread of its own: the agent's loop does not wait for etcd.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from spotrun.errors import BadRecord, EtcdError
from spotrun.rendezvous.etcd import Compare, Op
from spotrun.rendezvous.membership import Membership
from spotrun.rendezvous.state import Checkpoint, Round, decode, encode

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
                logger.warning("a record in etcd cannot be read: %s", error)
                answer(False)
                return
            except EtcdError as error:
                logger.warning("the checkpoint of step %s waits for etcd: %s", question["step"], error)
                time.sleep(RETRY_S)

    def _ask(self, question: dict[str, Any]) -> bool:
        keys, client = self._membership.keys, self._membership.client
        if question["what"] == "forget":
            return self._forget(keys.checkpoint(int(question["step"])), str(question["name"]))
        found = client.get(keys.round)
        # A round that was left by agreement may still publish the step it was left after: no newer one has begun
        # before all of its workers have entered, and they save first.
        if found is None or not decode(Round, found.value).unplanned <= int(question["round"]):
            return False
        if question["what"] == "fence":
            return True
        record = Checkpoint(int(question["step"]), int(question["round"]), str(question["name"]))
        puts = [Op.put(key, encode(record)) for key in (keys.checkpoint(record.step), keys.latest_checkpoint)]
        # The round is compared again: between the question and this write another may have been formed.
        return client.txn([Compare.modified(keys.round, found.mod_revision)], puts).succeeded

    def _forget(self, key: str, name: str) -> bool:
        """Delete the record under `key` if it is that of `name`: a later round may have saved the same step again."""
        client = self._membership.client
        found = client.get(key)
        if found is None or decode(Checkpoint, found.value).name != name:
            return False
        return client.txn([Compare.modified(key, found.mod_revision)], [Op.delete(key)]).succeeded
