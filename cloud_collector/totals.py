"""What lies in the lake for one question: totals with their noise, what became of each window, which keys were found.

Place: below the query room, which knows the question; above the lake's files, which DuckDB reads.
Invariants: totals are exact integers, and their noise is counted draw by draw, scale by scale; no value of a question
becomes part of the SQL; every statement is bound to the asker's tenant, in the one place that runs them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloud_collector.combine import Total
from cloud_collector.noise import Noise, Term

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import duckdb

    from cloud_collector.question import Asked, Grid, Node
    from edge_agg.contract.plan import Plan

Key = tuple[object, ...]
"""A bucket, and then what the group is called in each `by` column; a node is (tenant, node)."""

_BUCKET = "(epoch_us(window_start) - $first) // $every"
_RANGE = "window_start >= make_timestamptz($start) and window_start < make_timestamptz($end)"
_NODES = "(tenant, node) in (select unnest($tenants::varchar[]), unnest($nodes::varchar[]))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Who released discovered keys that a group asks for."""

    nodes: int = 0
    """With any of the keys in any window."""
    windows: int = 0
    """Pairs of node and window with any of the keys."""
    keyed: int = 0
    """Triples of node, window and key."""


class Rows:
    """One question's view of a plan's table.

    Args:
        duck: a connection of its own.
        files: says which files may hold windows that start in a range, of one version of the table.
        tenant: whose rows there are; everybody's if None.
        seen: what :meth:`seen` is to say, where that is known without reading every file.
    """

    def __init__(
        self,
        duck: duckdb.DuckDBPyConnection,
        files: Callable[[int | None, int | None], list[str]],
        *,
        tenant: str | None = None,
        seen: list[tuple[Node, int, int]] | None = None,
    ) -> None:
        self._duck = duck
        self._files = files
        self._tenant = tenant
        self._seen = seen

    def seen(self) -> list[tuple[Node, int, int]]:
        """Each node that ever reported, with its first window's start and its last window's end."""
        if self._seen is not None:
            return self._seen
        select = "tenant, node, epoch_us(min(window_start)), epoch_us(max(window_end))"
        return [((tenant, node), first, last) for tenant, node, first, last in self._run(select, ["true"], {})]

    def records(self, nodes: list[Node], grid: Grid) -> dict[tuple[int, Node], Counter[str]]:
        """How many windows of each status are on record, by bucket and node."""
        select = f"{_BUCKET}, tenant, node, status, count(distinct window_start)"
        found: dict[tuple[int, Node], Counter[str]] = defaultdict(Counter)
        where, params = _in_range(nodes, grid)
        for bucket, tenant, node, status, windows in self._run(select, where, params | _buckets(grid)):
            found[bucket, (tenant, node)][status] = windows
        return found

    def present(self, nodes: list[Node], grid: Grid) -> dict[Node, list[int]]:
        """By node, the starts of its windows that are on record, ascending."""
        found: dict[Node, list[int]] = defaultdict(list)
        where, params = _in_range(nodes, grid)
        for tenant, node, start in sorted(self._run("tenant, node, epoch_us(window_start)", where, params)):
            found[tenant, node].append(start)
        return found

    def keys(self, asked: Asked, nodes: list[Node], grid: Grid) -> list[str]:
        """The discovered keys that these nodes released in the range, or those that the question names; in no order."""
        if asked.discovered is None:
            return []
        if asked.wanted is not None:
            return list(asked.wanted)
        where, params = _in_range(nodes, grid)
        where.append(f"{_quoted(asked.discovered)} is not null")
        return [key for (key,) in self._run(_quoted(asked.discovered), where, params)]

    def held(self, asked: Asked, nodes: list[Node], grid: Grid) -> dict[Key, Held]:
        """By bucket, and by node and discovered key where the question groups by them, who released the keys."""
        if asked.discovered is None:
            return {}
        where, params = _in_range(nodes, grid)
        _keep(asked, [asked.discovered], where, params)
        by = [column for column in asked.question.by if column in {"node", asked.discovered}]
        counts = [
            f"count(distinct struct_pack({', '.join(parts)}))"
            for parts in (
                ["tenant", "node"],
                ["tenant", "node", "window_start"],
                ["tenant", "node", "window_start", f"found := {_quoted(asked.discovered)}"],
            )
        ]
        rows = self._run(", ".join([_BUCKET, *map(_group, by), *counts]), where, params | _buckets(grid))
        return {_key(row[: len(by) + 1]): Held(nodes=row[-3], windows=row[-2], keyed=row[-1]) for row in rows}

    def totals(self, asked: Asked, nodes: list[Node], grid: Grid) -> dict[Key, Total]:
        """What was released, by bucket and group."""
        where, params = _in_range(nodes, grid)
        where += ["status = 'released'"]
        _keep(asked, asked.keys, where, params)
        by = asked.question.by
        scales = [_quoted(f"{vector.name}__scale") for vector in asked.vectors]
        sums = [f"sum({_quoted(column)})" for vector in asked.vectors for column in vector.columns]
        select = ", ".join([_BUCKET, *map(_group, by), *scales, *sums, "count(*)"])
        found: dict[Key, Total] = {}
        for row in self._run(select, where, params | _buckets(grid)):
            key = _key(row[: len(by) + 1])
            n = len(scales)
            *values, draws = row[len(by) + 1 :]
            total = _total(asked, values[:n], values[n:], draws)
            found[key] = found[key] + total if key in found else total
        return found

    def _run(self, select: str, where: list[str], params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Read what may hold what is asked for; other files stay shut."""
        files = [_literal(file) for file in self._files(params.get("start"), params.get("end"))]
        if not files:
            return []
        if self._tenant is not None:
            where, params = [*where, "tenant = $tenant"], {**params, "tenant": self._tenant}
        sql = f"select {select} from read_parquet($files) where {' and '.join(where)} group by all"  # noqa: S608  # names of the plan, quoted; values are bound
        return self._duck.execute(sql, {**params, "files": files}).fetchall()


def _total(asked: Asked, scales: Sequence[float], sums: Sequence[int], draws: int) -> Total:
    """One row of totals: each vector takes its columns' sums, in the order in which they were selected."""
    plan: Plan = asked.plan
    noises = (Noise.of([Term(mechanism=plan.budget.mechanism, scale=scale, count=draws)]) for scale in scales)
    rest = iter(sums)
    parts = (tuple(int(next(rest)) for _ in vector.columns) for vector in asked.vectors)
    return Total(sums=tuple(parts), noises=tuple(noises))


def _keep(
    asked: Asked, columns: Sequence[str] | dict[str, list[str]], where: list[str], params: dict[str, object]
) -> None:
    """Keep the rows of the keys that the question asks for."""
    for n, column in enumerate(columns):
        if column == asked.discovered and asked.wanted is None:
            where.append(f"{_quoted(column)} is not null")
            continue
        where.append(f"{_quoted(column)} in (select unnest($keys_{n}::varchar[]))")
        params[f"keys_{n}"] = list(asked.wanted or ()) if column == asked.discovered else asked.keys[column]


def _in_range(nodes: list[Node], grid: Grid) -> tuple[list[str], dict[str, object]]:
    params: dict[str, object] = {"start": grid.start, "end": grid.end}
    params |= {"tenants": [tenant for tenant, _ in nodes], "nodes": [node for _, node in nodes]}
    return [_RANGE, _NODES], params


def _buckets(grid: Grid) -> dict[str, object]:
    return {"first": grid.first, "every": grid.every}


def _key(row: Sequence[Any]) -> Key:
    return tuple(tuple(part.values()) if isinstance(part, dict) else part for part in row)


def _group(column: str) -> str:
    return "struct_pack(tenant, node)" if column == "node" else _quoted(column)


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _literal(path: str) -> str:
    """A path in which DuckDB sees no pattern."""
    return re.sub(r"([*?\[])", r"[\1]", path)
