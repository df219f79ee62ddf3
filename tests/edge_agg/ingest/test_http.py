"""The HTTP source: every answer it gives, and what it survives. What all sources share is in tests/conformance."""

from __future__ import annotations

import asyncio
import gzip
import json
import stat
import struct
import zlib
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.config.tables import HttpTable
from edge_agg.errors import JournalFailed, SourceUnreadable
from edge_agg.ingest import arrow_body, http, http_wire, inflate
from edge_agg.ingest.arrow_body import frame_of_ipc
from edge_agg.ingest.http import HttpSource
from edge_agg.ingest.push import BodyRefused, Code
from tests.conformance import harness_http
from tests.conformance.harness import CANARY, make_rows, ndjson
from tests.conformance.harness_http import ARROW, HttpHarness, UnixHarness, stream
from tests.conformance.inlet import COLUMNS, FakeInlet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame

LIMIT = 64 << 10
GOOD = ndjson(make_rows(10))
CHUNKED = b"%x\r\n%b\r\n" % (len(GOOD), GOOD)
TOKEN = "0123456789abcdef"


@asynccontextmanager
async def serving(harness: HttpHarness, inlet: FakeInlet, **table: Any) -> AsyncIterator[HttpHarness]:
    """A source that listens, with bodies of 64 KiB at most."""
    stop = asyncio.Event()
    source = HttpSource(HttpTable(listen=harness.listen, max_body="64KiB", **table))
    task = asyncio.create_task(source.deliver(inlet, stop, drain=False))
    listening = asyncio.create_task(inlet.wait_until(lambda: inlet.current))
    await asyncio.wait([task, listening], return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    try:
        if not task.done():
            yield harness
    finally:
        stop.set()
        await task


def ask(folder: Path, body: Callable[[HttpHarness, FakeInlet], Awaitable[None]], **table: Any) -> FakeInlet:
    """Run a test's body against a source on a Unix socket."""
    inlet = FakeInlet()

    async def whole() -> None:
        async with asyncio.timeout(60), serving(UnixHarness(folder), inlet, **table) as harness:
            await body(harness, inlet)

    asyncio.run(whole())
    return inlet


def status(said: bytes) -> tuple[int, str]:
    """Status and code of an answer."""
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), json.loads(body)["code"]


def request(method: str = "POST", path: str = "/v1/events", body: bytes = GOOD, **headers: str | None) -> bytes:
    """A request in HTTP/1.1; a header of None is left out."""
    lines: dict[str, str | None] = {
        "host": "localhost",
        "content_type": "application/x-ndjson",
        "content_length": str(len(body)),
        "connection": "close",
    }
    lines |= headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


