"""Objects of a bucket, through the S3 API.

Place: below the lake of a collector that keeps its tables on object storage. The client is obstore; signing, TLS and
the search for credentials are its own.
Invariants:
- A new name is claimed by a conditional put (`If-None-Match: *`). Its answer may be lost: the put is sent again, and
  where the name is then taken, by reading the object, which says whose it is. So a writer is told that it was first if
  and only if it was. A store that ignores the condition is refused at start.
- No request leaves without TLS but to loopback; no variable of the environment changes where requests go.
- What an error says names its kind and never an object's bytes, nor a key.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from cloud_collector.errors import ConfigInvalid, StoreUnavailable
from cloud_collector.failpoint import failpoint
from cloud_collector.objectstore import Found, Missing, Taken

try:
    import fsspec
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store as Client
except ImportError:
    raise ConfigInvalid("$.lake.url: object storage needs the extra `s3`: pip install edge-aggregator[s3]") from None

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb
    from obstore.store import ClientConfig

    from cloud_collector.bucket import Bucket

_CONNECT = timedelta(seconds=5)
_WHOLE = timedelta(seconds=120)
"""For a request and its answer; the largest object is a compaction's, some 100 MB."""
_SMALL = timedelta(seconds=15)
"""As above, for a conditional put."""
_REPEATED_FOR = timedelta(seconds=30)
"""No request is sent again after this time: whoever waits is told."""
_ATTEMPTS = 5
"""Of a conditional put; the client itself repeats what may be repeated blindly."""
_PAUSE_S = 0.2
"""Before the second attempt; twice as long before each that follows."""
_CREDENTIALS_FOR = timedelta(minutes=5)
"""How long keys are used before their files are read again."""
_HEADS = 10_000
"""Objects whose size is remembered, for a connection."""
_UNTOLD = (exceptions.GenericError, exceptions.PreconditionError, exceptions.JoinError, OSError)
"""After these nobody knows whether a put took effect."""


