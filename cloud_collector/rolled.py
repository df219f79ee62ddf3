"""Answers from the roll-ups: the same rows as `totals.py` reads from the lake, without reading the lake.

Place: chosen by the query room for questions about all nodes of a plan that is rolled up.
Invariants: one read transaction an answer, so that totals and coverage speak of the same releases; whole days are taken
from the days, what is left of a range from its windows; every number is the one that the lake would give.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np

from cloud_collector.combine import Total
from cloud_collector.errors import StoreFailed
from cloud_collector.noise import Noise, Term
from cloud_collector.rollup import DAY_US, Wide, day_of, has_days
from edge_agg.contract.cells import keys, n_cells
from edge_agg.contract.vectors import payload_columns, plan_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cloud_collector.question import Asked, Grid, Node
    from cloud_collector.totals import Held, Key
    from edge_agg.contract.plan import Plan, PlanHash

_Part = tuple[int, int, int]
"""Whether of days, and from when until when."""


def fits(asked: Asked) -> bool:
    """Whether sums over sites answer a question: it is about all nodes together, and its plan's keys are public."""
    return asked.discovered is None and not asked.node_names and "node" not in asked.question.by


class Rolled:
    """One question's view of a plan's roll-ups; close it after use.

    Args:
        path: the roll-ups' file.
        plan: that is rolled up.
        plan_hash: its hash.
        tenant: whose rows there are; everybody's if None.
    """

    def __init__(self, path: Path, plan: Plan, plan_hash: PlanHash, *, tenant: str | None) -> None:
        self._plan, self._tenant = plan, tenant
        try:
            self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            self._db.set_busy_timeout(5_000)
            self._db.execute("BEGIN")
            self._number: Any = self._db.execute("SELECT no FROM plans WHERE hash = ?", (bytes(plan_hash),)).get
        except apsw.Error:
            raise StoreFailed("the roll-ups cannot be read: look at the disk") from None

    def close(self) -> None:
        """End the view."""
        self._db.close()

    def seen(self) -> list[tuple[Node, int, int]]:
        """Each node that ever reported, with its first window's start and its last window's end."""
        return self._seen

    @cached_property
    def _seen(self) -> list[tuple[Node, int, int]]:
        query = (
            "SELECT tenant, nodes.node, first_us, last_us FROM seen JOIN nodes ON nodes.no = seen.node "
            "WHERE plan = ?1 AND (?2 IS NULL OR tenant = ?2)"
        )
        rows = self._run(query, (self._number, self._tenant))
        return [((tenant, node), first, last) for tenant, node, first, last in rows]

    def records(self, nodes: list[Node], grid: Grid) -> dict[tuple[int, Node], Counter[str]]:
        """How many windows of each status are on record, by bucket and node."""
        del nodes  # all of them
        names = {no: (tenant, node) for no, tenant, node in self._run("SELECT no, tenant, node FROM nodes", ())}
        found: dict[tuple[int, Node], Counter[str]] = defaultdict(Counter)
        for days, start, end in self._parts(grid):
            table, windows = ("days", "sum(windows)") if days else ("records", "count(*)")
            query = (
                f"SELECT (start_us - ?1) / ?2, node, status, {windows} FROM {table} "  # noqa: S608  # names of ours
                "WHERE plan = ?3 AND start_us >= ?4 AND start_us < ?5 GROUP BY 1, 2, 3"
            )
            for bucket, node, status, count in self._run(query, (grid.first, grid.every, self._number, start, end)):
                if self._tenant in {None, names[node][0]}:
                    found[bucket, names[node]][status] += count
        return found

    def present(self, nodes: list[Node], grid: Grid) -> dict[Node, list[int]]:
        """By node, the starts of its windows that are on record, ascending."""
        asked = set(nodes)
        rows = self._run("SELECT no, tenant, node FROM nodes", ())
        names = {no: (tenant, node) for no, tenant, node in rows if (tenant, node) in asked}
        query = (
            "SELECT start_us, node FROM records WHERE plan = ? AND start_us >= ? AND start_us < ? "
            "AND node IN (SELECT value FROM json_each(?)) ORDER BY start_us"
        )
        found: dict[Node, list[int]] = defaultdict(list)
        for start, no in self._run(query, (self._number, grid.start, grid.end, json.dumps(list(names)))):
            found[names[no]].append(start)
        return found

    def keys(self, asked: Asked, nodes: list[Node], grid: Grid) -> list[str]:
        """None: the plan discovers no keys."""
        del asked, nodes, grid
        return []

    def held(self, asked: Asked, nodes: list[Node], grid: Grid) -> dict[Key, Held]:
        """None, as above."""
        del asked, nodes, grid
        return {}

    def totals(self, asked: Asked, nodes: list[Node], grid: Grid) -> dict[Key, Total]:
        """What was released, by bucket and group."""
        del nodes  # all of them
        sums: dict[tuple[int, bytes], tuple[int, Wide]] = {}
        size = len(payload_columns(self._plan)) * n_cells(self._plan)
        for bucket, scales, releases, data in self._sums(grid):
            one = releases, Wide.unpack(data, size)
            before = sums.get((bucket, scales))
            sums[bucket, scales] = one if before is None else (before[0] + one[0], before[1] + one[1])
        groups = _Groups(asked)
        found: dict[Key, Total] = {}
        for (bucket, scales), (releases, wide) in sums.items():
            for key, total in groups.totals(np.frombuffer(scales, "<f8").tolist(), releases, wide):
                full = (bucket, *key)
                found[full] = found[full] + total if full in found else total
        return found

    def _sums(self, grid: Grid) -> Iterator[tuple[int, bytes, int, bytes]]:
        query = (
            "SELECT (start_us - ?1) / ?2, scales, releases, sums FROM sums "
            "WHERE plan = ?3 AND day = ?4 AND start_us >= ?5 AND start_us < ?6 AND (?7 IS NULL OR tenant = ?7)"
        )
        for days, start, end in self._parts(grid):
            about = (grid.first, grid.every, self._number, days, start, end, self._tenant)
            yield from self._run(query, about)

    def _parts(self, grid: Grid) -> list[_Part]:
        """The range, cut into whole days and what is left of it; a bucket that days do not fit is made of windows."""
        first_day = day_of(grid.start + DAY_US - 1)
        last_day = day_of(grid.end)
        one_bucket = len(grid) == 1
        fit = has_days(self._plan) and (one_bucket or (grid.every % DAY_US == 0 and day_of(grid.first) == grid.first))
        if not fit or first_day >= last_day:
            return [(0, grid.start, grid.end)]
        return [(0, grid.start, first_day), (1, first_day, last_day), (0, last_day, grid.end)]

    def _run(self, query: str, about: Sequence[Any]) -> Iterator[Any]:
        try:
            yield from self._db.execute(query, tuple(about))
        except apsw.Error:
            raise StoreFailed("the roll-ups cannot be read: look at the disk") from None


