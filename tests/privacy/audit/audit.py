"""One black-box audit: the path runs on neighbouring files, and a lower bound on epsilon comes out.

Place: joins the experiments (`cases`), the path and the estimate; the tests only compare and print.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tests.privacy.audit.cases import NEIGHBOURS, Case, Row, others
from tests.privacy.audit.estimate import bounded_by, epsilon_hat
from tests.privacy.audit.path import sampled

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.privacy.audit.estimate import Hat, Sample


class Runs(NamedTuple):
    """How many samples a side: windows times replicas."""

    windows: int
    replicas: int = 256

    @property
    def total(self) -> int:
        """Samples a side."""
        return self.windows * self.replicas


RUNS = {"laplace": Runs(25), "gaussian": Runs(50)}
"""Enough to catch half the noise for every kind; what less than that shows is printed by `test_power.py`."""


def audit(
    home: Path, case: Case, *neighbours: str, runs: Runs | None = None, hat: Hat | None = None
) -> dict[str, float]:
    """The lower bound on epsilon (or on what `hat` bounds), by neighbour; one sample without the unit serves for all.

    False-alarm rate: at most 2e-6 a neighbour.
    """
    folders = (home / f"run{i}" for i in itertools.count())

    def pair(rows: Iterable[Row]) -> tuple[Sample, Sample]:
        windows, replicas = runs or RUNS[case.mechanism]
        listed = [*others(case), *rows]
        train = sampled(next(folders), case, listed, windows=windows, replicas=replicas)
        return train, sampled(next(folders), case, listed, windows=windows, replicas=replicas)

    without = pair([])
    found = {}
    for name in neighbours:
        with_it = pair(NEIGHBOURS[name](case))
        bound = hat or partial(epsilon_hat, delta=case.delta)
        found[name] = bounded_by((with_it[0], without[0]), (with_it[1], without[1]), bound)
    return found


def report(line: str) -> None:
    """Print what an audit found: its power is its result (`pytest -s`)."""
    print(line)  # noqa: T201  # see above


def summary(case: Case, found: dict[str, float], runs: Runs | None = None) -> str:
    """One line on one audit."""
    keys = "discovered" if case.discovered else "public"
    bounds = ", ".join(f"{name} {epsilon:.2f}" for name, epsilon in found.items())
    total = (runs or RUNS[case.mechanism]).total
    return (
        f"{case.kind}, {case.mechanism}, {keys} keys: {bounds} of {case.epsilon} at delta {case.delta:g}; {total} runs"
    )
