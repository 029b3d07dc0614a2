"""Two results of the same benchmark: what became better or worse, beyond the noise of the runs.

    python -m spotrun.benchmarks.compare BEFORE.json AFTER.json [--relative-to torchrun] [--tolerance 0.05]

A figure is called worse (or better) only if both hold: the medians differ by more than the tolerance, and a rank test
(Mann-Whitney, one-sided, exact for few runs) finds the order of all single runs too unlikely (p <= 0.01) for equal
luck. Four runs against five are the fewest that can show it. Lower is better, unless the name ends in `_per_s` or is
in the document's `higher_is_better`. A figure that is null did not come within its limit: worse than every number.

`--relative-to ROW` divides each figure by the median of the same figure in the rows of that launcher in the same file:
what to use when the two files come from different machines, or from one that was busier the second time.

Exit code: 0; 1 if something became worse; 2 if the files cannot be compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spotrun.benchmarks.measurement import figures

P = 0.01  # many figures are looked at: at 0.05 one of twenty would be called worse by luck
TOLERANCE = 0.05  # less than this nobody should act on
MOST_ORDERS = 20_000  # more than these are not enumerated: the normal approximation is good by then

Verdict = Literal["better", "worse", "same", "too few runs"]
Samples = dict[str, dict[str, list[float]]]  # by row, then by figure


class NotComparable(Exception):
    """The files do not hold results of the same benchmark."""


@dataclass(frozen=True, slots=True)
class Comparison:
    row: str
    figure: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    p: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """Of the medians; infinite where only the later did not come to be."""
        before, after = statistics.median(self.before), statistics.median(self.after)
        if before == after:
            return 1.0
        return after / before if before not in (0.0, math.inf) else (0.0 if after < before else math.inf)


def samples(document: Mapping[str, Any], relative_to: str | None = None) -> Samples:
    """The single runs of each figure. Raises NotComparable when nothing has the launcher `relative_to`."""
    rows = [(_key(result), figures(result["runs"])) for result in document["results"]]
    if relative_to is None:
        return {_name(key): found for key, found in rows}
    baseline = {
        _name(key, "launcher"): {name: statistics.median(values) for name, values in found.items()}
        for key, found in rows
        if key.get("launcher") == relative_to
    }
    if not baseline:
        raise NotComparable(f"no row has the launcher {relative_to!r}")
    relative: Samples = {}
    for key, found in rows:
        divisors = baseline.get(_name(key, "launcher"), {})
        if key.get("launcher") != relative_to:
            relative[f"{_name(key)} / {relative_to}"] = {
                name: [value / divisors[name] for value in values]
                for name, values in found.items()
                if 0 < divisors.get(name, 0) < math.inf
            }
    return relative


def compare(
    before: Samples, after: Samples, higher_is_better: Iterable[str] = (), tolerance: float = TOLERANCE
) -> list[Comparison]:
    """What stands in both."""
    higher = frozenset(higher_is_better)
    return [
        judge(row, figure, old, after[row][figure], figure in higher or figure.endswith("_per_s"), tolerance)
        for row, figures in before.items()
        for figure, old in figures.items()
        if figure in after.get(row, {})
    ]


def judge(
    row: str,
    figure: str,
    before: Sequence[float],
    after: Sequence[float],
    higher_is_better: bool = False,
    tolerance: float = TOLERANCE,
) -> Comparison:
    old, new = statistics.median(before), statistics.median(after)
    if set(before) == set(after) == {old}:
        return Comparison(row, figure, tuple(before), tuple(after), 1.0, "same")
    rises = new > old
    low, high = (before, after) if rises else (after, before)
    p = rank_p(low, high)
    verdict: Verdict = "same"
    if abs(new - old) > tolerance * abs(old) if old < math.inf else new != old:
        if p <= P:
            verdict = "better" if rises == higher_is_better else "worse"
        elif 1 / math.comb(len(before) + len(after), len(before)) > P:
            verdict = "too few runs"
    return Comparison(row, figure, tuple(before), tuple(after), p, verdict)


def rank_p(low: Sequence[float], high: Sequence[float], most_orders: int = MOST_ORDERS) -> float:
    """How likely values of one distribution would put `high` at least this far above `low`."""
    values = sorted((*low, *high))
    rank = {value: (_first(values, value) + _last(values, value)) / 2 for value in values}
    ranks = [rank[value] for value in values]
    seen = sum(rank[value] for value in high)
    count, orders = len(high), math.comb(len(values), len(high))
    if orders <= most_orders:
        return sum(sum(chosen) >= seen - 1e-9 for chosen in itertools.combinations(ranks, count)) / orders
    mean = count * statistics.fmean(ranks)
    spread = math.sqrt(count * len(low) * statistics.pvariance(ranks) / (len(values) - 1))
    return 0.5 * math.erfc((seen - 0.5 - mean) / spread / math.sqrt(2)) if spread else 1.0


def _key(result: Mapping[str, Any]) -> dict[str, str | int]:
    """What a row is known by: those of its fields that are words or whole numbers."""
    return {
        name: value
        for name, value in result.items()
        if isinstance(value, str | int) and not isinstance(value, bool) and name not in result["runs"][0]
    }


def _name(key: Mapping[str, str | int], without: str = "") -> str:
    parts = ((name, value) for name, value in key.items() if name != without)
    return ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in parts)


def _first(values: Sequence[float], value: float) -> int:
    return values.index(value)


def _last(values: Sequence[float], value: float) -> int:
    return len(values) - 1 - values[::-1].index(value)


def _shown(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} - {max(values):.3f}, n={len(values)})"


def load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
        if not all(result["runs"] for result in document["results"]):
            document["results"] = [result for result in document["results"] if result["runs"]]
        assert isinstance(document["benchmark"], str)
    except OSError as error:
        raise NotComparable(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AssertionError):
        raise NotComparable(f"{path} is no result of a benchmark of ours") from None
    return dict(document)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--relative-to", metavar="LAUNCHER")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--all", action="store_true", help="also show what stayed the same")
    options = parser.parse_args(argv)
    try:
        old, new = load(options.before), load(options.after)
        if old["benchmark"] != new["benchmark"]:
            raise NotComparable(f"{old['benchmark']} and {new['benchmark']} are not the same benchmark")
        found = compare(
            samples(old, options.relative_to),
            samples(new, options.relative_to),
            new.get("higher_is_better", ()),
            options.tolerance,
        )
        if not found:
            raise NotComparable("the files have no figure in common")
    except NotComparable as error:
        print(error, file=sys.stderr)
        return 2
    for name in ("machine", "settings"):
        if options.relative_to is None and _steady(old.get(name)) != _steady(new.get(name)):
            print(f"note: the two files differ in their {name}; --relative-to compares ratios")
    for item in found:
        if options.all or item.verdict != "same":
            print(
                f"{item.verdict:<12} {item.row}: {item.figure} {_shown(item.before)} -> {_shown(item.after)}, "
                f"x {item.ratio:.2f}, p {item.p:.3f}"
            )
    counts = {verdict: sum(item.verdict == verdict for item in found) for verdict in ("better", "worse", "same")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f" of {len(found)} figures")
    return 1 if counts["worse"] else 0


def _steady(facts: Any) -> Any:
    """Without what is meant to differ between two runs."""
    changing = ("load1_at_start", "commit")
    return {name: value for name, value in facts.items() if name not in changing} if isinstance(facts, dict) else facts


if __name__ == "__main__":
    sys.exit(main())
