"""What the tests of object storage share: one server a session, a bucket's prefix a test."""

from __future__ import annotations

import uuid
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cloud_collector.bucket import Bucket
from tests.cloud_collector.conftest import keyed_maker, maker, other_maker, postgres
from tests.s3.server import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Server, need_s3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["keyed_maker", "maker", "other_maker", "postgres"]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A real S3 server."""
    need_s3()
    with closing(Server()) as one:
        yield one


@pytest.fixture
def bucket(server: Server, tmp_path: Path) -> Bucket:
    """A part of the bucket that nobody else uses, and the files of its keys."""
    return bucket_at(server.endpoint, tmp_path)


def bucket_at(endpoint: str, folder: Path) -> Bucket:
    """A part of the bucket of its own, called by way of an endpoint."""
    keys = {"access": ACCESS_KEY, "secret": SECRET_KEY}
    for name, text in keys.items():
        (folder / name).write_text(f"{text}\n")
        (folder / name).chmod(0o600)
    return Bucket(
        name=BUCKET,
        prefix=f"tests/{uuid.uuid4().hex}",
        region=REGION,
        endpoint=endpoint,
        ca_file=None,
        access_key_file=folder / "access",
        secret_key_file=folder / "secret",
    )