ANSWERS: list[tuple[bytes, int, str]] = [
    (request(), 200, "ok"),
    (request(content_type="application/json; charset=utf-8"), 200, "ok"),
    (request(path="/v1/events?source=x"), 200, "ok"),
    (request(body=gzip.compress(GOOD), content_encoding="gzip"), 200, "ok"),
    (request(body=gzip.compress(GOOD) + gzip.compress(GOOD), content_encoding="gzip"), 200, "ok"),
    (request(body=zstandard.compress(GOOD), content_encoding="zstd"), 200, "ok"),
    (request(body=b""), 200, "ok"),
    (
        request(content_length=None, transfer_encoding="chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)),
        200,
        "ok",
    ),
    (request("GET", "/healthz", b""), 200, "ok"),
    (request(body=b"no json\n"), 400, "nothing_fits"),
    (request(body=b"no stream", content_type=ARROW), 400, "malformed"),
    (request(body=stream(pa.record_batch({"n": [1]})), content_type=ARROW), 400, "wrong_schema"),
    (request(body=b"no gzip", content_encoding="gzip"), 400, "encoding"),
    (request(body=gzip.compress(GOOD)[:-9], content_encoding="gzip"), 400, "encoding"),
    (request(body=zstandard.compress(GOOD)[:-9], content_encoding="zstd"), 400, "encoding"),
    (request(body=zstandard.compress(GOOD) + b"more", content_encoding="zstd"), 400, "encoding"),
    (request(body=gzip.compress(b"\n" * (LIMIT + 1)), content_encoding="gzip"), 413, "too_large"),
    (request(body=zstandard.compress(b"\n" * (LIMIT + 1)), content_encoding="zstd"), 413, "too_large"),
    (request(body=b"\n" * (LIMIT + 1)), 413, "too_large"),
    (
        request(content_length=None, transfer_encoding="chunked", body=b"%x\r\n" % (2 * LIMIT) + b"\n" * 2 * LIMIT),
        413,
        "too_large",
    ),
    (request("GET"), 405, "method"),
    (request("OPTIONS", body=b""), 405, "method"),
    (request("POST", "/healthz"), 405, "method"),
    (request(path="/"), 404, "not_found"),
    (request(path="/v1/events/../x"), 404, "not_found"),
    (request(content_length=None, body=b""), 411, "length_required"),
    (request(content_type="text/plain"), 415, "content_type"),
    (request(content_type=None), 415, "content_type"),
    (request(content_encoding="br"), 415, "content_encoding"),
    (request(content_encoding="gzip, gzip"), 415, "content_encoding"),
    (request(content_length="-1"), 400, "malformed_request"),
    (request(content_length="1, 2"), 400, "malformed_request"),
    (request(host=None), 400, "malformed_request"),
    (request(transfer_encoding="gzip"), 501, "malformed_request"),
    (request(content_length=None, transfer_encoding="chunked", body=b"zz\r\n"), 400, "malformed_request"),
    (CANARY.encode() + b"\r\n\r\n", 400, "malformed_request"),
    (b"\x16\x03\x01\x02\x00" + CANARY.encode() + b"\r\n\r\n", 400, "malformed_request"),
    (request(x=CANARY * 2000), 431, "malformed_request"),
]


def test_every_request_has_its_answer(tmp_path: Path) -> None:
    """Status and code of every kind of request; none quotes a word of it, and good ones go on being taken.

    Mutants: no bound on what is unpacked; a frame that is cut short taken for whole; text/plain taken.
    """

    async def body(harness: HttpHarness, _: FakeInlet) -> None:
        for asked, expected, code in ANSWERS:
            said = await harness.talk(asked)
            assert status(said) == (expected, code), asked[:200]
            assert CANARY.encode() not in said
        assert status(await harness.talk(request())) == (200, "ok")

    inlet = ask(tmp_path, body)
    assert len(inlet.rows) == 10 * 9
    assert inlet.rejected == 1 + 6 + 2


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    """With a token file only its bearer is served, and it is not in any answer; health needs none.

    Mutant: any token taken.
    """
    (tmp_path / "token").write_text(TOKEN + "\n")

    async def body(harness: HttpHarness, _: FakeInlet) -> None:
        for shown in (None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ", "Bearer \xe9"):
            assert status(await harness.talk(request(authorization=shown))) == (401, "unauthorized")
        for shown in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert status(await harness.talk(request(authorization=shown))) == (200, "ok")
        assert status(await harness.talk(request("GET", "/healthz", b""))) == (200, "ok")

    assert len(ask(tmp_path, body, token_file=str(tmp_path / "token")).rows) == 20


@pytest.mark.parametrize("text", ["", "short", "with space " * 3, "é" * 20])
def test_a_bad_token_file_is_refused_at_the_start(text: str, tmp_path: Path) -> None:
    """A token that is empty, short or cannot be sent is no token; the error does not tell it."""
    (tmp_path / "token").write_text(text)
    for path in ("token", "absent"):
        source = HttpSource(HttpTable(listen="127.0.0.1:1", token_file=str(tmp_path / path)))
        with pytest.raises(SourceUnreadable) as raised:
            source.check(COLUMNS)
        assert not text or text not in str(raised.value)


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "example.org:80", "80"])
def test_nobody_but_this_machine_is_listened_to(listen: str) -> None:
    """An address that others can reach is refused at the check, and not opened by `deliver` either."""
    source = HttpSource(HttpTable(listen=listen))
    with pytest.raises(SourceUnreadable):
        source.check(COLUMNS)
    with pytest.raises(SourceUnreadable):
        asyncio.run(source.deliver(FakeInlet(), asyncio.Event(), drain=False))


def test_a_web_page_cannot_push(tmp_path: Path) -> None:
    """On TCP the request must name this machine: a page whose own name was pointed here is turned away."""

    async def whole() -> None:
        async with serving(HttpHarness(tmp_path), FakeInlet()) as harness:
            for host in ("example.org", "example.org:80", "", "127.0.0.1.example.org"):
                assert status(await harness.talk(request(host=host))) == (421, "misdirected")
            for host in ("localhost", "127.0.0.1", harness.listen, "[::1]:8080", "localhost:1"):
                assert status(await harness.talk(request(host=host))) == (200, "ok")

    asyncio.run(whole())


