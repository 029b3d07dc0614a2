"""A job of real agents for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spotrun.rendezvous.embedded import EmbeddedEtcd
from tests.etcd_servers import etcd, shared_etcd
from tests.jobs import RealJob, real_job

__all__ = ["etcd", "make_job", "shared_etcd"]


@pytest.fixture
def make_job(etcd: EmbeddedEtcd, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., RealJob]]:
    """Makes jobs with names and directories of their own; ends what is left of them."""
    with contextlib.ExitStack() as stack:
        made: list[RealJob] = []

        def make(**settings: object) -> RealJob:
            directory = tmp_path / f"job-{len(made)}"
            directory.mkdir()
            run_id = f"{request.node.name}-{len(made)}"
            made.append(stack.enter_context(real_job(etcd.endpoint, directory, run_id=run_id, **settings)))
            return made[-1]

        yield make
