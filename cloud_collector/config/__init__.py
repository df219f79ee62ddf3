"""The collector's settings: where it listens, where it keeps things, how much it takes, which plans it starts with.

Read once, before anything is opened. Strict: an unknown or wrong field is named by its path.

| file | job |
|---|---|
| `values.py` | what the rest of the collector is told |
| `tables.py` | what a person may write |
| `files.py` | reading it from disk, and what must hold beyond types |
"""

from cloud_collector.config.files import load
from cloud_collector.config.values import CONNECTIONS, MAX_WORKERS, Config, Database, PlanEntry, Tls

__all__ = ["CONNECTIONS", "MAX_WORKERS", "Config", "Database", "PlanEntry", "Tls", "load"]
