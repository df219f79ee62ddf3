"""Raw bytes in, typed Arrow batches out.

Place: the first two steps of an event's way; what leaves this room goes to `edge_agg.window`.

| file | job |
|---|---|
| `source.py`, `kinds.py` | what every source promises and where it hands over; which source a config's table means |
| `file.py` | whole files, by glob pattern; the door where reader errors lose their text |
| `tail.py`, `rotation.py`, `generation.py` | files that grow: following, rotation, identity and position |
| `http.py`, `http_wire.py`, `http_events.py`, `inflate.py` | pushed batches |
| `mqtt.py`, `mqtt_session.py`, `mqtt_link.py`, `mqtt_payload.py`, `redelivery.py` | a broker's messages |
| `otlp.py`, `otlp_service.py`, `otlp_columns.py`, `otlp_fields.py` | OpenTelemetry's logs and spans |
| `stdin.py` | lines on standard input |
| `push.py`, `arrow_body.py` | bytes that were handed over, as one frame; Arrow's with a guard |
| `handover.py`, `trouble.py` | threads and waits that sources share; what they pass over and go on |
| `parquet.py`, `ndjson.py`, `csv_text.py`, `ipc.py` | one format each: bytes in, raw Arrow batches out |
| `groups.py` | what a Parquet file says of its row groups, and what need not be read because of it |
| `lines.py` | cuts text into lines and makes batches of them, for the formats of one event a line |
| `stream.py` | opens a file as a stream of bytes, decompressing |
| `decode.py` | a raw batch in, a typed batch and a count of rejects out (pure) |
| `instant.py` | timestamps, written as ISO 8601 or held in any Arrow unit, in microseconds UTC (pure) |

Invariants: only the columns asked for leave; a row is kept whole or rejected whole; no error holds a value.
"""
