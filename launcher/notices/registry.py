"""The names of `--notice`, and the source behind each: ours, and those of other distributions.

auto              all that this machine has
none              nothing
aws,file:/run/x   these, whether or not they are detected; what follows the colon is handed to the source
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from spotrun import events
from spotrun.errors import UsageError
from spotrun.launcher.health import HealthMonitor
from spotrun.launcher.notices.alibaba import AlibabaSource
from spotrun.launcher.notices.aws import AwsSource
from spotrun.launcher.notices.azure import AzureSource
from spotrun.launcher.notices.file import FileSource
from spotrun.launcher.notices.gcp import GcpSource
from spotrun.launcher.notices.http import HttpSource
from spotrun.launcher.notices.notice import Source, bounded

GROUP = "spotrun.notices"
AUTO, NONE = "auto", "none"
Factory = Callable[[str], Source]  # gets what follows the colon, or ""

OWN: Mapping[str, Factory] = {
    "aws": lambda _: AwsSource(),
    "gcp": lambda _: GcpSource(),
    "azure": lambda _: AzureSource(),
    "alibaba": lambda _: AlibabaSource(),
    "file": FileSource,
    "http": HttpSource,
    "health": lambda _: HealthMonitor(),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A source, and whether it runs only where it detects itself."""

    source: Source
    must_detect: bool


def parse_notice(value: str) -> tuple[str, ...]:
    """The names in the value of `--notice`, checked. Raises UsageError."""
    names = tuple(name for part in value.split(",") if (name := part.strip()))
    if not names:
        raise UsageError(f"--notice={value} names no source: give auto, none, or some of {', '.join(known())}.")
    if NONE in names and len(names) > 1:
        raise UsageError(f"--notice={value} asks for none and for others: give none alone, or the others.")
    for name in names:
        base, colon, argument = name.partition(":")
        if base not in (AUTO, NONE) and base not in known():
            raise UsageError(f"--notice={name} is not known: give auto, none, or some of {', '.join(known())}.")
        if base == "file" and not argument and not FileSource().detect():
            raise UsageError("--notice=file needs a path: give --notice=file:/path/of/the/file.")
        if base == "http" and colon and not (argument.isdecimal() and 0 < int(argument) < 65536):
            raise UsageError(f"--notice={name} has no port: give --notice=http:PORT with a port from 1 to 65535.")
        if base in (AUTO, NONE, "aws", "gcp", "azure", "alibaba", "health") and colon:
            raise UsageError(f"--notice={name}: {base} takes nothing after a colon.")
    return names


def known() -> list[str]:
    """The names of all sources, ours first."""
    return [*OWN, *sorted(_others().keys() - OWN.keys())]


def sources_of(names: Sequence[str]) -> list[Found]:
    """The sources that these names ask for, each once. Raises UsageError for a named one that cannot be made."""
    found: dict[str, Found] = {}
    if AUTO in names:
        for name in known():
            try:
                found[name] = Found(_make(name, ""), must_detect=True)
            except UsageError as error:  # nobody asked for it by name
                events.emit("notice_source_broken", str(error), level=logging.WARNING, source=name)
    for asked in names:
        base, _, argument = asked.partition(":")
        if base not in (AUTO, NONE):
            found[asked] = Found(_make(base, argument), must_detect=False)
            if asked != base and found.get(base, found[asked]).must_detect:
                found.pop(base, None)  # the detected one gives way to the one that was named
    return list(found.values())


def _make(name: str, argument: str) -> Source:
    if name in OWN:
        return OWN[name](argument)
    try:
        factory: Factory = _others()[name].load()
        return factory(argument)
    except Exception as error:  # other people's code may raise anything
        raise UsageError(
            f"--notice={name}: its distribution is broken ({type(error).__name__}: {bounded(str(error))})."
        ) from error


def _others() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}