class _Groups:
    """Which cells belong to which group of an answer, and the columns that it reads."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        plan = asked.plan
        labels = [partition.label for partition in plan.partition]
        kept = [frozenset(asked.keys[label]) for label in labels]
        places = [labels.index(column) for column in asked.question.by]
        members: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for cell, texts in enumerate(keys(plan)):
            if all(text in keep for text, keep in zip(texts, kept, strict=True)):
                members[tuple(texts[place] for place in places)].append(cell)
        self._keys = list(members)
        self._sizes = [len(cells) for cells in members.values()]
        self._order = np.array([cell for cells in members.values() for cell in cells], np.int64)
        self._edges = np.cumsum([0, *self._sizes])[:-1]
        names = payload_columns(plan)
        self._columns = [[names.index(column) for column in vector.columns] for vector in asked.vectors]
        vectors = [vector.name for vector in plan_vectors(plan)]
        self._scales = [vectors.index(vector.name) for vector in asked.vectors]
        self._cells, self._n_columns = n_cells(plan), len(names)

    def totals(self, scales: Sequence[float], releases: int, wide: Wide) -> Iterator[tuple[tuple[str, ...], Total]]:
        """Each group's total of releases with these scales."""
        if not self._keys:
            return
        high, low = (self._grouped(part) for part in (wide.high, wide.low))
        mechanism = self._asked.plan.budget.mechanism
        for n, key in enumerate(self._keys):
            draws = releases * self._sizes[n]
            noises = [Noise.of([Term(mechanism=mechanism, scale=scales[at], count=draws)]) for at in self._scales]
            sums = (tuple((int(high[at, n]) << 32) + int(low[at, n]) for at in columns) for columns in self._columns)
            yield key, Total(sums=tuple(sums), noises=tuple(noises))

    def _grouped(self, part: NDArray[np.int64]) -> NDArray[np.int64]:
        cells = part.reshape(self._n_columns, self._cells)[:, self._order]
        added: NDArray[np.int64] = np.add.reduceat(cells, self._edges, axis=1)
        return added
