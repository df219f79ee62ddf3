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
    """The rows of releases, in their order; texts that repeat are dictionaries, which Parquet writes as they are."""
    lengths = [max(1, release.rows) for _, release, _ in releases]
    columns = _who_and_when(releases, lengths) | _public(plan, releases) | _found(plan, releases)
    for name in payload_columns(plan):
        parts = [values.columns[name] if release.rows else None for _, release, values in releases]
        columns[name] = pa.concat_arrays(
            [pa.nulls(1, pa.int64()) if part is None else pa.array(part) for part in parts]
        )
    for vector in plan_vectors(plan):
        scales = [{spec.name: spec.scale for spec in release.vectors}.get(vector.name) for _, release, _ in releases]
        columns[f"{vector.name}__scale"] = _repeated(pa.array(scales, pa.float64()), lengths)
    names = table_schema(plan).names
    return pa.Table.from_arrays([columns[name] for name in names], names=names)


def _who_and_when(releases: Sequence[Row], lengths: Sequence[int]) -> dict[str, pa.Array]:
    """What all rows of a release share."""
    headers = [release for _, release, _ in releases]
    texts = {
        "tenant": [header.tenant for header in headers],
        "node": [header.agent for header in headers],
        "status": [header.status.value for header in headers],
    }
    moments = {
        "window_start": pa.array([to_us(header.window_start) for header in headers], pa.int64()),
        "window_end": pa.array([to_us(header.window_end) for header in headers], pa.int64()),
    }
    ids = pa.array([landing_id for landing_id, _, _ in releases], pa.int64())
    columns = {name: _repeated(values, lengths).view(MOMENT) for name, values in moments.items()}
    columns["landing_id"] = _repeated(ids, lengths)
    for name, values in texts.items():
        encoded = pa.array(values, pa.string()).dictionary_encode()
        columns[name] = pa.DictionaryArray.from_arrays(_repeated(encoded.indices, lengths), encoded.dictionary)
    return columns


def _repeated(values: pa.Array, lengths: Sequence[int]) -> pa.Array:
    """Each of some numbers as often as its release has rows."""
    if values.null_count:
        return values.take(pa.array(np.repeat(np.arange(len(values), dtype=np.int32), lengths)))
    return pa.array(np.repeat(values.to_numpy(), lengths))


def _public(plan: Plan, releases: Sequence[Row]) -> dict[str, pa.Array]:
    """The public keys of each row: the plan's cells, over again for every discovered key; none without values."""
    size = n_cells(plan)
    cells = np.arange(size, dtype=np.int32)
    tiles = {rows: np.tile(cells, rows // size) for rows in {release.rows for _, release, _ in releases}}
    tiles[0] = np.array([-1], np.int32)
    at = np.concatenate([tiles[release.rows] for _, release, _ in releases])
    columns = zip(*keys(plan), strict=True)
    return {
        partition.label: _picked(pa.array(column, pa.string()), at)
        for partition, column in zip(plan.public, columns, strict=False)
    }


def _found(plan: Plan, releases: Sequence[Row]) -> dict[str, pa.Array]:
    """The discovered key of each row, where there are any."""
    if plan.discovered is None:
        return {}
    size, texts = n_cells(plan), list[str | None]()
    for _, release, values in releases:
        texts += [text for text in values.keys or () for _ in range(size)] if release.rows else [None]
    return {plan.discovered.label: pa.array(texts, pa.string())}


def _picked(values: pa.Array, at: NDArray[np.int32]) -> pa.Array:
    """Values by position, null at -1; each text is there once."""
    encoded = values.dictionary_encode()
    indices, none = encoded.indices.to_numpy()[at], at < 0  # a position of -1 picks any, and is masked
    return pa.DictionaryArray.from_arrays(pa.array(indices, mask=none if none.any() else None), encoded.dictionary)


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
