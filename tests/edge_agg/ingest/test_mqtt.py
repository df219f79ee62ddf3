"""MQTT beyond the suite of all sources: what is acknowledged when, and what a broker may do to us."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client

from edge_agg.config.tables import MqttTable
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import mqtt_link, mqtt_payload, push
from edge_agg.ingest.mqtt import MqttSource
from edge_agg.ingest.mqtt_link import Message
from edge_agg.ingest.mqtt_session import Session
from edge_agg.ingest.redelivery import KEPT, Redelivery
from edge_agg.ingest.source import Cause
from tests.conformance.broker import Broker
from tests.conformance.harness import make_rows, ndjson
from tests.conformance.harness_mqtt import CLIENT, TOPIC, Mqtt5Harness, Mqtt311Harness
from tests.conformance.inlet import COLUMNS, PATIENCE_S, FakeInlet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from edge_agg.ingest.source import Frame

HARNESSES = {"5": Mqtt5Harness, "3.1.1": Mqtt311Harness}


@pytest.fixture(params=HARNESSES)
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    """Play a scene with a broker, in each version of the protocol."""
    harness = HARNESSES[request.param](tmp_path)

    def play(scene: Callable[[Mqtt5Harness], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            await harness.start()
            try:
                async with asyncio.timeout(4 * PATIENCE_S):
                    await scene(harness)
            finally:
                await harness.close()

        asyncio.run(whole())

    return play


@asynccontextmanager
async def _delivering(source: MqttSource, inlet: FakeInlet) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(source.deliver(inlet, stop, drain=False))
    try:
        yield task
    except BaseException:
        task.cancel()
        raise
    stop.set()
    await task


async def _drained(source: MqttSource) -> FakeInlet:
    """What the broker still keeps."""
    inlet = FakeInlet()
    await source.deliver(inlet, asyncio.Event(), drain=True)
    return inlet


def _numbers(inlet: FakeInlet) -> list[int]:
    return sorted(row["n"] for row in inlet.rows)


async def _broker_dies_while_the_inlet_is_busy(harness: Mqtt5Harness) -> FakeInlet:
    """Messages are waiting, in the inlet and before it, when the broker is killed; it comes back, and more come."""
    inlet = FakeInlet()
    async with _delivering(harness.source(), inlet):
        await harness.feed(make_rows(30))
        await inlet.wait_rows(30)
        await inlet.wait_until(lambda: inlet.current[-1])
        inlet.hold()
        await harness.feed(make_rows(30, first=30))
        await inlet.wait_held()
        await harness.broker.save()
        harness.broker.kill()
        await inlet.wait_until(lambda: not inlet.current[-1])
        await harness.broker.start()
        inlet.resume()
        await harness.feed(make_rows(30, first=60))
        await inlet.wait_rows(90)
        await inlet.wait_until(lambda: inlet.current[-1])
    return inlet


@pytest.mark.slow
def test_a_broker_that_is_killed_costs_nothing(play: Callable[..., None]) -> None:
    """Kill -9 of the broker with messages on their way: each row counts once, and meanwhile the source is not current.

    Mutant: `test_without_memory_of_what_was_taken_rows_count_twice`.
    """

    async def scene(harness: Mqtt5Harness) -> None:
        inlet = await _broker_dies_while_the_inlet_is_busy(harness)
        assert _numbers(inlet) == list(range(90))
        assert not (await _drained(harness.source())).rows

    play(scene)


@pytest.mark.slow
def test_without_memory_of_what_was_taken_rows_count_twice(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: what the broker sends again, as it never saw the acknowledgement, is taken for new."""
    monkeypatch.setattr(Redelivery, "knows", lambda _, message: False)

    async def scene(harness: Mqtt5Harness) -> None:
        numbers = _numbers(await _broker_dies_while_the_inlet_is_busy(harness))
        assert len(numbers) > len(set(numbers))

    play(scene)


async def _agent_dies_before_the_rows_are_safe(harness: Mqtt5Harness) -> list[int]:
    """The agent is gone while the inlet has not come back; another one asks the broker for what it keeps."""
    before = FakeInlet()
    before.hold()
    killed = asyncio.create_task(harness.source().deliver(before, asyncio.Event(), drain=False))
    await harness.feed(make_rows(40))
    await before.wait_held()
    killed.cancel()
    await asyncio.wait([killed])
    assert not before.rows
    return _numbers(await _drained(harness.source()))


