"""A pool asks for no machine that --regions would only refuse."""

from __future__ import annotations

import pytest

from spotrun.cli.pool import check_places, regions_of
from spotrun.errors import UsageError
from spotrun.pool.decide import Place

EU = ("eu-*", "europe-west4")


@pytest.mark.parametrize("arguments", [("--regions=eu-*,uk", "train.py"), ("--regions", "eu-*,uk", "train.py")])
def test_the_regions_are_those_of_the_nodes_line_however_it_is_written(arguments: tuple[str, ...]) -> None:
    assert regions_of(arguments, {"SPOTRUN_REGIONS": "us-*"}) == ("eu-*", "uk")


def test_the_regions_may_come_from_the_environment() -> None:
    assert regions_of(("train.py",), {"SPOTRUN_REGIONS": "us-*"}) == ("us-*",)
    assert regions_of(("train.py",), {}) == ()


@pytest.mark.parametrize(
    ("provider", "place"),
    [
        *(("k8s", place) for place in ("eu-west-1b", "europe-west4-a", "europe-west4", "")),
        *(("skypilot", place) for place in ("aws/eu-west-1", "gcp/europe-west4/europe-west4-a")),
        *(("slurm", place) for place in ("spot", "")),
    ],
)
def test_a_place_within_or_one_that_tells_no_region_is_taken(provider: str, place: str) -> None:
    check_places((Place(place),), provider, EU)


@pytest.mark.parametrize(
    ("provider", "place", "says"),
    [
        ("k8s", "us-east-1a", "--place=us-east-1a is not within"),
        *(("skypilot", place, "is not within") for place in ("aws/us-east-1", "aws", "aws/*/eu-west-1a")),
        ("skypilot", "", "Without --place"),
    ],
)
def test_a_place_elsewhere_or_anywhere_is_refused(provider: str, place: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_places((Place(place),), provider, EU)
    check_places((Place(place),), provider, ())