def test_a_socket_is_the_owners_and_the_groups(tmp_path: Path) -> None:
    """Mode 0660; one left behind is replaced, one that somebody answers at is not, and it is gone after the stop."""
    path = tmp_path / "events.sock"

    async def body(harness: HttpHarness, _: FakeInlet) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with pytest.raises(SourceUnreadable):
            await HttpSource(HttpTable(listen=harness.listen)).deliver(FakeInlet(), asyncio.Event(), drain=False)
        assert status(await harness.talk(request())) == (200, "ok")

    ask(tmp_path, body)
    assert not path.exists()
    left = http._unix_socket(path)
    left.listen()
    left.close()
    assert path.exists()
    ask(tmp_path, body)
    path.write_text("a file of somebody's")
    with pytest.raises(SourceUnreadable):
        ask(tmp_path, body)
    assert path.read_text() == "a file of somebody's"


def test_a_connection_is_kept_and_pipelined(tmp_path: Path) -> None:
    """Several requests on one connection, sent at once, are answered in order; one that is refused does not end it."""

    async def body(harness: HttpHarness, _: FakeInlet) -> None:
        kept = request(connection=None)
        said = await harness.talk(kept + request("GET", "/x", b"", connection=None) + kept + request())
        found = [part.split(b"\r\n", 1)[0] for part in said.split(b"HTTP/1.1 ")[1:]]
        assert [int(line.split(b" ")[0]) for line in found] == [200, 404, 200, 200]

    assert len(ask(tmp_path, body).rows) == 30


def test_a_caller_may_wait_to_be_told_to_go_on(tmp_path: Path) -> None:
    """`Expect: 100-continue`: the body is asked for once the head is found good, and not if it is refused."""

    async def body(harness: HttpHarness, _: FakeInlet) -> None:
        for kind, expected in (("application/x-ndjson", b"HTTP/1.1 100 "), ("text/plain", b"HTTP/1.1 415 ")):
            reader, writer = await harness.connect()
            asked = request(expect="100-continue", content_type=kind)
            writer.write(asked.removesuffix(GOOD))
            first = await reader.readuntil(b"\r\n\r\n")
            assert first.startswith(expected)
            if expected == b"HTTP/1.1 100 ":
                writer.write(GOOD)
                assert status(await reader.read()) == (200, "ok")
            writer.close()

    assert len(ask(tmp_path, body).rows) == 10


@pytest.mark.slow
def test_slow_callers_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head or a body that does not come is answered 408, and its room is free again; an idle connection ends.

    Mutant: the room of a body that never came is not given back.
    """
    for name in ("IDLE_S", "HEAD_S", "BODY_S"):
        monkeypatch.setattr(http_wire, name, 0.05)

    async def body(harness: HttpHarness, _: FakeInlet) -> None:
        for _again in range(2 * http.BODIES):
            assert status(await harness.talk(request(body=b"{", content_length=str(LIMIT)))) == (408, "slow")
        assert status(await harness.talk(b"POST /v1/ev")) == (408, "slow")
        assert await harness.talk(b"") == b""
        assert status(await harness.talk(request())) == (200, "ok")

    ask(tmp_path, body)


def test_bodies_and_connections_on_their_way_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the bounds is told to come again, and is served when it does.

    Mutant: no room reserved.
    """
    monkeypatch.setattr(http, "CONNECTIONS", 8)

    async def body(harness: HttpHarness, inlet: FakeInlet) -> None:
        inlet.hold()
        big = request(body=GOOD + b"\n" * (LIMIT - len(GOOD)))
        held = [asyncio.create_task(harness.talk(big)) for _ in range(http.BODIES)]
        await inlet.wait_until(lambda: inlet.held == http.BODIES)
        assert status(await harness.talk(request())) == (429, "full")
        open_ones = [await harness.connect() for _ in range(8 - http.BODIES)]
        assert status(await harness.talk(b"")) == (503, "busy")
        inlet.resume()
        for _, writer in open_ones:
            writer.close()
        assert {status(said) for said in await asyncio.gather(*held)} == {(200, "ok")}
        assert status(await harness.talk(request())) == (200, "ok")

    assert len(ask(tmp_path, body).rows) == 10 * (http.BODIES + 1)


