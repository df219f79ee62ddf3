"""The raw spool: events that were handed over once, durable until every window of theirs is closed.

| file | is |
|---|---|
| `record.py` | one record as bytes: framing, checksums, and how whole records are found in a damaged file |
| `spool.py` | the folder of segments: append with one sync, replay, forget |
"""

from edge_agg.spool.record import Record
from edge_agg.spool.spool import Spool

__all__ = ["Record", "Spool"]
