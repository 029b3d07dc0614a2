"""`spotrun run`: from flags to a running agent. Torch's own backends are handed over to torch.

What needs no torch is checked before torch is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotrun import config as values
from spotrun.cli.early import early_zygote
from spotrun.cli.flags import BACKEND, OWN_FLAGS
from spotrun.cli.help import help_text
from spotrun.cli.hosted import etcd_where_named, own_etcd
from spotrun.cli.logs import to_stderr
from spotrun.cli.parser import NO_SCRIPT, get_args_parser, parse_args
from spotrun.errors import UsageError
from spotrun.rendezvous.keys import check_node_id, check_run_id

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

    from spotrun.launcher.zygote_process import ZygoteProcess

__all__ = ["config_from_args", "get_args_parser", "main", "parse_args", "run"]

logger = logging.getLogger("spotrun")
CONF_KEYS = {flag.dest: flag.conf for flag in OWN_FLAGS if flag.conf}
_FILES = ("cacert", "cert", "key", "password_file")
_ETCD_ACCESS = (*_FILES, "user")
_OPTIONS = (
    "drain_exit_code",
    "warm",
    "preload",
    "notice",
    "hang_timeout",
    "replicas",
    "audit",
    "events",
    "log_dir",
    "price_per_node_hour",
    "log_format",
    "metrics",
    "region",
    "regions",
    "wipe_on_exit",
)


class TorchRefused(UsageError, ValueError):
    """Raised by `config_from_args` and `run` for what torch's launcher finds wrong, as a ValueError like torch's."""


def main(args: Sequence[str]) -> int | None:
    """`spotrun run ARGS`; an exit code, or None for 0."""
    if args and args[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return None
    if not args:
        raise UsageError(NO_SCRIPT)
    if not args[0].startswith("-"):
        _check_script(args[0], python=not (_switched_on("PET_MODULE") or _switched_on("PET_NO_PYTHON")))
    to_stderr("text", in_place=False)

    with early_zygote(args, os.environ) as zygote:
        from torch.distributed.elastic.multiprocessing.errors import record

        record(lambda: run(parse_args(args), zygote))()
    return None


def run(args: argparse.Namespace, zygote: ZygoteProcess | None = None) -> None:
    """As torch.distributed.run has it: launch, and return when the job is done.

    Raises what torch's does, ChildFailedError for a failed worker above all, and the errors of `spotrun.errors`;
    SystemExit where the node was drained or stopped by a signal. `zygote` has been started for it already.
    """
    lowest, highest = values.parse_nnodes(args.nnodes)
    by_path = args.run_path  # goes before --no-python
    _check_script(
        args.training_script,
        python=by_path or not (args.module or args.no_python),
        program=args.no_python and not (by_path or args.module),
    )
    if args.rdzv_backend != BACKEND:
        _run_by_torch(args)
        return
    given = {name: getattr(args, name, None) for name in _OPTIONS}
    options = values.agent_options(os.environ, **given)
    in_place = sys.stderr.isatty() and args.redirects == "3" and args.tee == "0"
    to_stderr(options.log_format, in_place=in_place)
    if in_place:
        options = dataclasses.replace(options, progress_s=values.PROGRESS_IN_PLACE_S)
    alone = args.standalone or (not args.rdzv_endpoint and highest == 1)
    if alone:
        if lowest > 1:
            raise UsageError(
                f"--standalone is one node, but --nnodes={args.nnodes} needs {lowest}: leave one of them out."
            )
        args.rdzv_id, args.rdzv_endpoint = str(uuid.uuid4()), "localhost:0"
        options = dataclasses.replace(options, alone=True)
        for dest, conf in CONF_KEYS.items():  # what is set for the etcd of the site does not hold for one of our own
            if conf in _ETCD_ACCESS:
                setattr(args, dest, None)
    else:
        if not args.rdzv_endpoint:
            raise UsageError(
                f"--nnodes={args.nnodes} needs an etcd where the nodes meet: give --rdzv-endpoint=HOST:2379 on each of "
                "them; `spotrun etcd` runs one."
            )
        values.parse_endpoints(args.rdzv_endpoint)
        check_run_id(args.rdzv_id)
    config, entrypoint, script_args = config_from_args(args)
    try:
        with own_etcd() if alone else etcd_where_named(config) as endpoint:
            from spotrun.launcher.launch import launch_agent

            config.rdzv_endpoint = endpoint
            launch_agent(config, entrypoint, script_args, options, zygote)
    finally:
        if args.log_dir is None and config.logs_specs is not None:
            _remove_empty(config.logs_specs.root_log_dir)


def config_from_args(args: argparse.Namespace) -> tuple[LaunchConfig, Callable[..., Any] | str, list[str]]:
    """As torch.distributed.run has it, with our flags in `rdzv_configs`; each value has been checked.

    Raises UsageError, which is a ValueError as well for what torch finds wrong.
    """
    from torch.distributed import run as torchrun

    if args.nproc_per_node.lstrip("-").isdigit() and int(args.nproc_per_node) < 1:
        raise UsageError(f"--nproc-per-node={args.nproc_per_node} starts no worker: give 1 or more.")
    try:
        settings = _settings(args) if args.rdzv_backend == BACKEND else {}
        config, entrypoint, script_args = torchrun.config_from_args(args)
    except (ValueError, AssertionError) as error:
        raise TorchRefused(str(error)) from error
    config.rdzv_configs.update(settings)
    return config, entrypoint, script_args


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What --rdzv-conf and our flags say, the flags winning, once it is checked."""
    from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config

    settings: dict[str, Any] = dict(_parse_rendezvous_config(args.rdzv_conf))
    for dest, conf in CONF_KEYS.items():
        if value := getattr(args, dest, None):
            settings[conf] = value
    _check_settings(settings)
    return settings


