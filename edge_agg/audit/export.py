"""The books for an outside auditor: every plan, every charge, and how every release was made.

Place: for `edge-agg ledger export`; it reads the rows as the audit does, and judges nothing.
Invariants: what is written follows from plans, mechanisms and public time alone: no value of a payload, no local count,
no unit, no secret of the journal (it reads none of their tables); amounts are exact fractions; memory does not grow
with the journal's releases.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from google.protobuf.message import DecodeError

from edge_agg.audit.books import open_books
from edge_agg.config import load
from edge_agg.contract.codec import from_us
from edge_agg.contract.v1 import release_pb2 as pb
from edge_agg.errors import ConfigInvalid, JournalFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_agg.audit.books import Books, ChargeRow, ReleaseRow

FORMAT = "edge-agg ledger 1"
"""Raised when a field changes its meaning; more fields may come."""
COLUMNS = (
    *("record", "account", "plan", "plan_hash", "window_start", "window_end", "attempt", "through", "seq", "status"),
    *("veto", "rho", "delta", "name", "mechanism", "scale", "sensitivity", "threshold", "loss", "hash"),
)
"""Of the CSV: a row a charge, a release, or a mechanism of a release; fields that a record does not have are empty."""


def export(path: Path, *, kind: Literal["json", "csv"], output: Path | None) -> None:
    """Write an agent's books.

    Args:
        path: its config.
        kind: of the file.
        output: where to; standard output if None. A file takes its name only once it is whole.

    Raises:
        ConfigInvalid: the config is wrong, or the file cannot be written.
        JournalFailed: there is no journal yet, it cannot be read, or it is another agent's.
    """
    config, _ = load(path)
    with open_books(Path(config.agent.state)) as books:
        if books.agent != config.agent.name:
            raise JournalFailed("the journal in this folder belongs to another agent")
        with _written(output) as file:
            (_write_json if kind == "json" else _write_csv)(books, file)


def _write_json(books: Books, file: IO[str]) -> None:
    head = {"format": FORMAT, "agent": books.agent, "incarnation": books.incarnation}
    file.write(json.dumps(head)[:-1])
    plans = ({"plan_hash": row.hash.hex(), "name": row.name, "text": row.text} for row in books.plans)
    for name, records in (
        ("plans", plans),
        ("charges", map(_charge, books.charges)),
        ("releases", map(_release, books.releases)),
    ):
        file.write(f', "{name}": [')
        for i, record in enumerate(records):
            file.write(("\n" if i == 0 else ",\n") + json.dumps(record))
        file.write("\n]")
    file.write("}\n")


def _write_csv(books: Books, file: IO[str]) -> None:
    writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    names = {row.hash.hex(): row.name for row in books.plans}
    for charge in map(_charge, books.charges):
        writer.writerow({"record": "charge", "plan": names.get(charge["plan_hash"], ""), **charge})
    for release in map(_release, books.releases):
        writer.writerows(_lines(release))


def _lines(release: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """A release, then its mechanisms."""
    about = {name: release[name] for name in ("plan_hash", "window_start", "seq")}
    yield {"record": "release", **release, **(release.get("charge") or {})}
    for vector in release.get("vectors", ()):
        yield {"record": "vector", **about, **vector}
    if (selection := release.get("selection")) is not None:
        yield {"record": "selection", **about, **selection, "name": selection["partition"]}


def _charge(row: ChargeRow) -> dict[str, Any]:
    return {
        "account": row.account,
        "plan_hash": row.plan_hash.hex(),
        "window_start": _moment(row.window_us),
        "attempt": row.attempt,
        "rho": row.rho,
        "delta": row.delta,
        "through": None if row.through_us is None else _moment(row.through_us),
    }


def _release(row: ReleaseRow) -> dict[str, Any]:
    """What a release says of itself, and its header's own bytes, whose sha256 is its hash."""
    found: dict[str, Any] = {
        "seq": row.seq,
        "hash": row.hash.hex(),
        "plan_hash": row.plan_hash.hex(),
        "window_start": _moment(row.start_us),
        "window_end": _moment(row.end_us),
        "status": row.status,
        "state": row.state,
        "header": base64.b64encode(row.header).decode(),
    }
    try:
        header = pb.ReleaseHeader.FromString(row.header)
    except DecodeError:
        return found  # `verify` says so
    return found | {
        "prev_hash": header.prev_hash.hex(),
        "plan": header.plan,
        "plan_version": header.plan_version,
        "account": header.account,
        "veto": _name(pb.Veto, header.veto),
        "charge": {"rho": header.charge.rho, "delta": header.charge.delta},
        "cumulative": {"rho": header.cumulative.rho, "delta": header.cumulative.delta},
        "bounds": {
            "max_partitions": header.bounds.max_partitions,
            "max_rows_per_partition": header.bounds.max_rows_per_partition,
            "max_nodes": header.bounds.max_nodes,
        },
        "vectors": [{"name": spec.name, **_mechanism(spec)} for spec in header.vectors],
        "selection": _selection(header.selection) if header.HasField("selection") else None,
        "rows": header.rows,
        "payload_sha256": header.payload_sha256.hex(),
    }


def _selection(spec: pb.Selection) -> dict[str, Any]:
    return {"partition": spec.partition, **_mechanism(spec), "threshold": spec.threshold, "delta": spec.delta}


def _mechanism(spec: pb.VectorSpec | pb.Selection) -> dict[str, Any]:
    name = _name(pb.Mechanism, spec.mechanism)
    return {"mechanism": name, "scale": spec.scale, "sensitivity": spec.sensitivity, "loss": spec.loss}


def _name(kind: Any, number: int) -> str | None:
    """An enum's value in lower case without its prefix; its number if this program does not know it; None for zero."""
    if number == 0:
        return None
    try:
        return str(kind.Name(number)).partition("_")[2].lower()
    except ValueError:
        return str(number)


def _moment(us: int) -> str:
    try:
        return from_us(us).isoformat()
    except OverflowError:
        return "at no time"


@contextmanager
def _written(output: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a new file of its owner's alone, which is not there before it is whole."""
    if output is None:
        yield sys.stdout
        return
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
        part.rename(output)
    except OSError as error:
        raise ConfigInvalid(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)
