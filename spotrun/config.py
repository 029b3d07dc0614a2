"""The values of flags, environment and --rdzv-conf: each is parsed and checked here, by a pure function.

A function raises UsageError, whose sentence names the flag, the value and the remedy. Durations are seconds.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from spotrun.errors import UsageError

LEASE_TTL_MIN_S, LEASE_TTL_MAX_S = 1.0, 300.0  # etcd raises what is below about 2 s; more than 300 s is a typing error
JOIN_WINDOW_MAX_S = 3600.0  # nobody wants to wait longer for one more node; more is a typing error
PROGRESS_S, PROGRESS_IN_PLACE_S = 30.0, 1.0  # a line of progress that scrolls, and one that is written over
LOG_FORMATS = ("text", "json")
WARM_MODES = ("auto", "off")
Grow: TypeAlias = Literal["now", "next-save", "never"]
GROW_WORDS: tuple[Grow, ...] = get_args(Grow)
HANG_MIN_S, HANG_MAX_S = 2.0, 86_400.0  # nodes hear of each other's progress once a second; a day is a typing error
PASSWORD_ENV = "SPOTRUN_ETCD_PASSWORD"

DRAIN_EXIT_SLURM = 75  # EX_TEMPFAIL, for RequeueExit=75 in slurm.conf: a drained node's job is queued again
DRAIN_EXIT_KUBERNETES = 143  # 128 + SIGTERM, as the kubelet reports an evicted container: restarted by OnFailure
DRAIN_EXIT_PLAIN = 0  # a VM that goes away as it should is no failure to systemd or a cloud's instance group


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What the agent needs to know beyond torch's LaunchConfig."""

    drain_exit_code: int = DRAIN_EXIT_PLAIN  # of the process, when this node was drained
    warm: str = "auto"  # auto: workers are forked from a process that has imported torch, where that is safe
    preload: str = ""  # what else that process imports: names of modules, or auto
    notice: tuple[str, ...] = ("auto",)  # where news of this machine's end comes from; checked by the launcher
    hang_timeout_s: float | None = None  # without a step; None: by the length of steps; infinite: never
    alone: bool = False  # the job is of this machine, and its run id of no meaning to what outlives it
    region: str = ""  # where this machine is, as declared
    regions: tuple[str, ...] = ()  # patterns of where machines and buckets of the job may be; none: anywhere
    wipe_on_exit: bool = False
    replicas: int = 1  # other nodes that hold a copy of each snapshot of sharded training
    audit: Path | None = None  # where jobs on the training API record which samples each step used
    events: Path | None = None  # the file that gets every event as a line of JSON
    log_dir: Path | None = None  # where this node's part of the ledger is kept
    price_per_node_hour: float | None = None  # in whatever money
    log_format: str = "text"
    metrics: tuple[str, int] | None = None  # where metrics are served: host and port
    progress_s: float = PROGRESS_S  # between two lines of progress


def agent_options(
    environ: Mapping[str, str],
    *,
    drain_exit_code: str | None = None,
    warm: str | None = None,
    preload: str | None = None,
    notice: str | None = None,
    hang_timeout: str | None = None,
    replicas: str | None = None,
    audit: str | None = None,
    events: str | None = None,
    log_dir: str | None = None,
    price_per_node_hour: str | None = None,
    log_format: str | None = None,
    metrics: str | None = None,
    region: str | None = None,
    regions: str | None = None,
    wipe_on_exit: bool | str | None = None,
) -> AgentOptions:
    """The options of the agent, from the raw values of the flags; None stands for a flag that was not given."""
    return AgentOptions(
        drain_exit_code=(
            default_drain_exit_code(environ) if drain_exit_code is None else parse_drain_exit_code(drain_exit_code)
        ),
        warm=parse_warm("auto" if warm is None else warm),
        preload="" if preload is None else parse_preload(preload),
        notice=("auto",) if notice is None else tuple(name.strip() for name in notice.split(",")),
        hang_timeout_s=None if hang_timeout is None else parse_hang_timeout(hang_timeout),
        region=region or "",
        regions=() if regions is None else parse_regions(regions),
        wipe_on_exit=wipe_on_exit not in (None, False, "", "0"),
        replicas=1 if replicas is None else parse_replicas(replicas),
        audit=None if audit is None else Path(os.path.abspath(os.path.expanduser(audit))),
        events=None if events is None else parse_events(events),
        log_dir=None if not log_dir else Path(os.path.abspath(os.path.expanduser(log_dir))),
        price_per_node_hour=None if price_per_node_hour is None else parse_price(price_per_node_hour),
        log_format=parse_log_format("text" if log_format is None else log_format),
        metrics=None if metrics is None else parse_metrics(metrics),
    )