def _check_settings(settings: Mapping[str, Any]) -> None:
    """What the rendezvous would find wrong later, after an etcd has been started for it."""
    checks: tuple[tuple[str, Callable[[str], object]], ...] = (
        ("lease_ttl", values.parse_lease_ttl),
        ("join_window", values.parse_join_window),
        ("on_loss", values.parse_on_loss),
        ("grow", values.parse_grow),
        ("quarantine", values.parse_quarantine),
        ("node_id", check_node_id),
    )
    for key, check in checks:
        if key in settings:
            check(str(settings[key]))
    paths = {key: Path(str(settings[key])).expanduser() for key in _FILES if key in settings}
    values.check_tls(paths.get("cacert"), paths.get("cert"), paths.get("key"))
    if "user" in settings:
        values.read_password(paths.get("password_file"))
    elif "password_file" in settings:
        raise UsageError("--etcd-password-file is of no use without --etcd-user: give the name, too.")


def _run_by_torch(args: argparse.Namespace) -> None:
    for name in ("regions", "wipe_on_exit"):
        if getattr(args, name, None) not in (None, False, "0"):  # who relies on it must get more than a warning
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is not kept by --rdzv-backend={args.rdzv_backend}: leave one of them out.")
    unused = [flag.names[0] for flag in OWN_FLAGS if getattr(args, flag.dest, None) and flag.own_env not in os.environ]
    if unused:
        logger.warning("%s: of no use with --rdzv-backend=%s.", ", ".join(unused), args.rdzv_backend)

    from torch.distributed import run as torchrun

    torchrun.run(args)  # type: ignore[no-untyped-call]


def _check_script(script: str, *, python: bool, program: bool = False) -> None:
    """Raises UsageError where there is no such script; workers would only tell so after the rendezvous."""
    if python and "PYTHON_EXEC" not in os.environ and not Path(script).exists():
        raise UsageError(f"There is no script {script!r} in {Path.cwd()}: `spotrun --help` lists commands and flags.")
    if program and shutil.which(script) is None:
        raise UsageError(
            f"There is no program {script!r} that can be run: --no-python takes a path, or a name on PATH."
        )


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "0") != "0"


def _remove_empty(folder: str | None) -> None:
    """Remove the folder that torch has made for logs, unless there are some."""
    for path, _, _ in os.walk(folder or "", topdown=False):
        with contextlib.suppress(OSError):  # there is something in it
            os.rmdir(path)
