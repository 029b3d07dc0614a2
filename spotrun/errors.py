"""Every error that spotrun raises on purpose.

    SpotrunError                    exit code
    ├── UsageError                      2   a flag, an environment variable or an argument is wrong
    ├── EtcdError                       3
    │   ├── EtcdUnavailable             3   no endpoint answered in time
    │   ├── EtcdRefused                 3   etcd answered: no (authentication, TLS, wrong server, quota)
    │   ├── Compacted                   3   a watch asked for a revision that etcd no longer has
    │   ├── LeaseLost                   3   etcd says that the lease is gone
    │   └── BadRecord                   3   what lies in etcd is not a record
    │       └── OtherVersion            3   it is one of another version of the protocol
    ├── JobRefused                      4   the job exists and does not take this node
    │   └── UnfitNode                   6   another one may be taken
    │       ├── RegionRefused           6   this machine is not where the job's machines may be
    │       └── VersionRefused          6   this spotrun does not understand the job's
    ├── CheckpointError                 5   a checkpoint could not be written, found or trusted
    └── DataError                       2   a dataset or batch setting that cannot give exact data

A message is one sentence for people: what is wrong, which value, what to do. The command line prints it alone, without
a traceback, and exits with `exit_code`; so it does where a worker ended with one. Other exit codes: 0 done, 1 a worker
failed (as torchrun), 128 + N stopped by signal N, and for a drained node the value of --drain-exit-code.
"""

from __future__ import annotations


class SpotrunError(Exception):
    """The base of every error here; raised itself by nothing."""

    exit_code = 1
    retry = False  # whether a worker that ended with it may be started again; else the same would only come again


class UsageError(SpotrunError):
    """Raised while flags, environment and configuration are read; correct the value that the message names."""

    exit_code = 2


class EtcdError(SpotrunError):
    """The base of what `spotrun.rendezvous.etcd` raises."""

    exit_code = 3


class EtcdUnavailable(EtcdError):
    """Raised by every EtcdClient call when no endpoint answered within the deadline; a write may have happened."""


class EtcdRefused(EtcdError):
    """Raised by every EtcdClient call that etcd answered with a refusal; trying again does not help."""


class Compacted(EtcdError):
    """Reported by a watch whose start revision was compacted away; read the keys again and watch from there."""

    def __init__(self, message: str, revision: int) -> None:
        super().__init__(message)
        self.revision = revision


class LeaseLost(EtcdError):
    """Raised or reported when etcd says that a lease has expired or was revoked; the node must join anew."""


class BadRecord(EtcdError):
    """Raised by `spotrun.rendezvous.state.decode` on a value that is not what its key promises."""


class OtherVersion(BadRecord):
    """Raised by `decode` on a record of a version of the protocol that this spotrun does not speak."""

    def __init__(self, message: str, version: str) -> None:
        super().__init__(message)
        self.version = version


class JobRefused(SpotrunError):
    """Raised on joining a job that has ended, has other settings, or already has a node of that name."""

    exit_code = 4


class UnfitNode(JobRefused):
    """The base of what is wrong with this machine alone; raised itself by nothing.

    A code of its own: a 4 ends the whole Job on Kubernetes, and one pod that does not fit must not.
    """

    exit_code = 6


class RegionRefused(UnfitNode):
    """Raised before anything is read on a machine that is outside --regions, or may be."""


class VersionRefused(UnfitNode):
    """Raised on joining, or looking at, a job of nodes whose spotrun speaks another version of the protocol."""


class CheckpointError(SpotrunError):
    """Raised by saving, listing, verifying and loading checkpoints; the message names the file and the fault.

    `retry`: the storage did not answer as it should, and may do so later.
    """

    exit_code = 5

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class DataError(SpotrunError):
    """Raised by `Job.batches` and the samplers when the settings cannot give exact data."""

    exit_code = 2
