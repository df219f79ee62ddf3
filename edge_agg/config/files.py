"""Reads a config and its plans from disk.

Invariants: relative paths are taken from the folder of the config file; an error names the file and the path of the
first field that is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from edge_agg.config.rules import rules
from edge_agg.config.tables import Config
from edge_agg.config.values import UNIX
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.errors import ConfigInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.config.tables import AgentTable, CollectorTable, SourceTable

    S = TypeVar("S", bound=msgspec.Struct)
    T = TypeVar("T", bound=AgentTable | CollectorTable | SourceTable)

_PATHS = ("state", "policy", "path", "token_file", "password_file", "ca_file", "cert_file", "key_file")


def load(path: Path) -> tuple[Config, list[Plan]]:
    """Read a config and the plans it names.

    Returns:
        The config with absolute paths, and its plans in the order of its `[[plan]]` tables.

    Raises:
        ConfigInvalid: naming the file and the path of the first field that is wrong.
    """
    config = read_toml(path, Config)
    home = path.resolve().parent
    config = msgspec.structs.replace(
        config,
        agent=_placed(config.agent, home),
        collector=_placed(config.collector, home),
        source=[_placed(source, home) for source in config.source],
        plan=[msgspec.structs.replace(plan, path=str(home / plan.path)) for plan in config.plan],
    )
    plans = [load_plan(home / entry.path) for entry in config.plan]
    for field, holds, problem in rules(config, plans):
        if not holds:
            raise ConfigInvalid(f"{path}: {field}: {problem}")
    return config, plans


def read_toml(path: Path, kind: type[S]) -> S:
    """Read a file into strict tables.

    Raises:
        ConfigInvalid: naming the file and the path of the first field that is wrong.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read ({error.strerror})") from None
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at `")
        raise ConfigInvalid(f"{path}: {field.rstrip('`') or '$'}: {problem}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigInvalid(f"{path}: not TOML: {error}") from None


def _placed(table: T, home: Path) -> T:
    """A table with its paths taken from a folder."""
    paths = {name: value for name in _PATHS if isinstance(value := getattr(table, name, None), str)}
    places = {name: str(home / value) for name, value in paths.items()}
    listen = getattr(table, "listen", "")
    if listen.startswith(UNIX):
        places["listen"] = UNIX + str(home / listen.removeprefix(UNIX))
    return msgspec.structs.replace(table, **places)


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ConfigInvalid: naming the file and the path of the first field that is wrong.
    """
    try:
        return parse_plan(_text(path), read=lambda name: _text(path.parent / name))
    except PlanInvalid as error:
        raise ConfigInvalid(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{path}: not UTF-8") from None
    except ValueError:
        raise ConfigInvalid(f"{path}: cannot be read (no name of a file)") from None
