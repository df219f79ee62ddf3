"""The agent's config: tuning and places, never meaning. Strict: an unknown or wrong field is named by its path.

| file | job |
|---|---|
| `tables.py` | what a person may write |
| `values.py` | what it comes to: durations, sizes, spans |
| `rules.py` | what must hold beyond types |
| `files.py` | reading it and its plans from disk |
"""

from edge_agg.config.files import load, load_plan, read_toml
from edge_agg.config.tables import (
    AccountTable,
    AgentTable,
    CollectorTable,
    Config,
    FileTable,
    HistoryTable,
    PlanTable,
    SourceTable,
)
from edge_agg.config.values import bytes_of, discovery_of, horizon_of, is_local, plans_of, span_of

__all__ = [
    "AccountTable",
    "AgentTable",
    "CollectorTable",
    "Config",
    "FileTable",
    "HistoryTable",
    "PlanTable",
    "SourceTable",
    "bytes_of",
    "discovery_of",
    "horizon_of",
    "is_local",
    "load",
    "load_plan",
    "plans_of",
    "read_toml",
    "span_of",
]
