"""The only place that knows how a key is spelt. Everything of one job lies under /spotrun/<run_id>/."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spotrun.errors import UsageError

_RUN_ID = re.compile(r"[^/\x00-\x20\x7f]{1,200}")
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_run_id(run_id: str) -> str:
    """`run_id` itself; raises UsageError where it cannot be part of a key."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"The run id {run_id[:80]!r} cannot be used: --rdzv-id takes 1 to 200 characters, no slash or space."
        )
    return run_id


def is_node_id(name: str) -> bool:
    return _NODE_ID.fullmatch(name) is not None


def check_node_id(node_id: str) -> str:
    """`node_id` itself; raises UsageError where it cannot be part of a key."""
    if not is_node_id(node_id):
        raise UsageError(
            f"The node id {node_id[:80]!r} cannot be used: --node-id takes up to 128 letters, digits, dots, _ or -."
        )
    return node_id


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one job."""

    run_id: str

    @property
    def root(self) -> str:
        return f"/spotrun/{self.run_id}/"

    @property
    def job(self) -> str:
        return self.root + "job"

    @property
    def round(self) -> str:
        return self.root + "round"

    @property
    def outcome(self) -> str:
        return self.root + "outcome"

    @property
    def nodes(self) -> str:
        return self.root + "nodes/"

    @property
    def last(self) -> str:
        """The record of the node that joined last, under its lease: who joins next finds its place in line there."""
        return self.root + "last"

    @property
    def reports(self) -> str:
        return self.root + "reports/"

    @property
    def drains(self) -> str:
        return self.root + "drains/"

    @property
    def progress(self) -> str:
        return self.root + "progress/"

    @property
    def faults(self) -> str:
        """Each fault of each node, under a lease that ends when it no longer counts: faults/<node>/<round>."""
        return self.root + "faults/"

    @property
    def quarantine(self) -> str:
        return self.root + "quarantine/"

    @property
    def checkpoints(self) -> str:
        return self.root + "checkpoints/"

    @property
    def latest_checkpoint(self) -> str:
        return self.checkpoints + "latest"

    @property
    def ledger(self) -> str:
        """What happened to the job, in a ring: ledger/<slot>."""
        return self.root + "ledger/"

    @property
    def ledger_count(self) -> str:
        """How many entries were ever put into the ledger."""
        return self.root + "ledger_count"

    @property
    def pool(self) -> str:
        """The pool that is active, under its lease, is the one that made this key."""
        return self.root + "pool"

    @property
    def asks(self) -> str:
        """Each machine that a pool has asked for: asks/<node>."""
        return self.root + "asks/"

    def ask(self, node_id: str) -> str:
        return self.asks + node_id

    @property
    def vitals(self) -> str:
        return self.root + "vitals/"

    def vitals_of(self, node_id: str) -> str:
        return self.vitals + node_id

    def ledger_slot(self, slot: int) -> str:
        return f"{self.ledger}{slot:04d}"

    def node(self, node_id: str) -> str:
        return self.nodes + node_id

    def report(self, node_id: str) -> str:
        return self.reports + node_id

    def progress_of(self, node_id: str) -> str:
        return self.progress + node_id

    def checkpoint(self, step: int) -> str:
        return f"{self.checkpoints}{step}"

    def drain(self, node_id: str) -> str:
        return self.drains + node_id

    def faults_of(self, node_id: str) -> str:
        return self.faults + node_id + "/"

    def node_at_fault(self, key: str) -> str:
        """The node id in a key under faults/."""
        return key[len(self.faults) :].partition("/")[0]

    def quarantined(self, node_id: str) -> str:
        return self.quarantine + node_id

    @staticmethod
    def name(key: str) -> str:
        """The last part of a key: the node id under nodes/, reports/, drains/, quarantine/ and progress/."""
        return key.rpartition("/")[2]