def test_a_batch_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    """However long it is a body is one frame, so no part of it is in when the rest is refused."""

    async def body(harness: HttpHarness, inlet: FakeInlet) -> None:
        inlet.fill()
        assert status(await harness.talk(request(body=ndjson(make_rows(500))))) == (429, "full")
        inlet.resume()
        assert status(await harness.talk(request(body=ndjson(make_rows(500))))) == (200, "ok")

    inlet = ask(tmp_path, body)
    assert [frame.batch.num_rows for frame in inlet.frames] == [500]


def test_rows_that_take_no_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of more lines than a batch may have rows is refused, however short they are."""
    monkeypatch.setattr(arrow_body, "MAX_ROWS", 10)

    async def body(harness: HttpHarness, _: FakeInlet) -> None:
        assert status(await harness.talk(request(body=b"{}\n" * 10))) == (200, "ok")
        assert status(await harness.talk(request(body=b"{}\n" * 11))) == (413, "too_large")

    assert len(ask(tmp_path, body).rows) == 10


def test_windows_wait_for_a_caller_that_was_told_to_wait(tmp_path: Path) -> None:
    """After a refusal the source is not current until rows are taken again."""

    async def body(harness: HttpHarness, inlet: FakeInlet) -> None:
        inlet.fill()
        await harness.talk(request())
        assert inlet.current == [True, False]
        inlet.resume()
        await harness.talk(request())
        assert inlet.current == [True, False, True]

    ask(tmp_path, body)


def test_what_the_inlet_cannot_do_ends_the_source(tmp_path: Path) -> None:
    """An inlet that fails for good is not a caller's trouble: 500, and `deliver` raises what the inlet raised."""

    class Broken(FakeInlet):
        async def take(self, frame: Frame) -> None:
            raise JournalFailed("the disk")

    async def whole() -> None:
        harness = UnixHarness(tmp_path)
        source = harness.source()
        task = asyncio.create_task(source.deliver(Broken(), asyncio.Event(), drain=False))
        assert status(await harness.talk(request())) == (500, "failed")
        with pytest.raises(JournalFailed):
            await task

    asyncio.run(whole())


FIELDS = {"n": pa.int64(), "who": pa.string()}
WANTED: dict[str, ColumnType] = {"n": "integer", "who": "string"}


def _refusal(data: bytes, limit: int = LIMIT) -> Code | None:
    try:
        frame_of_ipc(data, WANTED, limit=limit)
    except BodyRefused as refused:
        return refused.code
    return None


