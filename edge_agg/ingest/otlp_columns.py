"""A request of OpenTelemetry's protocol in, one frame out.

Place: steps 1 and 2, under `otlp.py`.
Invariants: only the columns asked for are ever made into values; a request is one frame, so that it is taken as a whole
or not at all; a value of the wrong type costs its own record; no request raises anything but `BodyRefused`.

`otlp_fields.py` says which column is what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from edge_agg.ingest import push
from edge_agg.ingest.otlp_fields import ACCEPTED, FIELDS, WRONG, Wrong, column_of, value_of
from edge_agg.ingest.source import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.otlp_fields import Signal, Values

MAX_NAMES = 4096
"""Names of attributes that are remembered; the rest are looked at each time."""
_PLAIN: Mapping[ColumnType, tuple[type, pa.DataType]] = {
    "timestamp": (str, pa.string()),
    "string": (str, pa.string()),
    "float": (float, pa.float64()),
    "integer": (int, pa.int64()),
    "boolean": (bool, pa.bool_()),
}
_NS = pa.timestamp("ns", tz="UTC")


class Columns:
    """Reads the same columns out of any number of requests; not for two threads at once."""

    def __init__(self, signal: Signal, columns: Mapping[str, ColumnType]) -> None:
        self._columns = columns
        fields = FIELDS[signal]
        self._fields = {name: fields[name][1] for name in columns if name in fields}
        self._times = {name for name in self._fields if columns[name] == "timestamp" and name != "body"}
        self._attributes = {name: ACCEPTED[wanted] for name, wanted in columns.items() if name not in fields}
        self._known: dict[str, str | None] = {}

    def frame_of(self, request: Any) -> Frame:
        """Make a frame of a request to export logs or traces.

        Raises:
            BodyRefused: the same request will never be taken.
        """
        return push.guarded(lambda: self._frame(request))

    def _frame(self, request: Any) -> Frame:
        raw, wrong = self._raw(request)
        frame = push.frame_of_batches([raw], self._columns)
        return Frame(part=None, batch=frame.batch, rejected=frame.rejected + wrong, last=True)

    def _raw(self, request: Any) -> tuple[pa.RecordBatch, int]:
        values: dict[str, Values] = {name: [] for name in self._columns}
        count = 0
        for records, inherited in _scopes(request):
            count += len(records)
            for name, read in self._fields.items():
                values[name] += read(records, self._columns[name])
            if self._attributes:
                self._read_attributes(records, inherited, values)
        wrong: set[int] = set()
        arrays = [self._array(name, slots, wrong) for name, slots in values.items()]
        batch = pa.record_batch([*arrays, pa.nulls(count)], names=[*values, ""])
        if wrong:
            kept = np.ones(count, np.bool_)
            kept[list(wrong)] = False
            batch = batch.filter(pa.array(kept))
        return batch, len(wrong)

    def _read_attributes(
        self, records: Sequence[Any], inherited: Iterable[Iterable[Any]], values: Mapping[str, Values]
    ) -> None:
        """Fill in what the resource and the scope say, and over it what each record says itself."""
        said = dict.fromkeys(self._attributes)
        for attributes in inherited:
            for name, held in self._asked(attributes):
                said[name] = value_of(held, self._attributes[name])
        slots = {name: [default] * len(records) for name, default in said.items()}
        for i, record in enumerate(records):
            for name, held in self._asked(record.attributes):
                slots[name][i] = value_of(held, self._attributes[name])
        for name, filled in slots.items():
            values[name].extend(filled)

    def _asked(self, attributes: Iterable[Any]) -> Iterator[tuple[str, Any]]:
        known = self._known
        for attribute in attributes:
            key = attribute.key
            try:
                name = known[key]
            except KeyError:
                name = self._look_up(key)
            if name is not None:
                yield name, attribute.value

    def _look_up(self, key: str) -> str | None:
        name = column_of(key)
        found = name if name in self._attributes else None
        if len(self._known) < MAX_NAMES:
            self._known[key] = found
        return found

    def _array(self, name: str, slots: Values, wrong: set[int]) -> pa.Array:
        """Build a column of its own type, or of text where a record has another; `decode` reads both."""
        kinds = set(map(type, slots))
        if Wrong in kinds:
            wrong.update(i for i, value in enumerate(slots) if value is WRONG)
            slots = [None if value is WRONG else value for value in slots]
        if name in self._times:
            return pa.array(_signed(slots, wrong), pa.int64()).view(_NS)
        kind, arrow = _PLAIN[self._columns[name]]
        if kinds <= {kind, type(None), Wrong}:
            return pa.array(slots, arrow)
        if kind is float and kinds <= {float, int, type(None), Wrong}:
            return pa.array([None if value is None else float(value) for value in slots], arrow)
        return pa.array([v if v is None or isinstance(v, str) else repr(v) for v in slots], pa.string())


def _signed(slots: Values, wrong: set[int]) -> Values:
    """Times of more than 63 bits (after 2262) are none."""
    late = [i for i, value in enumerate(slots) if value is not None and value >> 63]
    wrong.update(late)
    for i in late:
        slots[i] = None
    return slots


def _scopes(request: Any) -> Iterator[tuple[Sequence[Any], tuple[Any, Any]]]:
    """The records of each scope, and the attributes that hold for all of them, the nearer last."""
    if hasattr(request, "resource_logs"):
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                yield scope.log_records, (resource.resource.attributes, scope.scope.attributes)
    else:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                yield scope.spans, (resource.resource.attributes, scope.scope.attributes)
