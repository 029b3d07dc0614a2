"""What workers are told of nodes that are to leave."""

from __future__ import annotations

from collections.abc import Mapping

from spotrun import events
from spotrun.launcher.link import Link
from spotrun.rendezvous.state import Drain, Round


class DrainNews:
    """Workers hear of every member that is to leave; where too few stay, their state must become durable."""

    def __init__(self, link: Link, min_nodes: int) -> None:
        self._link = link
        self._min_nodes = min_nodes
        self._told: tuple[int, frozenset[str]] = (0, frozenset())  # the round, and of whom

    def tell(self, current: Round, drains: Mapping[str, Drain], node_id: str) -> bool:
        """Whether there was something new; `node_id` is this node."""
        leaving = {member.node_id: drains[member.node_id] for member in current.members if member.node_id in drains}
        number, known = self._told
        if number != current.number:
            known = frozenset()
        if leaving.keys() <= known:
            return False
        known |= leaving.keys()  # with those that have left since, whose drains went with them
        self._told = (current.number, known)
        seconds_left = min(drain.seconds_left for drain in leaving.values())
        too_few = len(current.members) - len(known) < self._min_nodes
        self._link.tell(
            {"op": "drain", "seconds_left": seconds_left, "save": too_few, "goes": node_id in leaving},
        )
        events.emit(
            "workers_told", round=current.number, leaving=sorted(leaving), all=too_few, seconds_left=seconds_left
        )
        return True
