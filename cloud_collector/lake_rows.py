"""How a release lies in the lake's table, and how it is read back.

Place: below the lake; the sealer's digest and the verifier's are both made here, from a release's values and from the
rows that hold them.
Invariant: the rows of a release stand together in one file, in the plan's order of keys and cells.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.contract.cells import keys, n_cells
from edge_agg.contract.codec import to_us
from edge_agg.contract.vectors import payload_columns, plan_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from cloud_collector.payload import Values
    from edge_agg.contract.plan import Plan
    from edge_agg.contract.release import Release

    Row = tuple[int, Release, Values]

MOMENT = pa.timestamp("us", tz="UTC")
DIGEST_BYTES = 16


def table_schema(plan: Plan) -> pa.Schema:
    """The table's columns: who and when, one string a partition, then each vector's columns and its noise's scale."""
    fields = [
        ("tenant", pa.string()),
        ("node", pa.string()),
        ("window_start", MOMENT),
        ("window_end", MOMENT),
        ("status", pa.string()),
        ("landing_id", pa.int64()),
        *((partition.label, pa.string()) for partition in plan.partition),
    ]
    for vector in plan_vectors(plan):
        fields += [*((column, pa.int64()) for column in vector.columns), (f"{vector.name}__scale", pa.float64())]
    return pa.schema([pa.field(name, kind) for name, kind in fields])


def table_of(plan: Plan, releases: Sequence[Row]) -> pa.Table:
    """The rows of releases, in their order."""
    schema = table_schema(plan)
    columns = list(zip(*keys(plan), strict=True))
    texts = {
        partition.label: pa.array(column, pa.string()) for partition, column in zip(plan.public, columns, strict=False)
    }
    return pa.concat_tables([_rows(plan, schema, texts, row) for row in releases])


def _rows(plan: Plan, schema: pa.Schema, texts: Mapping[str, pa.Array], row: Row) -> pa.Table:
    landing_id, release, values = row
    valued = release.rows > 0
    same: dict[str, object] = {
        "tenant": release.tenant,
        "node": release.agent,
        "window_start": release.window_start,
        "window_end": release.window_end,
        "status": release.status.value,
        "landing_id": landing_id,
        **{f"{spec.name}__scale": spec.scale for spec in release.vectors},
    }
    varying = _key_columns(plan, texts, values.keys) if valued else {}
    varying |= {name: pa.array(column) for name, column in values.columns.items()} if valued else {}
    columns = [
        varying[field.name]
        if field.name in varying
        else pa.repeat(pa.scalar(same.get(field.name), field.type), max(1, release.rows))
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _key_columns(plan: Plan, texts: Mapping[str, pa.Array], found: Sequence[str] | None) -> dict[str, pa.Array]:
    """The keys of each row: the public cells, over again for every discovered key."""
    if plan.discovered is None or found is None:
        return dict(texts)
    cells = n_cells(plan)
    columns = {name: pa.concat_arrays([column] * len(found)) for name, column in texts.items()}
    each = pa.array([text for text in found for _ in range(cells)], pa.string())
    return {**columns, plan.discovered.label: each}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A release as the lake holds it."""

    landing_id: int
    tenant: str
    node: str
    window_start_us: int
    status: str
    scales: tuple[float, ...]
    """By vector, in the plan's order; none at all without values."""
    columns: Mapping[str, NDArray[np.int64]]
    """As a payload holds them; none at all without values."""
    found: Sequence[str] | None
    """The discovered key of each row, where there are any."""
    in_order: bool
    """Whether the public keys of its rows are the plan's, in the plan's order."""

    @property
    def digest(self) -> bytes:
        """As :func:`digest` of the release it was."""
        about = (self.tenant, self.node, self.window_start_us, self.status)
        return _digest(about, self.scales, self.columns, self.found)


def digest(plan: Plan, row: Row) -> bytes:
    """What is kept of a release's values once its bytes are gone: enough to tell that the lake still holds them."""
    _, release, values = row
    about = (release.tenant, release.agent, to_us(release.window_start), release.status.value)
    valued = release.rows > 0
    found = None
    if valued and values.keys is not None:
        found = [text for text in values.keys for _ in range(n_cells(plan))]
    scales = tuple(spec.scale for spec in release.vectors)
    return _digest(about, scales, values.columns if valued else {}, found)


def _digest(
    about: tuple[object, ...],
    scales: Sequence[float],
    columns: Mapping[str, NDArray[np.int64]],
    found: Sequence[str] | None,
) -> bytes:
    told = hashlib.sha256(repr((about, tuple(scales), tuple(columns), None if found is None else list(found))).encode())
    for column in columns.values():
        told.update(np.ascontiguousarray(column, dtype="<i8").data)
    return told.digest()[:DIGEST_BYTES]


def releases_in(plan: Plan, table: pa.Table) -> Iterator[Stored]:
    """Read rows back, release by release, in the order in which they stand."""
    if table.num_rows == 0:
        return
    table = table.combine_chunks()
    ids = table.column("landing_id").to_numpy()
    windows = table.column("window_start").cast(pa.int64()).to_numpy()
    who = [table.column(name).combine_chunks().dictionary_encode().indices.to_numpy() for name in ("tenant", "node")]
    changed = np.flatnonzero(
        (ids[1:] != ids[:-1])
        | (windows[1:] != windows[:-1])
        | (who[0][1:] != who[0][:-1])
        | (who[1][1:] != who[1][:-1])
    )
    edges = [0, *(changed + 1).tolist(), table.num_rows]
    names, vectors = payload_columns(plan), plan_vectors(plan)
    public = list(zip(*keys(plan), strict=True))
    valid = table.column(names[0]).is_valid().to_numpy()
    for begin, end in _runs(plan, edges, valid):
        rows = table.slice(begin, end - begin)
        first = {name: rows.column(name)[0].as_py() for name in ("tenant", "node", "status")}
        scales = [rows.column(f"{vector.name}__scale")[0].as_py() for vector in vectors]
        valued = bool(valid[begin])
        tiles = (end - begin) // n_cells(plan)
        texts = [pa.array(list(column) * tiles, pa.string()) for column in public] if valued else []
        labels = [partition.label for partition in plan.public]
        yield Stored(
            landing_id=int(ids[begin]),
            tenant=first["tenant"],
            node=first["node"],
            window_start_us=int(windows[begin]),
            status=first["status"],
            scales=tuple(scale for scale in scales if scale is not None),
            columns={name: rows.column(name).to_numpy() for name in names} if valued else {},
            found=rows.column(plan.discovered.label).to_pylist() if valued and plan.discovered is not None else None,
            in_order=all(
                len(text) == end - begin and pc.all(pc.equal(rows.column(label), text), min_count=0).as_py()
                for label, text in zip(labels, texts, strict=False)
            ),
        )


def _runs(plan: Plan, edges: Sequence[int], valid: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where each release begins and ends; one that is there twice, side by side, is two."""
    for begin, end in itertools.pairwise(edges):
        if plan.discovered is not None:
            yield begin, end
            continue
        size = n_cells(plan) if valid[begin] else 1
        yield from ((at, min(at + size, end)) for at in range(begin, end, size))
