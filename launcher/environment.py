"""The environment of a worker: exactly what torchrun gives it (a test compares the two), plus SPOTRUN_* names."""

from __future__ import annotations

import os
from dataclasses import dataclass

from spotrun.rendezvous.state import Round


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands in its round."""

    current: Round
    group_rank: int
    local_rank: int
    role: str
    max_restarts: int
    run_id: str

    @property
    def rank(self) -> int:
        return self.current.first_rank(self.group_rank) + self.local_rank


def worker_environment(place: Place) -> dict[str, str]:
    """What is added to the agent's own environment, less what depends on the devices.

    The restart count is that of the rounds, so that it is the same on every node: torch prefixes the keys of a shared
    store with it. The first round of a job has 0, as with torchrun.
    """
    current = place.current
    size, rank = str(current.world_size), str(place.rank)
    environment = {
        "RANK": rank,
        "GROUP_RANK": str(place.group_rank),
        "ROLE_RANK": rank,
        "ROLE_NAME": place.role,
        "LOCAL_WORLD_SIZE": str(current.members[place.group_rank].nproc),
        "WORLD_SIZE": size,
        "GROUP_WORLD_SIZE": str(len(current.members)),
        "ROLE_WORLD_SIZE": size,
        "MASTER_ADDR": current.store_address,
        "MASTER_PORT": str(current.store_port),
        "TORCHELASTIC_RESTART_COUNT": str(current.number - 1),
        "TORCHELASTIC_MAX_RESTARTS": str(place.max_restarts),
        "TORCHELASTIC_RUN_ID": place.run_id,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "SPOTRUN_UNPLANNED": str(current.unplanned),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }
    if "OMP_NUM_THREADS" in os.environ:
        environment["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    return environment
