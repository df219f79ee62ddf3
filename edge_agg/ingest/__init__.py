"""Raw bytes in, typed Arrow batches out.

Place: the first two steps of an event's way; what leaves this room goes to `edge_agg.window`.

| file | job |
|---|---|
| `source.py` | what every source promises: parts, frames, skip |
| `file.py` | files on this machine, by glob pattern; the door where reader errors lose their text |
| `parquet.py`, `ndjson.py`, `csv_text.py`, `ipc.py` | one format each: a path in, raw Arrow batches out |
| `groups.py` | what a Parquet file says of its row groups, and what need not be read because of it |
| `lines.py` | cuts text into lines and makes batches of them, for the formats of one event a line |
| `stream.py` | opens a file as a stream of bytes, decompressing |
| `decode.py` | a raw batch in, a typed batch and a count of rejects out (pure) |
| `instant.py` | timestamps, written as ISO 8601 or held in any Arrow unit, in microseconds UTC (pure) |

Invariants: only the columns asked for leave; a row is kept whole or rejected whole; no error holds a value.
"""
