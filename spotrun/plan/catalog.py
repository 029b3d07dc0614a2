"""The price table: a CSV file with the columns of SkyPilot's catalogs. Prices are per node and hour, in dollars."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from spotrun.errors import UsageError

NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region")

# Dense 16-bit TFLOP/s and GB of memory, by NVIDIA's data sheets.
ACCELERATORS = {
    "T4": (65.0, 16.0),
    "V100": (125.0, 16.0),
    "V100-32GB": (125.0, 32.0),
    "A10G": (70.0, 24.0),
    "L4": (121.0, 24.0),
    "L40S": (362.0, 48.0),
    "A100": (312.0, 40.0),
    "A100-80GB": (312.0, 80.0),
    "H100": (989.0, 80.0),
    "H200": (989.0, 141.0),
    "B200": (2250.0, 180.0),
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of machine in a region. A price of None: it is not offered so."""

    instance: str
    accelerator: str
    count: int
    price: float | None
    spot_price: float | None
    region: str

    @property
    def flops(self) -> float:
        """Of one accelerator, dense, 16 bits."""
        return ACCELERATORS[self.accelerator][0] * 1e12

    @property
    def memory_bytes(self) -> float:
        """Of one accelerator."""
        return ACCELERATORS[self.accelerator][1] * 1e9


def read(path: Path) -> list[Offer]:
    """The offers whose accelerator is known, the cheapest zone of each region. Raises UsageError."""
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in NEEDED if name not in (rows.fieldnames or ())]
            if missing:
                raise UsageError(f"--prices={path} has no column {', '.join(missing)}: give a catalog of SkyPilot.")
            offers = [_offer(path, rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--prices={path} cannot be read ({error}): give a CSV file.") from None
    known = [it for it in offers if it.accelerator in ACCELERATORS and it.count]
    if not known:
        raise UsageError(f"--prices={path} has no accelerator of {', '.join(ACCELERATORS)}.")
    best: dict[tuple[str, str], Offer] = {}
    for it in known:
        key = (it.instance, it.region)
        if key not in best or _cheapest(it) < _cheapest(best[key]):
            best[key] = it
    return list(best.values())


def allowed(offers: list[Offer], regions: tuple[str, ...]) -> list[Offer]:
    """Those in regions that fit one of the patterns, such as eu-*; all where there is none."""
    return [it for it in offers if not regions or any(fnmatchcase(it.region, pattern) for pattern in regions)]


def _offer(path: Path, line: int, row: dict[str, str]) -> Offer:
    try:
        return Offer(
            row["InstanceType"],
            row["AcceleratorName"],
            int(float(row["AcceleratorCount"] or 0)),
            _price(row["Price"]),
            _price(row["SpotPrice"]),
            row["Region"],
        )
    except (ValueError, TypeError):
        raise UsageError(f"--prices={path} has a bad number in line {line}: correct it or leave it empty.") from None


def _price(text: str) -> float | None:
    return float(text) if text else None


def _cheapest(offer: Offer) -> float:
    return min((it for it in (offer.spot_price, offer.price) if it is not None), default=float("inf"))
