"""How one node takes part in the rendezvous. Each default is here, with its unit and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass

from spotrun.config import Grow

LEASE_TTL_S = 4.0  # a silent node is noticed within 1.5 x this; etcd itself allows nothing shorter than about 2 s
JOIN_WINDOW_S = 2.0  # the first round waits this long for one more node; torchrun waits 30 s
GROW_WINDOW_S = 1.0  # joiners while training runs are gathered this long, since each round has a price
LOSS_WINDOW_S = 0.05  # nodes that die together make one round; far below what a restart costs
STORM_S = 5.0  # rounds formed for losses within this time double the window of the next ...
STORM_WINDOW_S = 2.0  # ... up to this
BLAME_WINDOW_S = 0.3  # a failed worker is charged to the job only if no node turns out to be lost meanwhile
HANG_WINDOW_S = 5.0  # nodes find a hang at about the same time; all of their words tell best which rank is behind


@dataclass(frozen=True, slots=True)
class Settings:
    """What `transitions` needs to know besides the state of the job. Seconds."""

    lease_ttl_s: float = LEASE_TTL_S
    join_window_s: float = JOIN_WINDOW_S
    grow_window_s: float = GROW_WINDOW_S
    loss_window_s: float = LOSS_WINDOW_S
    blame_window_s: float = BLAME_WINDOW_S
    hang_window_s: float = HANG_WINDOW_S
    grow: Grow = "now"  # --grow: whether a round is formed for joiners
    quarantine_after: int = 0  # --quarantine: a node with so many faults is kept out; 0: none is
    quarantine_within_s: float = 0.0  # a fault counts for so long
    replace_wait_s: float = 0.0  # --on-loss=wait: how long a lost node may be replaced before the job goes on smaller

    @property
    def silent_s(self) -> float:
        """By when a node that went silent has been noticed."""
        return 1.5 * self.lease_ttl_s
