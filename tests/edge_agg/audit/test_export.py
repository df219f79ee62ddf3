"""The books as an outside auditor gets them: every charge, every release, and nothing of the data."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections import Counter
from contextlib import closing
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from edge_agg.audit import export as room
from edge_agg.audit.books import open_books
from edge_agg.audit.export import export
from edge_agg.errors import ConfigInvalid, JournalFailed
from tests.edge_agg.audit.journals import plans
from tests.fakes import small_plan_text, write_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def config(folder: Path) -> Path:
    """The config of the agent whose journal it is."""
    return write_config(folder.parent, small_plan_text())


def books_of(config: Path) -> dict[str, Any]:
    """The JSON, read back."""
    output = config.parent / "books.json"
    export(config, kind="json", output=output)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def check_whole(config: Path, folder: Path) -> None:
    found = books_of(config)
    with open_books(folder) as books:
        assert found["incarnation"] == books.incarnation
        assert [(one["account"], one["rho"], one["delta"]) for one in found["charges"]] == [
            (row.account, row.rho, row.delta) for row in books.charges
        ]
        assert [one["hash"] for one in found["releases"]] == [row.hash.hex() for row in books.releases]
    assert {plan["name"] for plan in found["plans"]} == set(plans())
    before = ""
    for release in found["releases"]:
        assert hashlib.sha256(base64.b64decode(release["header"])).hexdigest() == release["hash"]
        assert release["prev_hash"] == before
        before = release["hash"]


def test_an_auditor_gets_every_charge_and_release(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: nothing is left out, sums are exact, and the chain can be followed. Mutant: a charge made nothing."""
    check_whole(config, folder)
    found = books_of(config)
    statuses = Counter(release["status"] for release in found["releases"])
    assert statuses["released"] > 0 < statuses["lost"]
    account = [release for release in found["releases"] if release["account"] == "people"]
    spent = sum((Fraction(one["rho"]) for one in found["charges"] if one["account"] == "people"), Fraction(0))
    assert Fraction(account[-1]["cumulative"]["rho"]) <= spent  # one window is charged and not yet sealed
    assert {vector["mechanism"] for one in account for vector in one["vectors"]} == {"gaussian", "laplace"}
    assert any(one["selection"] for one in account)
    with monkeypatch.context() as mutant:
        mutant.setattr(room, "_charge", lambda row: {"account": "people", "rho": "0", "delta": "0", "plan_hash": ""})
        with pytest.raises(AssertionError):
            check_whole(config, folder)


def check_nothing_exact(config: Path, folder: Path, kind: Any) -> None:
    with closing(apsw.Connection(str(folder / "journal.sqlite"))) as db:
        secret = db.execute("SELECT secret FROM journal").get
        payloads = [payload for (payload,) in db.execute("SELECT payload FROM release WHERE length(payload) > 0")]
    assert payloads
    output = config.parent / "books"
    export(config, kind=kind, output=output)
    written = output.read_bytes()
    for kept in (secret, *payloads):
        for spelt in (kept, kept.hex().encode(), base64.b64encode(kept)[:-4]):
            assert spelt not in written
    assert b"unit-" not in written
    assert b"dropped" not in written


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_nothing_of_the_data_is_exported(
    config: Path, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: no payload, no secret, no unit, no local count, however spelt. Mutant: the payload beside its hash."""
    check_nothing_exact(config, folder, kind)
    honest = room._release

    def telling(row: Any) -> dict[str, Any]:
        return honest(row) | {"hash": row.payload.hex() if row.payload else ""}

    with monkeypatch.context() as mutant:
        mutant.setattr(room, "_release", telling)
        with pytest.raises(AssertionError):
            check_nothing_exact(config, folder, kind)


def test_a_table_for_a_spreadsheet(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: the same in rows: charges, releases, and each release's mechanisms by its number in the chain."""
    found = books_of(config)
    export(config, kind="csv", output=None)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    kinds = Counter(row["record"] for row in rows)
    assert kinds["charge"] == len(found["charges"])
    assert kinds["release"] == len(found["releases"])
    assert kinds["vector"] == sum(len(release["vectors"]) for release in found["releases"])
    assert kinds["selection"] == sum(release["selection"] is not None for release in found["releases"])
    first = next(row for row in rows if row["record"] == "charge")
    assert (first["account"], first["plan"], first["rho"]) == ("people", "small", found["charges"][0]["rho"])


def test_a_file_takes_its_name_when_it_is_whole(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: whoever finds the file finds all of it, for its owner alone; a failure leaves no trace."""
    output = config.parent / "books.json"
    export(config, kind="json", output=output)
    assert output.stat().st_mode & 0o777 == 0o600
    whole, names = output.read_bytes(), set(config.parent.iterdir())

    def broken(_: object) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "_release", broken)
    with pytest.raises(ConfigInvalid, match="No space left"):
        export(config, kind="json", output=output)
    assert output.read_bytes() == whole
    assert set(config.parent.iterdir()) == names


def test_a_header_that_does_not_parse_is_handed_over_as_it_is(config: Path, spoil: Any) -> None:
    """Guarantee: the export judges nothing and stops at nothing; `verify` says what is wrong."""
    spoil("UPDATE release SET header=x'ff', window_end_us=9223372036854775807 WHERE seq=3")
    release = books_of(config)["releases"][2]
    assert (release["seq"], release["header"], release["window_end"]) == (3, "/w==", "at no time")
    assert "vectors" not in release
    export(config, kind="csv", output=config.parent / "books.csv")


def test_another_agents_books_are_not_exported(config: Path) -> None:
    """Guarantee: a config that names another agent is refused."""
    config.write_text(config.read_text().replace('name = "node"', 'name = "other"'))
    with pytest.raises(JournalFailed, match="another agent"):
        export(config, kind="json", output=None)
