"""The agent's one durable file: charges, sealed releases and source positions.

| file | is |
|---|---|
| `journal.py` | the three transactions, and what is asked of the file |
| `schema.py` | its tables, and the way from an older version to this one |
| `positions.py` | the table of parts that were read, kept small for years |
| `rows.py` | what is written to it and read from it |
| `file.py` | one SQLite file, one commit or nothing, an end at the first real error |
| `ballast.py` | room that is set aside for the last writes on a full disk |
| `rim.py` | the errors of SQLite and the disk, as what the agent can do about them |
"""

from edge_agg.journal.journal import Journal
from edge_agg.journal.rows import Counted, Parked, Position, Waiting
from edge_agg.journal.schema import SCHEMA_VERSION

__all__ = ["SCHEMA_VERSION", "Counted", "Journal", "Parked", "Position", "Waiting"]
