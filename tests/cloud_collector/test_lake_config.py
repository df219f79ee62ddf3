"""`[lake]`: strict, by the path of what is wrong; no plain text but to loopback, no keys that others may read."""

from __future__ import annotations

import builtins
import sys
from typing import TYPE_CHECKING, Any

import pytest

from cloud_collector import bucket as room
from cloud_collector.config import load
from cloud_collector.errors import ConfigInvalid
from cloud_collector.lake import Lake

if TYPE_CHECKING:
    from pathlib import Path

FULL = """
[lake]
url = "s3://sums-of-ours/fleet/one/"
region = "eu-central-1"
endpoint = "https://objects.example:9000"
ca_file = "ca.pem"
access_key_file = "access"
secret_key_file = "secret"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Beside the files that it names."""
    for name in ("ca.pem", "access", "secret"):
        (tmp_path / name).write_text("text")
        (tmp_path / name).chmod(0o600)
    return tmp_path / "collector.toml"


def test_a_bucket_is_read_with_absolute_paths(file: Path) -> None:
    file.write_text(FULL)
    found = load(file).bucket
    assert found is not None
    assert (found.name, found.prefix, found.url) == ("sums-of-ours", "fleet/one", "s3://sums-of-ours/fleet/one")
    assert (found.region, found.endpoint) == ("eu-central-1", "https://objects.example:9000")
    assert (found.ca_file, found.secret_key_file) == (file.parent / "ca.pem", file.parent / "secret")
    assert not found.is_local


def test_a_bucket_needs_no_more_than_its_name(file: Path) -> None:
    """Endpoint by region, keys from the environment or the machine's role; without the table, a folder."""
    file.write_text('[lake]\nurl = "s3://sums"')
    found = load(file).bucket
    assert found is not None
    assert (found.url, found.endpoint, found.secret_key_file) == ("s3://sums", None, None)
    file.write_text("")
    assert load(file).bucket is None


BAD = [
    ("s3://sums-of-ours/fleet/one/", "https://sums", "$.lake.url"),
    ("s3://sums-of-ours/fleet/one/", "s3://sums/a b", "$.lake.url"),
    ("s3://sums-of-ours/fleet/one/", "s3://sums/../other", "$.lake.url"),
    ("s3://sums-of-ours/fleet/one/", "s3://key:secret@sums", "$.lake.url"),
    ("https://objects.example:9000", "http://objects.example:9000", "$.lake.endpoint"),
    ("https://objects.example:9000", "http://127.0.0.1.example:9000", "$.lake.endpoint"),
    ("https://objects.example:9000", "http://127.0.0.1:9000@objects.example", "$.lake.endpoint"),
    ("https://objects.example:9000", "objects.example:9000", "$.lake.endpoint"),
    ("https://objects.example:9000", "https://objects.example/path", "$.lake.endpoint"),
    ("eu-central-1", "eu central", "$.lake.region"),
    ('"access"', '"nobody"', "$.lake.access_key_file"),
    ('access_key_file = "access"', "", "$.lake.secret_key_file"),
    ("url =", "uri =", "$.lake"),
]


@pytest.mark.parametrize(("old", "new", "path"), BAD)
def test_what_is_wrong_is_named_by_its_path(file: Path, old: str, new: str, path: str) -> None:
    file.write_text(FULL.replace(old, new))
    with pytest.raises(ConfigInvalid) as caught:
        load(file)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:9000"])
def test_loopback_needs_no_tls(file: Path, endpoint: str) -> None:
    file.write_text(FULL.replace("https://objects.example:9000", endpoint))
    found = load(file).bucket
    assert found is not None
    assert found.is_local


def test_mutant_plain_text_to_anybody_is_caught(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_loopback", lambda address: True)
    with pytest.raises(pytest.fail.Exception):
        test_what_is_wrong_is_named_by_its_path(file, *BAD[4])


def test_a_key_that_others_may_read_is_refused(file: Path) -> None:
    file.write_text(FULL)
    (file.parent / "secret").chmod(0o640)
    with pytest.raises(ConfigInvalid, match="chmod 600"):
        load(file)


def test_without_the_extra_a_bucket_is_refused_by_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a folder is not: nothing else needs it."""
    imported = builtins.__import__

    def missing(name: str, *more: Any, **named: Any) -> Any:
        if name.partition(".")[0] in {"obstore", "fsspec"}:
            raise ImportError
        return imported(name, *more, **named)

    monkeypatch.delitem(sys.modules, "cloud_collector.s3store", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    file.write_text(FULL)
    with pytest.raises(ConfigInvalid, match=r"\[s3\]"):
        Lake.of(load(file), writes=True)
    file.write_text("")
    Lake.of(load(file), writes=True)
