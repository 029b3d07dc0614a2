"""Why a job does not take a node: each a sentence for people. Pure."""

from __future__ import annotations

from spotrun.errors import JobRefused, OtherVersion, VersionRefused
from spotrun.rendezvous.state import PROTOCOL, Job, Outcome, Quarantine, decode

# The fields of a Job, and the flag that sets each.
_AGREED = (
    *(("min_nodes", "--nnodes"), ("max_nodes", "--nnodes")),
    *(("max_restarts", "--max-restarts"), ("regions", "--regions")),
)


def job_of(run_id: str, value: bytes) -> Job:
    """The record of the job; raises VersionRefused where its nodes speak another version, and BadRecord."""
    try:
        job: Job = decode(Job, value)
    except OtherVersion as error:
        raise VersionRefused(
            f"The job {run_id!r} runs with version {error.version} of the protocol, this spotrun speaks {PROTOCOL}: "
            "use the spotrun of its nodes, or another --rdzv-id."
        ) from None
    return job


def check_agrees(run_id: str, ours: Job, theirs: Job) -> None:
    """Raises JobRefused for the first setting in which a node differs from the job, both values named."""
    for name, flag in _AGREED:
        mine, there = (getattr(job, name) or "none" for job in (ours, theirs))
        if getattr(ours, name) != getattr(theirs, name):
            raise JobRefused(
                f"The job {run_id!r} runs with {name} = {there}, this node was started with {mine}: "
                f"give the same {flag} on every node, or another --rdzv-id."
            )


def ended(run_id: str, outcome: Outcome) -> JobRefused:
    return JobRefused(
        f"The job {run_id!r} has already ended ({outcome.state}: {outcome.reason}): give another --rdzv-id, or --fresh "
        "to use this one again."
    )


def kept_out(run_id: str, quarantine: Quarantine) -> JobRefused:
    return JobRefused(
        f"The node {quarantine.node_id!r} is kept out of the job {run_id!r} ({quarantine.reason}): mend it, then run "
        f"`spotrun readmit {quarantine.node_id}` and start it again."
    )


def name_taken(run_id: str, node_id: str) -> JobRefused:
    return JobRefused(f"A node named {node_id!r} is already in the job {run_id!r}: give another --node-id.")