def default_drain_exit_code(environ: Mapping[str, str]) -> int:
    """What tells the scheduler around us that this node left on purpose and may come back."""
    if environ.get("SLURM_JOB_ID"):
        return DRAIN_EXIT_SLURM
    return DRAIN_EXIT_KUBERNETES if environ.get("KUBERNETES_SERVICE_HOST") else DRAIN_EXIT_PLAIN


def parse_drain_exit_code(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", value) or int(value) > 255:
        raise UsageError(f"--drain-exit-code={value} is no exit code: give a number from 0 to 255.")
    return int(value)


def parse_warm(value: str) -> str:
    if value not in WARM_MODES:
        raise UsageError(f"--warm={value} is not known: give {' or '.join(WARM_MODES)}.")
    return value


def parse_preload(value: str) -> str:
    for name in filter(None, value.split(",")):
        if not all(part.isidentifier() for part in name.strip().split(".")):
            raise UsageError(
                f"--preload={value} is not known: {name!r} is no name of a module; separate several by commas, or give "
                "auto."
            )
    return value


def parse_hang_timeout(value: str) -> float:
    """Infinite: hangs are not looked for."""
    if value == "off":
        return math.inf
    if not _is_number(value) or not HANG_MIN_S <= float(value) <= HANG_MAX_S:
        raise UsageError(f"--hang-timeout={value} is not known: give {HANG_MIN_S:g} to {HANG_MAX_S:g} seconds, or off.")
    return float(value)


def parse_regions(value: str) -> tuple[str, ...]:
    """The patterns of `--regions`. An empty list, as of a variable that is not set, must not mean: anywhere."""
    patterns = tuple(pattern for part in value.split(",") if (pattern := part.strip()))
    if not patterns:
        raise UsageError(f"--regions={value} names no region: give some, such as eu-*,uk-*, or leave it out.")
    return patterns


def parse_replicas(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,2}", value):
        raise UsageError(f"--replicas={value} is no number of nodes: give 0 to 99.")
    return int(value)


def parse_events(value: str) -> Path:
    path = Path(os.path.expanduser(value))
    if not value or path.is_dir():
        raise UsageError(f"--events={value} is not a file: give the path of a file; it need not exist.")
    return path


def parse_log_format(value: str) -> str:
    if value not in LOG_FORMATS:
        raise UsageError(f"--log-format={value} is not known: give {' or '.join(LOG_FORMATS)}.")
    return value


def parse_metrics(value: str) -> tuple[str, int]:
    """Host and port; this machine alone may read them where no host is given."""
    host, _, port = value.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise UsageError(f"--metrics={value} is no place to listen: give PORT or HOST:PORT, such as 9400.")
    return host.strip("[]") or "127.0.0.1", int(port)


def parse_price(value: str, flag: str = "--price-per-node-hour") -> float:
    if not _is_number(value):
        raise UsageError(f"{flag}={value} is no price: give a number such as 2.35.")
    return float(value)


def parse_nnodes(value: str) -> tuple[int, int]:
    """(min, max) of `N` or `MIN:MAX`."""
    found = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", value)
    if not found:
        raise UsageError(f"--nnodes={value} is not a number of nodes: give N or MIN:MAX, such as 4 or 2:8.")
    lowest = int(found[1])
    highest = int(found[2] or lowest)
    if lowest < 1:
        raise UsageError(f"--nnodes={value} asks for no node: the lowest number is 1.")
    if lowest > highest:
        raise UsageError(f"--nnodes={value} has a minimum above its maximum: give {highest}:{lowest}.")
    return lowest, highest


def parse_lease_ttl(value: str) -> float:
    seconds = _seconds("--lease-ttl", value)
    if not LEASE_TTL_MIN_S <= seconds <= LEASE_TTL_MAX_S:
        raise UsageError(
            f"--lease-ttl={value} is out of range: give {LEASE_TTL_MIN_S:g} to {LEASE_TTL_MAX_S:g} seconds."
        )
    return seconds


def parse_join_window(value: str) -> float:
    seconds = _seconds("--join-window", value)
    if not 0 <= seconds <= JOIN_WINDOW_MAX_S:
        raise UsageError(f"--join-window={value} is out of range: give 0 to {JOIN_WINDOW_MAX_S:g} seconds.")
    return seconds


def parse_on_loss(value: str) -> float:
    """How long a lost node may be replaced before the job goes on without it: 0 for shrink, infinite for wait."""
    if value == "shrink":
        return 0.0
    if value == "wait":
        return math.inf
    word, _, seconds = value.partition(":")
    if word == "wait" and _is_number(seconds) and 0 < float(seconds) < math.inf:
        return float(seconds)
    raise UsageError(
        f"--on-loss={value} is not known: give shrink, wait, or wait:S for at most S seconds, such as wait:60."
    )


def parse_grow(value: str) -> tuple[Grow, float | None]:
    """When newcomers are taken into a running job, and for how long they are gathered, where that was said."""
    for known in GROW_WORDS:
        if value == known:
            return known, None
    word, _, seconds = value.partition(":")
    if word == "now" and _is_number(seconds):
        return "now", float(seconds)
    raise UsageError(
        f"--grow={value} is not known: give now, now:S to gather newcomers until none has come for S seconds, "
        "next-save, or never."
    )


def parse_quarantine(value: str) -> tuple[int, float]:
    """(K, T): a node that fails K times within T seconds is kept out."""
    times, _, seconds = value.partition("/")
    if re.fullmatch(r"[0-9]{1,3}", times) and int(times) > 0 and _is_number(seconds) and float(seconds) >= 1:
        return int(times), float(seconds)
    raise UsageError(f"--quarantine={value} is not known: give K/T for K failures within T seconds, such as 3/600.")


def parse_endpoints(value: str) -> tuple[str, ...]:
    """The host:port of every etcd member named in `value`, which separates them by commas."""
    endpoints = tuple(part.strip() for part in value.split(","))
    if not any(endpoints):
        raise UsageError("There is no etcd endpoint: give --rdzv-endpoint=HOST:PORT, such as etcd.example:2379.")
    for endpoint in endpoints:
        split_endpoint(endpoint, value)
    return endpoints


def split_endpoint(endpoint: str, given: str | None = None) -> tuple[str, int]:
    """(host, port), the host without the brackets of an IPv6 address."""
    flag = f"--rdzv-endpoint={endpoint if given is None else given}"
    if not endpoint:
        raise UsageError(f"{flag} has an empty endpoint between its commas: give HOST:PORT,HOST:PORT.")
    if "://" in endpoint:
        bare = endpoint.partition("://")[2].rstrip("/")
        raise UsageError(f"{flag} has a scheme: give {bare} alone; --etcd-cacert is what turns TLS on.")
    if endpoint.count(":") > 1 and not endpoint.startswith("["):
        raise UsageError(f"{flag} has an IPv6 address without brackets: give [ADDRESS]:PORT, such as [::1]:2379.")
    host, colon, port = endpoint.rpartition(":")
    if not colon or endpoint.endswith("]"):
        raise UsageError(f"{flag} has no port: give {endpoint}:2379 (2379 is etcd's usual port).")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise UsageError(
            f"{flag} has a bad port, {port!r}: give a number from 1 to 65535, such as {host or 'HOST'}:2379."
        )
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not re.fullmatch(r"[\w.:%-]+", bare):
        raise UsageError(f"{flag} has a bad host, {host!r}: give a name or an address, such as etcd.example:{port}.")
    return bare, int(port)


def check_readable(flag: str, path: Path) -> Path:
    """`path` itself, if it is a file that can be read."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UsageError(f"{flag}={path} cannot be read ({error.strerror}): give a file that can be.") from None
    return path


def check_tls(ca_cert: Path | None, cert: Path | None, key: Path | None) -> None:
    """That the files can be read, and that a client certificate comes with its key."""
    for flag, path in (("--etcd-cacert", ca_cert), ("--etcd-cert", cert), ("--etcd-key", key)):
        if path is not None:
            check_readable(flag, path)
    if (cert is None) != (key is None):
        raise UsageError(
            f"--etcd-{'key' if key is None else 'cert'} is missing: a client certificate needs both files."
        )


def read_password(file: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """etcd's password: the first line of `file`, else the value of SPOTRUN_ETCD_PASSWORD. Never in a message."""
    if file is None:
        if password := environ.get(PASSWORD_ENV):
            return password
        raise UsageError(f"There is no password for --etcd-user: give --etcd-password-file, or set {PASSWORD_ENV}.")
    check_readable("--etcd-password-file", file)
    password = file.read_text(errors="surrogateescape").partition("\n")[0].rstrip("\r")
    if not password:
        raise UsageError(f"--etcd-password-file={file} is empty: its first line is the password.")
    return password


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?", value) is not None


def _seconds(flag: str, value: str) -> float:
    if not _is_number(value):
        raise UsageError(f"{flag}={value} is not a number of seconds: give one such as 4 or 2.5.")
    return float(value)
