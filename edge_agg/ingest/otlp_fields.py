"""What the columns of a plan are called in OpenTelemetry's log records and spans.

Place: step 1, under `otlp_columns.py`.
Invariants: pure; a name means the same for every record of a signal; times are nanoseconds since 1970 and 0 is no time,
as the protocol has it.

| column | log record | span |
|---|---|---|
| `time` | the time, or else when it was observed | the end |
| `observed_time`, `start_time`, `end_time` | the first | the others |
| `severity_text`, `severity_number`, `body`, `event_name` | yes | - |
| `name`, `kind`, `duration_ms`, `status_code`, `parent_span_id` | - | yes |
| `trace_id`, `span_id` | lower-case hexadecimal | likewise |

Every other name is that of an attribute: of the record, or else of its scope, or else of its resource. A plan's columns
have no dots, so whatever is no letter or digit in an attribute's name counts as `_`: `http.route` is `http_route`.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_agg.contract.plan import ColumnType

Signal = Literal["logs", "traces"]
Values = list[Any]
"""A slot for each record: a value, None, or `WRONG`."""

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUSES = ("unset", "ok", "error")
_UNFIT = re.compile(r"[^A-Za-z0-9_]")


class Wrong(Enum):
    """Stands where a value is of the wrong type: its row is rejected."""

    WRONG = 0


WRONG = Wrong.WRONG

ACCEPTED: Mapping[ColumnType, frozenset[str]] = {
    "timestamp": frozenset({"string_value"}),
    "string": frozenset({"string_value"}),
    "float": frozenset({"string_value", "double_value", "int_value"}),
    "integer": frozenset({"string_value", "double_value", "int_value"}),
    "boolean": frozenset({"string_value", "bool_value"}),
}
"""Which values a column of each type takes; text is then read as it is in any other source."""


def column_of(attribute: str) -> str:
    """The column that an attribute of this name fills."""
    return _UNFIT.sub("_", attribute)


def value_of(held: Any, accepted: frozenset[str]) -> Any:
    """What an attribute or a body holds: a plain value, None if it holds nothing, or `WRONG`."""
    which = held.WhichOneof("value")
    if which in accepted:
        return getattr(held, which)
    return None if which is None else WRONG


def _time(name: str) -> Callable[[Sequence[Any], ColumnType], Values]:
    return lambda records, _: [getattr(record, name) or None for record in records]


def _text(name: str) -> Callable[[Sequence[Any], ColumnType], Values]:
    return lambda records, _: [getattr(record, name) or None for record in records]


def _hex(name: str) -> Callable[[Sequence[Any], ColumnType], Values]:
    return lambda records, _: [getattr(record, name).hex() or None for record in records]


def _event_times(records: Sequence[Any], _: ColumnType) -> Values:
    return [record.time_unix_nano or record.observed_time_unix_nano or None for record in records]


def _bodies(records: Sequence[Any], wanted: ColumnType) -> Values:
    return [value_of(record.body, ACCEPTED[wanted]) for record in records]


def _durations(records: Sequence[Any], _: ColumnType) -> Values:
    pairs = [(record.start_time_unix_nano, record.end_time_unix_nano) for record in records]
    return [(end - start) / 1e6 if start and end else None for start, end in pairs]


def _choice(numbers: Values, wanted: ColumnType, names: Sequence[str]) -> Values:
    """Numbers of a closed list, as what they mean if that is asked for; a number beyond the list is no value of it."""
    if wanted != "string":
        return numbers
    return [names[number] if 0 <= number < len(names) else WRONG for number in numbers]


FIELDS: Mapping[Signal, Mapping[str, tuple[frozenset[ColumnType], Callable[[Sequence[Any], ColumnType], Values]]]] = {
    "logs": {
        "time": (frozenset({"timestamp"}), _event_times),
        "observed_time": (frozenset({"timestamp"}), _time("observed_time_unix_nano")),
        "severity_text": (frozenset({"string"}), _text("severity_text")),
        "severity_number": (frozenset({"integer", "float"}), _time("severity_number")),
        "body": (frozenset(ACCEPTED), _bodies),
        "event_name": (frozenset({"string"}), _text("event_name")),
        "trace_id": (frozenset({"string"}), _hex("trace_id")),
        "span_id": (frozenset({"string"}), _hex("span_id")),
    },
    "traces": {
        "time": (frozenset({"timestamp"}), _time("end_time_unix_nano")),
        "start_time": (frozenset({"timestamp"}), _time("start_time_unix_nano")),
        "end_time": (frozenset({"timestamp"}), _time("end_time_unix_nano")),
        "duration_ms": (frozenset({"float"}), _durations),
        "name": (frozenset({"string"}), _text("name")),
        "kind": (
            frozenset({"string", "integer"}),
            lambda spans, wanted: _choice([span.kind for span in spans], wanted, KINDS),
        ),
        "status_code": (
            frozenset({"string", "integer"}),
            lambda spans, wanted: _choice([span.status.code for span in spans], wanted, STATUSES),
        ),
        "trace_id": (frozenset({"string"}), _hex("trace_id")),
        "span_id": (frozenset({"string"}), _hex("span_id")),
        "parent_span_id": (frozenset({"string"}), _hex("parent_span_id")),
    },
}
"""For each field: the types it can be asked as, and how it is read out of the records of one scope."""
