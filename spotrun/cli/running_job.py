"""What the commands that look at or change a running job share: its options, and a client of its etcd."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from spotrun.config import check_tls, parse_endpoints, read_password
from spotrun.errors import BadRecord, UsageError
from spotrun.rendezvous.admission import job_of
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys, check_run_id

ETCD_OPTIONS = (
    click.option("--etcd-cacert", type=Path, envvar="SPOTRUN_ETCD_CACERT", help="CA certificate of etcd."),
    click.option("--etcd-cert", type=Path, envvar="SPOTRUN_ETCD_CERT", help="Client certificate."),
    click.option("--etcd-key", type=Path, envvar="SPOTRUN_ETCD_KEY", help="Its key."),
    click.option("--etcd-user", envvar="SPOTRUN_ETCD_USER", help="User of etcd."),
    click.option(
        "--etcd-password-file", type=Path, envvar="SPOTRUN_ETCD_PASSWORD_FILE", help="File with the password."
    ),
)
_OPTIONS = (
    click.option("--rdzv-endpoint", required=True, envvar="PET_RDZV_ENDPOINT", help="The etcd of the job."),
    click.option("--rdzv-id", required=True, envvar="PET_RDZV_ID", help="The job."),
    *ETCD_OPTIONS,
)


@dataclass(frozen=True, slots=True)
class EtcdFlags:
    """The values of ETCD_OPTIONS."""

    etcd_cacert: Path | None
    etcd_cert: Path | None
    etcd_key: Path | None
    etcd_user: str | None
    etcd_password_file: Path | None

    def config(self, endpoint: str) -> EtcdConfig:
        """Raises UsageError."""
        check_tls(self.etcd_cacert, self.etcd_cert, self.etcd_key)
        password = read_password(self.etcd_password_file) if self.etcd_user else None
        return EtcdConfig(
            parse_endpoints(endpoint), self.etcd_cacert, self.etcd_cert, self.etcd_key, self.etcd_user, password
        )


@dataclass(frozen=True, slots=True)
class RunningJob:
    """Where a job is, from the command line."""

    keys: Keys
    config: EtcdConfig

    @contextmanager
    def client(self) -> Iterator[EtcdClient]:
        """Raises EtcdError where etcd cannot be used, VersionRefused where the nodes would not understand."""
        with EtcdClient(self.config) as client:
            client.check()
            if (found := client.get(self.keys.job)) is not None:
                with contextlib.suppress(BadRecord):  # its nodes may be looked at all the same
                    job_of(self.keys.run_id, found.value)
            yield client


def of_running_job(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a click command the options above, and a RunningJob for its first argument."""

    @functools.wraps(command)
    def call(
        rdzv_endpoint: str,
        rdzv_id: str,
        etcd_cacert: Path | None,
        etcd_cert: Path | None,
        etcd_key: Path | None,
        etcd_user: str | None,
        etcd_password_file: Path | None,
        **arguments: Any,
    ) -> Any:
        flags = EtcdFlags(etcd_cacert, etcd_cert, etcd_key, etcd_user, etcd_password_file)
        config = flags.config(rdzv_endpoint)
        return command(RunningJob(Keys(check_run_id(rdzv_id)), config), **arguments)

    return with_options(_OPTIONS)(call)


def with_options(options: tuple[Callable[..., Any], ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a click command these options, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def find_name(names: list[str], wanted: str, what: str) -> str:
    """The one of `names` that is `wanted` or begins with it; raises UsageError, which says of `what` they are."""
    fitting = [wanted] if wanted in names else [name for name in names if name.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(names[:16]) or "none"
    why = "fits several nodes" if fitting else "is not"
    raise UsageError(f"{wanted!r} {why} in {what}: {there}.")