def _compressed() -> bytes:
    out = pa.BufferOutputStream()
    batch = pa.record_batch({"n": [1] * 999, "who": ["x"] * 999})
    with pa.ipc.new_stream(out, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return bytes(out.getvalue())


def _claiming(rows: int) -> bytes:
    """A stream whose batch claims more rows than it has."""
    whole = stream(pa.record_batch({"n": pa.nulls(77), "who": pa.nulls(77)}))
    return whole.replace(struct.pack("<q", 77), struct.pack("<q", rows))


WHO = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int8()), ["x" * 4000])
HOSTILE: dict[str, tuple[bytes, Code]] = {
    "rows that take no bytes": (_claiming(2**30), Code.TOO_LARGE),
    "fewer rows than none": (_claiming(-1), Code.MALFORMED),
    "compressed": (_compressed(), Code.MALFORMED),
    "nothing": (b"", Code.MALFORMED),
    "no schema": (struct.pack("<II", 0xFFFFFFFF, 0), Code.MALFORMED),
    "text behind a dictionary": (stream(pa.record_batch({"n": [1] * 100, "who": WHO})), Code.TOO_LARGE),
    "text behind views": (
        stream(pa.record_batch({"n": [1] * 100, "who": pa.array(["x" * 4000] * 100, pa.string_view())})),
        Code.TOO_LARGE,
    ),
    "a column twice": (stream(pa.record_batch([pa.array([1])] * 3, names=["n", "who", "n"])), Code.WRONG_SCHEMA),
    "a column of lists": (stream(pa.record_batch({"n": [1], "who": [["x"]]})), Code.WRONG_SCHEMA),
    "many rows": (_claiming((1 << 20) + 1), Code.TOO_LARGE),
    "many batches": (stream(*[pa.record_batch({"n": [], "who": []}, pa.schema(FIELDS))] * 4097), Code.TOO_LARGE),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_stream_is_refused_before_anything_is_made_of_it(name: str) -> None:
    """Each trick that makes few bytes much work is refused by what it would cost.

    Mutant: rows not counted (the claim of 2**30 rows of nulls becomes 8 GiB).
    """
    data, code = HOSTILE[name]
    assert _refusal(data) == code


def test_what_data_frames_write_is_taken() -> None:
    """Polars' streams (text as views), dictionaries, several batches: as the rows are."""
    frame = pl.DataFrame(
        {"n": [1, 2, 3], "who": ["a", None, "long enough to be behind a view"], "other": [[1], [2], [3]]}
    )
    data = frame.write_ipc_stream(None).getvalue()
    assert frame_of_ipc(data, WANTED, limit=LIMIT).batch.to_pylist() == frame.select("n", "who").to_dicts()
    batch = pa.record_batch({"who": pa.array(["a", None, "b"]).dictionary_encode(), "n": ["1", "x", " 3"]})
    taken = frame_of_ipc(stream(batch, batch), WANTED, limit=LIMIT)
    assert taken.batch.to_pylist() == [{"n": 1, "who": "a"}, {"n": 3, "who": "b"}] * 2
    assert taken.rejected == 2


SAMPLES = [
    stream(pa.record_batch({"n": [1, 2, None], "who": ["a", CANARY, None]})),
    stream(pa.record_batch({"n": [1, 2], "who": pa.array(["a", CANARY * 9], pa.string_view())})),
    stream(pa.record_batch({"n": [1, 2], "who": pa.array(["a", CANARY]).dictionary_encode()})),
]


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_no_stream_does_more_than_be_refused(data: st.DataObject) -> None:
    """Bytes of a stream flipped, cut or put in twice: a frame or a refusal, never anything else."""
    whole = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    _refusal(bytes(whole[:end]) if data.draw(st.booleans()) else bytes(whole))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200), coding=st.sampled_from(["gzip", "zstd"]), flip=st.integers(0, 400))
def test_what_is_unpacked_is_what_was_packed(data: bytes, coding: str, flip: int) -> None:
    """Whole bodies come back as they were; damaged ones are refused or end within the bound."""
    packed = bytearray(gzip.compress(data) if coding == "gzip" else zstandard.compress(data))
    assert inflate.inflate(bytes(packed), coding, limit=200) == data
    packed[flip % len(packed)] ^= 0xFF
    with suppress(BodyRefused):
        assert len(inflate.inflate(bytes(packed), coding, limit=200)) <= 200


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_is_not_unpacked(coding: str) -> None:
    """A body that unpacks to many MiB is left after a few; so is one of a thousand tiny members."""
    if coding == "gzip":
        bomb = zlib.compressobj(wbits=31)
        packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(16)) + bomb.flush()
        members = gzip.compress(b"") * 1000
    else:
        packed = zstandard.compress(bytes(16 << 20))
        members = zstandard.compress(b"") * 1000
    for data, code in ((packed, Code.TOO_LARGE), (members, Code.ENCODING)):
        with pytest.raises(BodyRefused) as raised:
            inflate.inflate(data, coding, limit=LIMIT)
        assert raised.value.code == code


@pytest.mark.slow
def test_the_checks_catch_their_mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule broken on purpose is noticed by the test that is named after it."""

    def fails(check: Callable[[], object]) -> bool:
        try:
            check()
        except (AssertionError, TimeoutError, pytest.fail.Exception):
            return True
        return False

    monkeypatch.setattr(harness_http, "PATIENCE_S", 0.5)

    with monkeypatch.context() as broken:  # any token is good
        broken.setattr("hmac.compare_digest", lambda *_: True)
        assert fails(lambda: test_a_token_is_asked_for(tmp_path))
    with monkeypatch.context() as broken:  # no room is kept
        broken.setattr(http_wire.Room, "reserve", lambda *_: True)
        assert fails(lambda: test_bodies_and_connections_on_their_way_are_bounded(tmp_path, broken))
    with monkeypatch.context() as broken:  # rows are not counted
        broken.setattr(arrow_body, "_rows", lambda *_: 0)
        assert fails(lambda: test_a_hostile_stream_is_refused_before_anything_is_made_of_it("many rows"))