class S3Store:
    """Objects below a prefix of a bucket.

    Args:
        bucket: where, and with whose keys.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._client = _client(bucket, _ATTEMPTS, _WHOLE)
        self._once = _client(bucket, 0, _SMALL)

    @property
    def location(self) -> str:
        """As a URL, `s3://bucket/prefix`."""
        return self._bucket.url

    def check(self) -> None:
        """Find out whether the store can be written and honours the condition.

        Raises:
            ConfigInvalid: it does not, so that two sealers could write one version of a table.
            StoreUnavailable: it cannot be reached, or does not let us in.
        """
        name = f".conditional-put-{uuid.uuid4().hex}"
        try:
            self._once.put(self._key(name), b"1", mode="create")
            try:
                self._once.put(self._key(name), b"2", mode="create")
            except exceptions.AlreadyExistsError:
                return
            finally:
                self.delete(name)
        except Exception as error:  # noqa: BLE001  # the client's, with keys of objects in their text
            raise _unusable(error) from None
        raise ConfigInvalid("$.lake.url: the store ignores `If-None-Match: *`, which keeps two writers apart")

    def get(self, name: str) -> bytes:
        """Read an object; raises Missing."""
        try:
            return bytes(self._client.get(self._key(name)).bytes())
        except FileNotFoundError:
            raise Missing from None

    def put(self, name: str, data: Any) -> None:
        """Write an object."""
        self._client.put(self._key(name), obstore.Bytes(memoryview(data).cast("B")))  # pyarrow calls its bytes signed

    def put_new(self, name: str, data: bytes) -> None:
        """Write an object unless there is one of its name; raises Taken."""
        untold: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
            try:
                self._once.put(self._key(name), data, mode="create")
            except exceptions.AlreadyExistsError as error:
                try:
                    there = self.get(name)
                except Missing:  # another put was under way, and has failed
                    untold = error
                    continue
                if untold is None or there != data:
                    raise Taken from None
            except _UNTOLD as error:
                untold = error
                continue
            failpoint("log_linked")
            return
        assert untold is not None
        raise untold

    def list(self, folder: str) -> Sequence[Found]:
        """The objects of a folder."""
        prefix = self._key(folder).rstrip("/")
        found = []
        for one in self._client.list_with_delimiter(prefix)["objects"]:
            rest = one["path"].removeprefix(prefix).lstrip("/")
            if rest:  # some stores list a folder as an object in itself
                found.append(Found(name=rest, modified_ms=int(one["last_modified"].timestamp() * 1000)))
        return found

    def delete(self, name: str) -> None:
        """Remove an object."""
        try:
            self._client.delete(self._key(name))
        except FileNotFoundError:
            return

    def settle(self, folder: str) -> None:
        """Nothing to do: what is there is durable."""

    def attach(self, duck: duckdb.DuckDBPyConnection) -> None:
        """Let a connection read the bucket, a range of an object at a time."""
        duck.register_filesystem(_Readable(self._client, self._bucket.name))

    def _key(self, name: str) -> str:
        return f"{self._bucket.prefix}/{name}" if self._bucket.prefix else name


class _Readable(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """The bucket as DuckDB wants it."""

    protocol = "s3"
    cachable = False

    def __init__(self, client: Client, bucket: str) -> None:
        super().__init__()
        self.client, self._prefix = client, f"{bucket}/"
        self._head = lru_cache(maxsize=_HEADS)(partial(obstore.head, client))  # no file of a table ever changes

    def key(self, path: str) -> str:
        """An object's key."""
        return str(self._strip_protocol(path)).removeprefix(self._prefix)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What is known of an object; raises FileNotFoundError."""
        return {"name": self._strip_protocol(path), "type": "file", "size": self._head(self.key(path))["size"]}

    def modified(self, path: str) -> datetime:
        """When it was written."""
        return self._head(self.key(path))["last_modified"]

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: the lake names each file, and none is a pattern."""
        return [str(self._strip_protocol(path))]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> _Opened:
        assert mode == "rb"
        return _Opened(self, path, cache_type="readahead", block_size=2**20)


class _Opened(fsspec.spec.AbstractBufferedFile):  # type: ignore[misc]  # as above
    """One object, read a range at a time."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(obstore.get_range(self.fs.client, self.fs.key(self.path), start=start, end=end))


def _client(bucket: Bucket, retries: int, timeout: timedelta) -> Client:
    endpoint = bucket.endpoint or f"https://s3.{bucket.region}.amazonaws.com"
    options: ClientConfig = {"allow_http": bucket.is_local, "timeout": timeout, "connect_timeout": _CONNECT}
    if bucket.ca_file is not None:
        options["root_certificate"] = bucket.ca_file.read_bytes()
    return Client(
        bucket.name,
        config={
            "endpoint": endpoint,
            "aws_endpoint_url_s3": endpoint,  # or a variable of the environment would win
            "region": bucket.region,
            "virtual_hosted_style_request": False,
            "conditional_put": "etag",
            "skip_signature": False,
        },
        client_options=options,
        retry_config={"max_retries": retries, "retry_timeout": _REPEATED_FOR},
        credential_provider=None if bucket.access_key_file is None else _KeyFiles(bucket),
    )


class _KeyFiles:
    """Keys that stand in files, which may be exchanged while we run."""

    def __init__(self, bucket: Bucket) -> None:
        assert bucket.access_key_file is not None
        assert bucket.secret_key_file is not None
        self._files = bucket.access_key_file, bucket.secret_key_file

    def __call__(self) -> Any:
        """The keys, and until when they are used."""
        access, secret = (_read(file) for file in self._files)
        until = datetime.now(UTC) + _CREDENTIALS_FOR
        return {"access_key_id": access, "secret_access_key": secret, "token": None, "expires_at": until}


def _read(file: Path) -> str:
    return file.read_text().strip()


def _unusable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"$.lake.url: the store was not usable ({type(error).__name__}): look at endpoint, bucket, keys"
    )
