"""`[lake]`: which bucket keeps the sealed tables, and whose keys open it.

Place: a part of the config, read with it.
Invariants: nothing but loopback is called without TLS; keys stand in files that only their owner reads, or come from
the environment or the machine's role, never from the config itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cloud_collector.errors import ConfigInvalid
from edge_agg.contract.address import is_address, is_loopback

if TYPE_CHECKING:
    from pathlib import Path

_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_.-]+)*)/?")
_REGION = re.compile(r"[a-z0-9-]{1,63}")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """`[lake]`: a bucket, or a part of one, that keeps the sealed tables."""

    name: str
    """The bucket's."""
    prefix: str
    """What the keys of all objects begin with, before a slash; nothing if empty."""
    region: str
    """That requests are signed for."""
    endpoint: str | None
    """`https://host[:port]`, or `http://` on loopback; AWS by the region if None."""
    ca_file: Path | None
    """Who may vouch for the endpoint, in PEM, beside the authorities that the client knows."""
    access_key_file: Path | None
    """Holds the name of the key; the environment or the machine's role says if None."""
    secret_key_file: Path | None
    """Holds the key."""

    @property
    def url(self) -> str:
        """Where the tables lie, for other engines."""
        return f"s3://{self.name}/{self.prefix}".rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether requests may go without TLS."""
        return self.endpoint is not None and self.endpoint.startswith("http://")


class LakeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[lake]`: the bucket that keeps the sealed tables, in place of a folder of `data`."""

    url: str
    """`s3://bucket`, or `s3://bucket/prefix`."""
    region: str = "us-east-1"
    """The region that requests are signed for."""
    endpoint: str | None = None
    """`https://host[:port]` of another store than AWS; `http://` on loopback only."""
    ca_file: str | None = None
    """Who may vouch for the endpoint, in PEM, beside the public authorities."""
    access_key_file: str | None = None
    """Holds the name of the key; absent: the environment or the machine's role says."""
    secret_key_file: str | None = None
    """Holds the key; mode 0600; comes with `access_key_file`."""


def bucket_of(table: LakeTable, folder: Path) -> Bucket:
    """Check the table, with files named from a folder; raises ConfigInvalid."""
    found = _URL.fullmatch(table.url)
    _require("$.lake.url", found is not None, "must be s3://bucket or s3://bucket/prefix")
    assert found is not None
    prefix = found[2].strip("/")
    _require("$.lake.url", not {".", ".."} & set(prefix.split("/")), "a part of the prefix is `.` or `..`")
    _require("$.lake.region", _REGION.fullmatch(table.region) is not None, "must be the name of a region")
    if table.endpoint is not None:
        scheme, _, host = table.endpoint.partition("://")
        plain = _HOST.fullmatch(host) is not None
        _require("$.lake.endpoint", scheme in {"http", "https"} and plain, "must be https://host or https://host:port")
        local = is_loopback(host if is_address(host) else f"{host}:80")
        _require("$.lake.endpoint", scheme == "https" or local, "without TLS, only a loopback address is called")
    both = (table.access_key_file is None) == (table.secret_key_file is None)
    _require("$.lake.secret_key_file", both, "access_key_file and secret_key_file come together")
    return Bucket(
        name=found[1],
        prefix=prefix,
        region=table.region,
        endpoint=table.endpoint,
        ca_file=_file("$.lake.ca_file", table.ca_file, folder),
        access_key_file=_file("$.lake.access_key_file", table.access_key_file, folder),
        secret_key_file=_file("$.lake.secret_key_file", table.secret_key_file, folder, secret=True),
    )


def _file(path: str, name: str | None, folder: Path, *, secret: bool = False) -> Path | None:
    if name is None:
        return None
    file = (folder / name).absolute()  # a link stays one: what it points to may be exchanged
    _require(path, file.is_file(), "no such file")
    _require(path, not secret or file.stat().st_mode & 0o077 == 0, "others may read it: chmod 600")
    return file


def _require(path: str, holds: bool, problem: str) -> None:  # noqa: FBT001  # reads as a sentence
    if not holds:
        raise ConfigInvalid(f"{path}: {problem}")
