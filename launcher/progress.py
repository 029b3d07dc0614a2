"""How far this node's workers have come: what each said of its steps, put together for the other nodes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spotrun.errors import BadRecord
from spotrun.rendezvous.etcd import EtcdClient
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.state import Progress, Round, decode

logger = logging.getLogger("spotrun")

TELL_S = 1.0  # etcd hears of progress at most this often


@dataclass(frozen=True, slots=True)
class Steps:
    """What one worker said of its steps."""

    round: int
    step: int
    samples: int
    step_s: float
    loss: float | None
    snapshot_step: int
    commit_step: int
    busy: bool = False
    data_share: float = 0.0
    checkpoint_share: float = 0.0
    communication_share: float | None = None
    checkpoint_s: float = 0.0
    replica_step: int = 0

    @staticmethod
    def of(message: Mapping[str, Any]) -> Steps:
        """Raises KeyError, TypeError and ValueError where `message` is none of ours."""
        loss, communication = message["loss"], message.get("communication_share")
        return Steps(
            round=int(message["round"]),
            step=int(message["step"]),
            samples=int(message["samples"]),
            step_s=float(message["step_s"]),
            loss=float(loss) if loss is not None and math.isfinite(loss) else None,
            snapshot_step=int(message["snapshot_step"]),
            commit_step=int(message["commit_step"]),
            data_share=float(message.get("data_share", 0.0)),
            checkpoint_share=float(message.get("checkpoint_share", 0.0)),
            communication_share=None if communication is None else float(communication),
            checkpoint_s=float(message.get("checkpoint_s", 0.0)),
            replica_step=int(message.get("replica_step", 0)),
        )


def of_job(client: EtcdClient, keys: Keys) -> list[Progress]:
    """The word of every node, without what cannot be read. Raises EtcdError."""
    words = []
    for found in client.get_prefix(keys.progress)[0]:
        try:
            words.append(decode(Progress, found.value))
        except BadRecord as error:
            logger.warning("%s is left out: %s", found.key, error)
    return words


def of_node(node_id: str, incarnation: str, current: Round, workers: Sequence[Steps | None]) -> Progress | None:
    """The node's word on its round, by its workers in the order of local ranks; None until all have stepped in it."""
    known = [steps for steps in workers if steps is not None and steps.round == current.number]
    if len(known) < len(workers) or not known:
        return None
    communication = [steps.communication_share for steps in known]
    slowest = min(known, key=lambda steps: steps.step)
    return Progress(
        node_id,
        incarnation,
        current.number,
        steps=tuple(steps.step for steps in known),
        samples=slowest.samples,
        step_time_s=max(steps.step_s for steps in known),
        loss=slowest.loss,
        last_snapshot_step=min(steps.snapshot_step for steps in known),
        last_commit_step=max(steps.commit_step for steps in known),
        busy=any(steps.busy for steps in known),
        data_share=max(steps.data_share for steps in known),
        checkpoint_share=max(steps.checkpoint_share for steps in known),
        communication_share=None
        if None in communication
        else max(share for share in communication if share is not None),
        checkpoint_s=max(steps.checkpoint_s for steps in known),
        last_replica_step=min(steps.replica_step for steps in known),
    )


class Teller:
    """Passes the newest word on, at most once in TELL_S, and only what is news."""

    def __init__(self, say: Callable[[Progress], None]) -> None:
        self._say = say
        self._told: Progress | None = None
        self._told_s = -math.inf

    def tell(self, progress: Progress | None, now_s: float) -> float | None:
        """When to be called again, where there is something left to tell."""
        if progress is None or progress == self._told:
            return None
        if now_s < self._told_s + TELL_S:
            return self._told_s + TELL_S
        self._say(progress)
        self._told, self._told_s = progress, now_s
        return None
