"""Writes docs/configuration.md out of the tables that read the two config files; `make config-docs` calls it.

What a key means is the string below it in the table's source. A test fails when page and tables differ, and when a key
has no meaning.
"""

from __future__ import annotations

import ast
import inspect
import sys
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import msgspec

from cloud_collector.config.tables import File
from edge_agg.config.tables import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).with_name("configuration.md")
_HEAD = """# Every key of the config files

*Written by `make config-docs` out of the tables that read the files; change it there.* Both files are TOML. A key that
no table names is refused with its path. A time is a whole number and one of `us`, `ms`, `s`, `m`, `h`, `d`, a size a
whole number and `B`, `KiB`, `MiB`, `GiB` or `TiB`. Relative paths are taken from the config file's folder. Samples:
[operate.md](operate.md), [sources.md](sources.md), [identity.md](identity.md), [collector.md](collector.md). Plans have
[a page of their own](plan.md).
"""
_TYPES = {str: "string", int: "integer", float: "number", date: "date", bool: "boolean"}


def page() -> str:
    """The whole page, in Markdown."""
    parts = [_HEAD, "## agent.toml\n", *_tables(Config), "## collector.toml\n", *_tables(File)]
    return "\n".join(parts)


def _tables(file: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(file):
        several = get_origin(field.type) is list
        inner = get_args(field.type)[0] if several else field.type
        kinds = [one for one in get_args(inner) or (inner,) if one is not NoneType]
        for kind in kinds:
            yield from _table(field, kind, several=several)


def _table(field: msgspec.structs.FieldInfo, kind: type[msgspec.Struct], *, several: bool) -> Iterator[str]:
    tag = kind.__struct_config__.tag
    name = f"[[{field.name}]]" if several else f"[{field.name}]"
    about = inspect.cleandoc(kind.__doc__ or "").removeprefix(f"`{name}`: ")
    yield f'### `{name}` with `kind = "{tag}"`\n' if tag else f"### `{name}`\n"
    required = " Required." if field.required else ""
    yield f"{about[0].upper()}{about[1:]}{required}\n"
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    rows += [_row(one, kind) for one in msgspec.structs.fields(kind)]
    yield "\n".join(rows) + "\n"


def _row(field: msgspec.structs.FieldInfo, kind: type[msgspec.Struct]) -> str:
    meaning = _meanings(kind).get(field.name, "").replace("|", "\\|")
    return f"| `{field.name}` | {_type(field.type)} | {_default(field)} | {meaning} |"


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f'`"{one}"`' for one in get_args(annotation))
    if get_origin(annotation) is list:
        inner = get_args(annotation)[0]
        return "list of strings" if inner is str else f"list of {_type(inner)}"
    if get_origin(annotation) in {Union, UnionType}:
        return " or ".join(_type(one) for one in get_args(annotation) if one is not NoneType)
    return _TYPES[annotation]


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "required"
    return "absent" if value is None else f"`{msgspec.json.encode(value).decode()}`"


def _meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each field, in the source of the type and of what it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not one.__module__.startswith(("edge_agg.", "cloud_collector.")):
            continue
        (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for line, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
                found[line.target.id] = inspect.cleandoc(ast.literal_eval(below.value)).replace("\n", " ")
    return found


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE.name}: {PAGE.write_text(page())} characters\n")
