"""Gradients that are the global mean, although ranks hold unequal numbers of samples.

DDP and FSDP average gradients over ranks, each rank counting the same. So a rank with 3 of 8 samples among 2 ranks
multiplies its mean loss by 3 * 2 / 8; `spotrun.slices.plan_step` computes that factor for equally weighted samples, and
`count_weight` for whatever else is counted (tokens that are not padding, pixels that are labelled).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


@contextmanager
def gradient_sync(*models: torch.nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of one micro batch: ranks exchange gradients only where `last` is true.

    Works on DDP and FSDP1 (`no_sync`), on FSDP2 (`set_requires_gradient_sync`) and, with no effect, on plain modules.
    FSDP2 then keeps unsharded gradients between the micro batches of a step, which costs a model's worth of memory.
    """
    with ExitStack() as stack:
        for model in models:
            if (set_sync := getattr(model, "set_requires_gradient_sync", None)) is not None:
                set_sync(last)
            elif not last and (no_sync := getattr(model, "no_sync", None)) is not None:
                stack.enter_context(no_sync())
        yield


def count_weight(count: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The factor for a mean loss over `count` items of this rank, for the gradient of the mean over all ranks' items.

    `count` is a tensor with one element on the device of the group's backend; each call is one small all-reduce. With
    micro batches, call it once a step with the rank's count, and multiply by each micro batch's share of that count.
    A rank may have none (its factor is 0); where no rank has any, all factors are 0.
    """
    import torch.distributed as dist

    total = count.detach().double()
    dist.all_reduce(total, group=group)
    return count * dist.get_world_size(group) / total.clamp(min=1)


def mean_over_ranks(value: torch.Tensor, weight: float = 1.0, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The global mean of a per-rank mean such as the loss, for logs: averaged with the weight of each rank's batch."""
    import torch.distributed as dist

    total = value.detach() * weight
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)
