"""The `torchrun.handlers` entry point: --rdzv-backend=etcd-v3 for spotrun and for stock torchrun.

    torchrun --rdzv-backend=etcd-v3 --rdzv-endpoint=etcd:2379 --rdzv-id=job --nnodes=2:8 train.py

What spotrun has as flags goes into --rdzv-conf here: lease_ttl, join_window (seconds), on_loss (shrink or wait[:S]),
node_id, fresh, cacert, cert, key, user, password_file.

torch loads every entry point when torch.distributed.elastic is imported, in workers too: grpc is imported only when
the backend is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import (
        RendezvousHandler,
        RendezvousHandlerCreator,
        RendezvousParameters,
    )


def get_creator() -> RendezvousHandlerCreator:
    """What torch's registry asks the entry point for."""
    return _create


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    from spotrun.rendezvous.creation import create_handler

    return create_handler(parameters)
