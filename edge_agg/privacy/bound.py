"""Bounding: what is kept of each privacy unit in one window.

Place: step 4 of an event's way, between the window and the aggregates.
Invariants: what is kept of a unit depends on that unit's rows and the window's salt alone, never on other units, on
the order of rows, or on how they were cut into batches; truncating at every merge equals truncating at the end, so
the state is bounded by what is kept. Units are told apart by their ids, never by a hash alone.

Method: a unit's cells get places by a permutation keyed by its id and the salt, so that its first `max_partitions`
cells in that order are a uniform sample of those it touched; a row gets a priority by a keyed hash of its content, so
that the first `max_rows_per_partition` rows of a cell are a sample of its rows (those equal in time and readings go
together). Rows are sorted by unit, place, priority, and truncated by rank.

| file | job |
|---|---|
| `bounded.py` | what goes in, what comes out |
| `permutation.py` | keys of ids, places of cells |
| `codes.py`, `table.py`, `ids.py`, `units.py` | ids as small numbers, exactly |
| `keys.py` | discovered keys as small numbers, and their places |
| `layout.py` | priority and readings as words |
| `packed.py` | the state, where a row fits one word |
| `wide.py` | the state, where it does not |
| `reach.py` | rows that could not be kept any more, dropped when they come |
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agg.contract.plan import MAX_UNITS
from edge_agg.privacy.bounded import Bounded, Rows
from edge_agg.privacy.keys import Keys
from edge_agg.privacy.layout import Layout
from edge_agg.privacy.packed import Packed, starts
from edge_agg.privacy.permutation import Keying, Permutation
from edge_agg.privacy.units import Units
from edge_agg.privacy.wide import Columns, Wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    import pyarrow as pa

    Bools = npt.NDArray[np.bool_]
    Int64s = npt.NDArray[np.int64]
    UInt64s = npt.NDArray[np.uint64]

__all__ = ["Bounded", "Bounding", "Rows"]

MERGE_ROWS = 1 << 20
"""Rows that wait, at least, before they are merged into the state."""
BATCH_ROWS = 1 << 16
"""Rows worked on at once."""
_UNIT_BITS = (MAX_UNITS - 1).bit_length()
_KEY_BITS = 18
"""Discovered integers below 2**18 fit a word, as public cells do."""


class Bounding:
    """The bounded state of one window: add rows in any order and any cut, then take what is kept."""

    def __init__(
        self,
        *,
        max_partitions: int,
        max_rows: int,
        n_cells: int,
        readings: Mapping[str, int],
        totals: Sequence[str],
        discover: bool,
        salt: bytes,
    ) -> None:
        """Begin an empty window.

        Args:
            max_partitions: L0: cells (with discovered keys: pairs of key and cell) kept of a unit.
            max_rows: L-infinity: rows kept of a unit in one of them.
            n_cells: public cells of the plan.
            readings: by name: the number of codes, which stands for "no value".
            totals: names of the totals.
            discover: whether rows bring keys.
            salt: secret, this window's own; 16 to 64 bytes.

        Raises:
            ValueError: the salt is too short to be one.
        """
        keying = Keying(salt)
        self._max_partitions, self._max_rows = max_partitions, max_rows
        self._readings, self._totals = tuple(readings), tuple(totals)
        alone = discover and n_cells == 1
        self._permutation = Permutation(1 << _KEY_BITS if alone else n_cells)
        self._layout = Layout(readings, self._permutation.bits)
        self._keys = Keys(keying, self._permutation if alone else None) if discover else None
        self._alone: list[Columns] = []
        self._state: Packed | Wide
        unit_bits = _UNIT_BITS
        if self._layout.packs and not totals and (alone or not discover):
            unit_bits = min(unit_bits, self._layout.unit_bits)
            self._state = Packed(
                max_partitions=max_partitions,
                max_rows=max_rows,
                place_bits=self._permutation.bits,
                tail_bits=self._layout.bits,
                merge_rows=MERGE_ROWS,
            )
        else:
            self._state = self._wide()
        self._units = Units(keying, min(1 << unit_bits, MAX_UNITS))

    @property
    def rows(self) -> int:
        """Rows now held, waiting ones included."""
        return self._state.size + sum(len(part.cell) for part in self._alone)

    def has_room(self, more: int) -> bool:
        """Whether so many rows more surely fit the proof that no sum overflows, whoever's they are.

        Units are bounded from above: by their codes, or the rows held. So it may say no too early, and never too late.
        """
        known = self.rows
        if not self._alone and (self._units.is_dense or self._units.bound < known):
            known = self._units.bound
        return known + more <= MAX_UNITS

    def add(self, rows: Rows) -> None:
        """Take rows in; work is amortised to a few sorts each.

        Raises:
            OverflowError: more privacy units in one window than the proof that no sum overflows allows. Ask `has_room`
                first: what was taken in is of no use then.
        """
        for start in range(0, len(rows.cell), BATCH_ROWS):
            part = rows if len(rows.cell) <= BATCH_ROWS else rows.slice(start, BATCH_ROWS)
            if self._keys is not None and self._keys.outgrow(part.key):
                self._recode_keys(self._keys)
            if part.unit is None:
                self._add_alone(part)
            else:
                self._add(part, part.unit)

    def units(self) -> pa.Array:
        """The ids of all units with kept rows, int64 or large_string; none where every row is its own unit.

        They stay on the device; their order is that of their keyed hashes.
        """
        distinct = [part.unit[starts(part.unit)] for part in self._parts()] if not self._alone else []
        codes = np.concatenate([np.empty(0, np.uint64), *distinct])
        return self._units.ids(codes[np.argsort(self._units.keys(codes))])

    def kept(self, *, without: pa.Array | None = None) -> Bounded:
        """What is kept of all rows so far.

        Args:
            without: ids of units to leave out as a whole.
        """
        parts = list(self.blocks(without=without))
        return Bounded(
            cell=np.concatenate([part.cell for part in parts]),
            key=np.concatenate([part.key for part in parts if part.key is not None])
            if self._keys is not None
            else None,
            keys=parts[0].keys,
            unit=np.concatenate([part.unit for part in parts]),
            first=np.concatenate([part.first for part in parts]),
            readings={name: np.concatenate([part.readings[name] for part in parts]) for name in self._readings},
            totals={name: np.concatenate([part.totals[name] for part in parts]) for name in self._totals},
        )

    def blocks(self, *, without: pa.Array | None = None) -> Iterator[Bounded]:
        """What `kept` returns, cut between units, one block at least: what adds up over rows adds up over blocks."""
        left_out = None if without is None or not len(without) or self._alone else self._units.find(without)

        def parts() -> Iterator[Columns]:
            return self._parts() if left_out is None else _left(self._parts(), left_out)

        if self._keys is None:
            yield from (self._bounded(part) for part in parts())
            return
        seen = np.zeros(self._keys.bound, np.bool_)
        # Twice: to hold them all costs more memory than to make them again costs time.
        for key in self._kept_keys() if left_out is None else (part.key for part in parts()):
            seen[key] = True
        keys, codes = self._keys.sorted(np.flatnonzero(seen))
        place = np.empty(self._keys.bound, np.int64)
        place[codes] = np.arange(len(codes))
        yield from (self._bounded(part, place, keys) for part in parts())

    def _add(self, rows: Rows, ids: pa.Array) -> None:
        if self._units.outgrow(ids):
            self._state.recode(self._units.recoded)
        unit, unit_key = self._units.encode(ids)
        if self._units.bound > MAX_UNITS:
            raise OverflowError("more privacy units in one window than the overflow proof allows")
        if isinstance(self._state, Packed) and self._units.bound > 1 << self._layout.unit_bits:
            self._widen()
        key = None if self._keys is None else self._keys.encode(rows.key)
        place = self._place(rows, key, unit_key)
        if (wanted := self._state.reach.within(unit, place)) is not None:
            if not len(wanted):
                return
            unit, place = unit.take(wanted), place.take(wanted)
            if isinstance(self._state, Wide):
                key = None if key is None else key.take(wanted)
            if self._layout.words or isinstance(self._state, Wide):  # else a row is its unit and its place
                unit_key, rows = unit_key.take(wanted), replace(rows, unit=None, key=None).take(wanted)
        tail = self._layout.encode(unit_key, rows.time_us, rows.readings)
        if isinstance(self._state, Packed):
            self._state.add(unit, place, tail[0] if tail else None)
            return
        cell, wide_place = rows.cell.astype(np.uint32), place.astype(np.uint64)
        self._state.add(Columns(unit=unit, place=wide_place, cell=cell, key=key, tail=tail, totals=dict(rows.totals)))

    def _place(self, rows: Rows, key: npt.NDArray[np.int32] | None, unit_key: UInt64s) -> npt.NDArray[np.uint32]:
        """Where each row's group stands among its unit's."""
        if self._keys is None or key is None:
            return self._permutation.place(rows.cell, unit_key)
        if isinstance(self._state, Packed):
            return self._permutation.place(key, unit_key)
        return self._keys.place(rows.key, rows.cell.astype(np.uint32), unit_key).astype(np.uint32)

    def _add_alone(self, rows: Rows) -> None:
        nothing = np.empty(0, np.uint64)
        if self.rows + len(rows.cell) > MAX_UNITS:
            raise OverflowError("more rows in one window than the overflow proof allows")
        self._alone.append(
            Columns(
                unit=nothing,
                place=nothing,
                cell=rows.cell.astype(np.uint32),
                key=None if self._keys is None else self._keys.encode(rows.key),
                tail=self._layout.encode(np.zeros(len(rows.cell), np.uint64), rows.time_us, rows.readings),
                totals=dict(rows.totals),
            )
        )

    def _wide(self) -> Wide:
        return Wide(
            max_partitions=self._max_partitions,
            max_rows=self._max_rows,
            ranks=None if self._keys is None else self._keys.ranks,
            merge_rows=MERGE_ROWS,
        )

    def _widen(self) -> None:
        """Go on in columns: one word has no more room for units. The order of rows is the same."""
        wide = self._wide()
        for part in self._parts():
            wide.add(part)
        self._state = wide

    def _recode_keys(self, keys: Keys) -> None:
        """Go on in columns, with other codes of keys: what a word holds in their place is an integer."""
        if isinstance(self._state, Packed):
            self._widen()
        if isinstance(self._state, Wide):
            self._state.recode_keys(keys.recoded)
        self._alone = [part if part.key is None else replace(part, key=keys.recoded(part.key)) for part in self._alone]

    def _parts(self) -> Iterator[Columns]:
        """What is kept, cut between units; one part at least."""
        begin = 0
        for part in self._alone:
            unit = np.arange(begin, begin + len(part.cell), dtype=np.uint64)
            begin += len(unit)
            yield replace(part, unit=unit, place=unit, first=np.ones(len(unit), np.bool_))
        if self._alone:
            return
        if isinstance(self._state, Wide):
            yield self._state.columns() or self._nothing()
            return
        for unit, place, tail, first in self._state.blocks():
            cell = self._permutation.cell(place, self._units.keys(unit))
            yield Columns(
                unit=unit,
                place=place.astype(np.uint64),
                cell=cell if self._keys is None else np.zeros_like(cell),
                key=None if self._keys is None else cell.view(np.int32),
                tail=[tail] if self._layout.words else [],
                totals={},
                first=first,
            )
        if not self._state.size:
            yield self._nothing()

    def _kept_keys(self) -> Iterator[npt.NDArray[np.integer] | None]:
        """The keys of all that is kept, each at least once."""
        if isinstance(self._state, Packed) and not self._alone:
            for unit, place, _, first in self._state.blocks():
                yield self._permutation.cell(place.compress(first), self._units.keys(unit.compress(first)))
        else:
            yield from (part.key for part in self._parts())

    def _nothing(self) -> Columns:
        nothing = np.empty(0, np.uint64)
        return Columns(
            unit=nothing,
            place=nothing,
            cell=nothing.astype(np.uint32),
            key=None if self._keys is None else nothing.astype(np.int32),
            tail=[nothing] * self._layout.words,
            totals=dict.fromkeys(self._totals, nothing.view(np.int64)),
            first=nothing.astype(np.bool_),
        )

    def _bounded(self, part: Columns, place: Int64s | None = None, keys: Sequence[str] = ()) -> Bounded:
        assert part.first is not None, "only what is sorted is kept"
        return Bounded(
            cell=part.cell.astype(np.int64),
            key=None if part.key is None or place is None else place.take(part.key),
            keys=keys,
            unit=part.unit,
            first=part.first,
            readings=self._layout.decode(part.tail),
            totals=part.totals,
        )


def _left(parts: Iterator[Columns], without: UInt64s) -> Iterator[Columns]:
    for part in parts:
        keep = np.flatnonzero(~np.isin(part.unit, without))
        yield part if len(keep) == len(part.unit) else part.take(keep)
