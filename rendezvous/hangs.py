"""Which rank the others wait for, as far as it shows from where each stands. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from spotrun.rendezvous.state import Stall

SHOWN = 4  # ranks in a sentence


def behind(stalls: Sequence[Stall]) -> list[Stall]:
    """The ranks that have made fewer steps than others, or that do not wait for any; none where it does not show.

    After a training step all have made the same number, and the one that hangs in the next step is the one that is in
    no collective.
    """
    fewest = min((stall.step for stall in stalls), default=0)
    late = [stall for stall in stalls if stall.step == fewest]
    late = [stall for stall in late if not stall.waits] or late
    return late if len(late) < len(stalls) or len(stalls) == 1 else []


def explain(stalls: Sequence[Stall]) -> str:
    """A sentence for people about all workers of a job."""
    late = behind(stalls)
    made = max((stall.step for stall in stalls), default=0)
    if not late:
        return f"no step after step {made}, and no rank is behind the others: {where(stalls)}"
    return f"no step after step {made}: the others wait for {where(late)}"


def where(stalls: Sequence[Stall]) -> str:
    """Where each stands."""
    shown = [
        f"rank {stall.rank} on {stall.address} (after step {stall.step}, {stall.place or 'it gives no answer'})"
        for stall in stalls[:SHOWN]
    ]
    return "; ".join(shown) + (f"; {len(stalls) - SHOWN} more" if len(stalls) > SHOWN else "")
