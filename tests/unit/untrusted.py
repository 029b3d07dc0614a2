"""Records as anybody may write them: of the right types, and of any value."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from hypothesis import strategies as st

from spotrun.errors import BadRecord
from spotrun.rendezvous.state import PROTOCOL, decode

NUMBERS = st.sampled_from([-(1 << 61), -1, 0, 1, 2, 70_000, 1 << 61])
TEXTS = st.sampled_from(
    [
        *(
            "",
            "a",
            "b",
            "../../etc/passwd",
            "a\n\x1b[2J",
            "x" * 300,
            "\ud800",
            "[/b]",
            "<script>",
            "failed",
            "succeeded",
        ),
        *("a,b", "1", "inf", "nan", "1e400", "-3", "incident", "round_formed", "progress", "job_ended", "start"),
        *("zone", "loss", "nodes", "cause", "world_size", "data_share", "checkpoint_s", "reason"),
    ]
)


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """JSON of the right types and of any value."""
    if dataclasses.is_dataclass(kind):
        return st.fixed_dictionaries({name: of_type(hint) for name, hint in fields_of(kind).items()})
    if typing.get_origin(kind) is tuple:
        return st.lists(of_type(typing.get_args(kind)[0]), max_size=3)
    if typing.get_origin(kind) is dict:
        return st.dictionaries(TEXTS, TEXTS, max_size=2)
    if isinstance(kind, types.UnionType):
        return st.none() | of_type(typing.get_args(kind)[0])
    return {int: NUMBERS, str: TEXTS, bool: st.booleans(), float: st.floats()}[kind]


def fields_of(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def read(kind: Any, body: dict[str, Any]) -> Any:
    """The record, or None where it is refused."""
    try:
        return decode(kind, json.dumps({**body, "v": PROTOCOL}).encode())
    except BadRecord:
        return None