@pytest.mark.slow
def test_an_agent_that_is_killed_costs_nothing(play: Callable[..., None]) -> None:
    """What was not safe when the agent went comes again, all of it."""

    async def scene(harness: Mqtt5Harness) -> None:
        assert await _agent_dies_before_the_rows_are_safe(harness) == list(range(40))

    play(scene)


@pytest.mark.slow
def test_acknowledging_on_arrival_loses_rows(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: paho acknowledges by itself, when a message has arrived."""

    def build(*args: Any, **kwargs: Any) -> Client:
        return Client(*args, **{**kwargs, "manual_ack": False})

    monkeypatch.setattr(mqtt_link, "Client", build)

    async def scene(harness: Mqtt5Harness) -> None:
        assert await _agent_dies_before_the_rows_are_safe(harness) != list(range(40))

    play(scene)


async def _agent_is_full_and_goes(harness: Mqtt5Harness) -> list[int]:
    inlet = FakeInlet()
    inlet.fill()
    async with _delivering(harness.source(), inlet):
        await harness.feed(make_rows(40))
        await inlet.wait_until(lambda: inlet.offered >= 3 or not inlet.refused)
        assert inlet.current[-1:] == [False]
    assert not inlet.rows
    return _numbers(await _drained(harness.source()))


@pytest.mark.slow
def test_a_full_agent_leaves_messages_with_the_broker(play: Callable[..., None]) -> None:
    """While the agent is full nothing is acknowledged, and the same is offered again and again."""

    async def scene(harness: Mqtt5Harness) -> None:
        assert await _agent_is_full_and_goes(harness) == list(range(40))

    play(scene)


@pytest.mark.slow
def test_giving_up_on_a_full_agent_loses_rows(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: what the inlet refused is acknowledged."""
    offer = Session._offer

    async def give_up(self: Session, frame: Frame) -> None:
        for _ in range(3):
            with suppress(TimeoutError):
                await asyncio.wait_for(offer(self, frame), 0.02)

    monkeypatch.setattr(Session, "_offer", give_up)

    async def scene(harness: Mqtt5Harness) -> None:
        assert await _agent_is_full_and_goes(harness) != list(range(40))

    play(scene)


@pytest.mark.slow
def test_messages_that_wait_are_taken_together(play: Callable[..., None]) -> None:
    """A backlog costs few takes, so few fsyncs; and a drain reads all of it."""

    async def scene(harness: Mqtt5Harness) -> None:
        await harness.feed(make_rows(600))
        inlet = await _drained(harness.source())
        assert _numbers(inlet) == list(range(600))
        assert len(inlet.frames) < 200
        assert inlet.current == [False, True]

    play(scene)


@pytest.mark.slow
def test_a_bad_message_is_counted_and_does_not_come_again(play: Callable[..., None]) -> None:
    """What is no event is acknowledged: otherwise it would come for ever, and stand in the way of the others."""

    async def scene(harness: Mqtt5Harness) -> None:
        await harness.feed_raw(b'{"n": "no number"}')
        await harness.feed_raw(b"x" * (mqtt_link.MAX_MESSAGE_BYTES + 1))
        await harness.feed(make_rows(1))
        inlet = await _drained(harness.source())
        assert _numbers(inlet) == [0]
        assert inlet.rejected in {1, 2}  # a broker of MQTT 5 does not send what is too long
        again = await _drained(harness.source())
        assert (again.rows, again.rejected) == ([], 0)

    play(scene)


@pytest.mark.slow
def test_a_retained_copy_is_no_event(play: Callable[..., None]) -> None:
    """A retained message counts when it is published, and not again at each subscription."""

    async def scene(harness: Mqtt5Harness) -> None:
        await harness.broker.publish(TOPIC, [ndjson(make_rows(1))], retain=True)
        for expected in ([0], [], []):
            assert _numbers(await _drained(harness.source())) == expected

    play(scene)


@pytest.mark.slow
def test_messages_of_qos_0_arrive_too(play: Callable[..., None]) -> None:
    """What a publisher sends at most once arrives while the source is connected; nobody keeps it otherwise."""

    async def scene(harness: Mqtt5Harness) -> None:
        inlet = FakeInlet()
        async with _delivering(harness.source(), inlet):
            await inlet.wait_until(lambda: inlet.current[-1:] == [True])
            await harness.broker.publish(TOPIC, [ndjson([row]) for row in make_rows(20)], qos=0)
            await inlet.wait_rows(20)

    play(scene)


@pytest.mark.slow
def test_what_waits_is_bounded(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that sends more than asked for is not read from, then hung up on; memory is bounded, nothing is lost.

    Mutant: no bound, and more waits than may.
    """
    most = 0
    room = mqtt_link.Link._has_room

    def watched(self: mqtt_link.Link) -> bool:
        nonlocal most
        most = max(most, self._waiting_bytes)
        return room(self)

    monkeypatch.setattr(mqtt_link, "MAX_WAITING_BYTES", 5_000)
    monkeypatch.setattr(mqtt_link, "PATIENCE_S", 0.05)
    monkeypatch.setattr(mqtt_link.Link, "_has_room", watched)

    async def scene(harness: Mqtt5Harness) -> None:
        nonlocal most
        inlet = FakeInlet()
        inlet.hold()
        async with _delivering(harness.source(), inlet):
            await harness.feed(make_rows(200))
            await inlet.wait_held()
            await inlet.wait_until(lambda: len(inlet.current) > 1 and not inlet.current[-1])  # the link was given up
            inlet.resume()
            await inlet.wait_rows(200)
        assert _numbers(inlet) == list(range(200))
        assert most < 5_000 + 1_000
        monkeypatch.setattr(mqtt_link.Link, "_has_room", lambda self: watched(self) or True)
        inlet = FakeInlet()
        inlet.hold()
        async with _delivering(harness.source(), inlet):
            await harness.feed(make_rows(200))
            await inlet.wait_held()
            await asyncio.sleep(0.3)
            inlet.resume()
            await inlet.wait_rows(200)
        assert most > 5_000 + 1_000

    play(scene)


@pytest.mark.slow
def test_a_broker_with_tls_and_a_password(tmp_path: Path) -> None:
    """The certificate is checked against `ca_file`, and the password sent; a wrong one leaves the source asking.

    The inlet hears which of the two it is. Mutant: a certificate of another authority, which must not be believed.
    """
    for name in ("good", "evil"):
        _openssl(tmp_path, name)
    (tmp_path / "password").write_text("open sesame\n")
    tls = f"certfile {tmp_path}/good.pem\nkeyfile {tmp_path}/good.key\n"
    broker = Broker(tmp_path / "broker", listener=tls, passwords={"agent": "open sesame"})

    def source(ca: str, password: str = "password") -> MqttSource:
        table = MqttTable(
            url=f"mqtts://localhost:{broker.port}",
            topics=["site/#"],
            client_id=CLIENT,
            username="agent",
            password_file=str(tmp_path / password),
            ca_file=str(tmp_path / f"{ca}.pem"),
        )
        return MqttSource(table=table, retry_first_s=0.05, retry_limit_s=0.1)

    async def scene() -> None:
        await broker.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await source("good").deliver(FakeInlet(), asyncio.Event(), drain=True)
            (tmp_path / "wrong").write_text("close sesame\n")
            for refused, cause in ((source("evil"), Cause.UNTRUSTED), (source("good", "wrong"), Cause.REFUSED)):
                inlet = FakeInlet()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(refused.deliver(inlet, asyncio.Event(), drain=True), 1.0)
                assert set(inlet.causes[1:]) == {cause}
        finally:
            broker.kill()

    asyncio.run(scene())


def _openssl(folder: Path, name: str) -> None:
    """A certificate of its own authority for `localhost`."""
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
    out = ["-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *out],
        check=True,
        capture_output=True,
    )


GOOD: dict[str, Any] = {"url": "mqtt://127.0.0.1:1883", "topics": ["site/+/events", "#"], "client_id": "agent"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://127.0.0.1"},
        {"url": "mqtt://user:secret@127.0.0.1:1883"},
        {"url": "mqtt://127.0.0.1:99999999"},
        {"url": "mqtt://"},
        {"url": "mqtt://127.0.0.1/topic"},
        {"url": "mqtt://broker.example:1883", "username": "agent"},
        {"topics": []},
        {"topics": [""]},
        {"topics": ["a/#/b"]},
        {"topics": ["a+"]},
        {"topics": ["a\0"]},
        {"client_id": ""},
        {"password_file": "/nowhere/secret"},
        {"url": "mqtts://127.0.0.1", "ca_file": "/nowhere/secret"},
    ],
    ids=str,
)
def test_a_config_that_cannot_work_is_refused_at_start(wrong: dict[str, Any]) -> None:
    """The check names what is wrong, never a secret, and does not need the broker."""
    MqttSource(table=MqttTable(**GOOD)).check(COLUMNS)
    with pytest.raises(SourceUnreadable) as raised:
        MqttSource(table=MqttTable(**{**GOOD, **wrong})).check(COLUMNS)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_a_broker_that_is_away_is_asked_less_and_less_often() -> None:
    """Pauses grow to a limit, and no two agents keep step."""
    source = MqttSource(table=MqttTable(**GOOD))
    assert all(0.05 <= source._pause_s(0) <= 0.5 for _ in range(100))
    assert all(6 <= source._pause_s(1000) <= 60 for _ in range(100))
    assert len({source._pause_s(5) for _ in range(100)}) > 90


def test_a_stop_does_not_wait_for_a_broker_that_is_away() -> None:
    """Nobody listens: the source says that it is not current, and a stop ends it."""

    async def scene() -> None:
        inlet = FakeInlet()
        table = MqttTable(url="mqtt://127.0.0.1:9", topics=["#"], client_id=CLIENT)
        async with _delivering(MqttSource(table=table), inlet):
            await inlet.wait_until(lambda: inlet.current == [False, False])
        assert inlet.causes == [Cause.BACKLOG, Cause.UNREACHABLE]

    asyncio.run(scene())


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    """A password that cannot be read any more leaves the source asking, and is told as what it is."""

    async def scene() -> None:
        inlet = FakeInlet()
        table = MqttTable(**GOOD, username="agent", password_file=str(tmp_path / "gone"))
        async with _delivering(MqttSource(table=table), inlet):
            await inlet.wait_until(lambda: inlet.causes == [Cause.BACKLOG, Cause.UNREADABLE])

    asyncio.run(scene())


_frame_of = functools.partial(mqtt_payload.frame_of, columns=COLUMNS, max_bytes=1000)
ROW = ndjson(make_rows(1))


@pytest.mark.parametrize(
    ("payload", "rows", "rejected"),
    [
        (ROW, 1, 0),
        (ROW.strip(), 1, 0),
        (ROW * 3, 3, 0),
        (ROW.replace(b",", b",\n").replace(b"{", b"{\r\n\t"), 1, 0),
        (ROW + b"no event\n" + ROW, 2, 1),
        (b"", 0, 0),
        (b" \n", 0, 0),
        (ROW * 100, 0, 1),
        (b"[" + ROW.strip() + b"]", 0, 1),
        (b"\xff\n{", 0, 2),
    ],
)
def test_a_payload_is_an_object_or_lines_of_them(payload: bytes, rows: int, rejected: int) -> None:
    """An object may be written over several lines; what is neither costs itself alone."""
    frame = _frame_of([ROW, payload, ROW])
    assert (frame.batch.num_rows, frame.rejected) == (rows + 2, rejected)


@given(st.lists(st.binary(max_size=1100) | st.sampled_from([ROW, b"{", b'"', b"\n", b"}"]), max_size=8))
def test_no_payload_costs_another(payloads: list[bytes]) -> None:
    """Whatever stands beside them, good payloads become rows, and nothing is raised."""
    alone = sum(_frame_of([payload]).batch.num_rows for payload in payloads)
    assert _frame_of([*payloads, ROW]).batch.num_rows == alone + 1


def test_a_decoder_that_fails_costs_one_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    """What even the decoder cannot stand is found among the others, and counted."""
    decode = push.frame_of_ndjson

    def fail(data: bytes, columns: Any) -> Frame:
        if b"poison" in data:
            raise push.BodyRefused(push.Code.MALFORMED)
        return decode(data, columns)

    monkeypatch.setattr(push, "frame_of_ndjson", fail)
    frame = _frame_of([ROW, b"poison", ROW])
    assert (frame.batch.num_rows, frame.rejected) == (2, 1)


def test_only_what_the_broker_calls_a_copy_is_one() -> None:
    """The same bytes under the same id are a new event unless the broker says otherwise, or the session is another."""
    memory = Redelivery()
    first, again = Message(7, b"t", b"x", again=False), Message(7, b"t", b"x", again=True)
    assert not memory.knows(again)
    memory.add(first)
    assert memory.knows(again)
    assert not memory.knows(first)
    assert not memory.knows(Message(8, b"t", b"x", again=True))
    assert not memory.knows(Message(7, b"u", b"x", again=True))
    assert not memory.knows(Message(7, b"t", b"y", again=True))
    for mid in range(8, 8 + KEPT):
        memory.add(Message(mid, b"t", b"x", again=False))
    assert not memory.knows(again)
    assert memory.knows(Message(8, b"t", b"x", again=True))
    memory.forget()
    assert not memory.knows(Message(8, b"t", b"x", again=True))
