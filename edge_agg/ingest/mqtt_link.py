"""One connection to an MQTT broker: paho's thread on one side, the event loop on the other.

Place: step 1, under `mqtt.py`.
Invariants: nothing is acknowledged but by :meth:`Link.ack`, and copies of old states (the retain flag); what waits here
is bounded in bytes, whatever the broker does; a link that is lost stays lost, and what waited in it is
dropped, because the broker sends it again; no error holds more than a kind.

Why paho and not aiomqtt, which stands on it: aiomqtt acknowledges a message before it hands it over.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agg.ingest.source import Cause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paho.mqtt.client import ConnectFlags, DisconnectFlags, MQTTMessage
    from paho.mqtt.reasoncodes import ReasonCode

MAX_MESSAGE_BYTES = 1 << 20
"""A longer message is no event: a broker of MQTT 5 does not even send it."""
WINDOW = 64
"""Unacknowledged messages that a broker of MQTT 5 is asked to send at most; one of 3.1.1 has a bound of its own."""
SESSION_S = 35 * 86_400
"""How long a broker of MQTT 5 keeps what an agent has not acknowledged after the agent is gone."""
KEEPALIVE_S = 20
CONNECT_S = 10.0
MAX_WAITING_BYTES = 16 << 20
"""Messages that arrived and are not looked at yet; reading from the broker stops there. (Mosquitto 2.0.11 sends more
than `WINDOW`, and messages of QoS 0 know no window.)"""
PATIENCE_S = KEEPALIVE_S / 2
"""How long reading may stop before the connection is given up, seconds: what was not acknowledged comes again."""
_OVERHEAD = 500


class LinkLost(Exception):
    """No connection: try again later. The text is a kind of failure and never holds what the broker said."""

    def __init__(self, kind: str, cause: Cause = Cause.UNREACHABLE) -> None:
        super().__init__(kind)
        self.cause = cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Which broker, and as whom."""

    host: str
    port: int
    client_id: str
    version: Literal["3.1.1", "5"] = "5"
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the broker sent it."""

    mid: int
    """Its packet id; 0 if it was published at QoS 0, and nobody waits for an acknowledgement."""
    topic: bytes
    payload: bytes
    again: bool
    """Whether the broker says that it may have sent it before."""


class Link:
    """A connection, from opening to loss; build another one to connect again."""

    def __init__(self, address: Address, topics: Sequence[str]) -> None:
        self.resumed = False
        """Whether the broker had kept a session for this client."""
        self.gone = asyncio.Event()
        """Set once the connection is lost."""
        self._address = address
        self._topics = topics
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Message] = []
        self._waiting_bytes = 0
        self._turn = threading.Condition()  # over the three around it, which both threads touch
        self._woken = False
        self._stir = asyncio.Event()  # for the one who waits for messages
        self._lost: LinkLost | None = None
        self._connected = self._subscribed = self._closed = False
        self._handed = 0
        self._news = asyncio.Event()  # for the one who waits to be caught up
        self._since_probe = 0
        self._probe: tuple[int | None, asyncio.Future[bool]] | None = None
        self._client = self._build()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    async def open(self) -> None:
        """Connect, and begin to subscribe: what the broker kept arrives before it has answered to that.

        Raises:
            LinkLost: the broker cannot be reached, or it refuses the client.
        """
        self._thread.start()
        while not self._connected:
            await self._wait_stir()

    async def wait_messages(self) -> list[Message]:
        """Come back with everything that has arrived, once anything has.

        Raises:
            LinkLost: also if something waits: the broker sends it again.
        """
        while True:
            with self._turn:
                self._woken = False
                self._waiting_bytes = 0
                arrived, self._waiting = self._waiting, []
                self._turn.notify()
            if arrived and self._lost is None:
                self._handed += len(arrived)
                return arrived
            await self._wait_stir()

    def check(self) -> None:
        """Raise LinkLost if the connection is gone."""
        if self._lost is not None:
            raise LinkLost(str(self._lost), self._lost.cause)

    def ack(self, messages: Sequence[Message]) -> None:
        """Tell the broker that it need not keep these any longer, in the order in which they came."""
        for message in messages:
            if message.mid:
                with suppress(OSError, ValueError):  # lost in between; the broker sends them again
                    self._client.ack(message.mid, 1)
        self._handed -= len(messages)
        self._news.set()

    async def wait_caught_up(self) -> bool:
        """Ask the broker for a sign of life, and say whether next to nothing came before it.

        The broker answers in order, so what it kept for this client and may send comes first. To give up a subscription
        that never was is the one request with an answer that changes nothing.
        """
        while not self._subscribed:
            self.check()
            self._news.clear()
            await self._news.wait()
        await self._wait_idle()
        self._since_probe = 0
        answered: asyncio.Future[bool] = self._loop.create_future()
        mid = None
        with suppress(OSError, ValueError):
            _, mid = self._client.unsubscribe(f"edge-agg/{self._address.client_id}/caught-up")
        self._probe = (mid, answered)
        few = await answered
        await self._wait_idle()
        return few

    async def _wait_idle(self) -> None:
        """Come back once everything that arrived has been acknowledged."""
        while self._lost is None and (self._waiting or self._handed):
            self._news.clear()
            await self._news.wait()
        self.check()

    async def close(self) -> None:
        """Say good-bye, so that the broker need not find out; the session stays there."""
        with self._turn:
            self._closed = True
            self._turn.notify()
        with suppress(OSError, ValueError):
            self._client.disconnect()
        for _ in range(50):
            if not self._thread.is_alive():
                return
            await asyncio.sleep(0.01)

    async def _wait_stir(self) -> None:
        self.check()
        await self._stir.wait()
        self._stir.clear()

    def _build(self) -> Client:
        address, modern = self._address, self._address.version == "5"
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=address.client_id,
            clean_session=None if modern else False,
            protocol=MQTTv5 if modern else MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_S
        if address.tls is not None:
            address.tls.sslsocket_class = _ClosingSocket
            client.tls_set_context(address.tls)
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        client.on_socket_register_write = _leave_to_the_thread
        return client

    # From here on: paho's thread.

    def _run(self) -> None:
        lost = LinkLost("connection_closed")
        try:
            self._client.connect(
                self._address.host, self._address.port, keepalive=KEEPALIVE_S, **_asked(self._address.version)
            )
            while self._client.loop() == MQTTErrorCode.MQTT_ERR_SUCCESS:  # unlike loop_forever, an ack wakes this one
                pass
        except Exception as error:  # noqa: BLE001 - whatever paho or a broken packet raises, the link is lost
            cause = Cause.UNTRUSTED if isinstance(error, ssl.SSLError) else Cause.UNREACHABLE
            lost = LinkLost(type(error).__name__, cause)
        sock = self._client.socket()
        if sock is not None:  # paho leaves it open where a callback or a broken packet raised
            with suppress(OSError):
                sock.close()
        self._tell(lost)

    def _tell(self, lost: LinkLost | None = None) -> None:
        """Wake the event loop."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._heard, lost)

    def _on_connect(
        self, client: Client, _user: object, flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._tell(LinkLost(_kind(reason), Cause.REFUSED))
            client.disconnect()
            return
        self.resumed = bool(flags.session_present)
        self._connected = True
        self._tell()
        if self._address.version == "5":
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            client.subscribe([(topic, options) for topic in self._topics])
        else:
            client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(
        self, client: Client, _user: object, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        refused = [reason for reason in reasons if reason.is_failure]
        if refused:
            self._tell(LinkLost(f"subscription: {_kind(refused[0])}", Cause.REFUSED))
            client.disconnect()
            return
        self._subscribed = True
        self._tell()

    def _on_unsubscribe(
        self, _client: Client, _user: object, mid: int, _reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answered, mid, self._since_probe)

    def _on_message(self, _client: Client, _user: object, message: MQTTMessage) -> None:
        if message.retain:  # a copy of an old state, sent because of a subscription, not because something happened
            if message.qos:
                self._client.ack(message.mid, 1)
            return
        self._since_probe += 1
        arrived = Message(message.mid, message._topic, bytes(message.payload), message.dup)  # noqa: SLF001 - its bytes; `topic` raises where they are not UTF-8
        with self._turn:
            if not self._turn.wait_for(self._has_room, PATIENCE_S):
                raise LinkLost("no_room")
            self._waiting.append(arrived)
            self._waiting_bytes += len(arrived.payload) + _OVERHEAD
            woken, self._woken = self._woken, True
        if not woken:
            self._tell()

    def _has_room(self) -> bool:
        return self._waiting_bytes < MAX_WAITING_BYTES or self._closed

    def _on_disconnect(
        self, _client: Client, _user: object, flags: DisconnectFlags, reason: ReasonCode, _p: Properties | None
    ) -> None:
        cause = Cause.REFUSED if flags.is_disconnect_packet_from_server else Cause.UNREACHABLE
        self._tell(LinkLost(_kind(reason), cause))

    # And from here on the event loop again.

    def _heard(self, lost: LinkLost | None) -> None:
        if lost is not None and self._lost is None:
            self._lost = lost
            self.gone.set()
            if self._probe is not None and not self._probe[1].done():
                self._probe[1].set_result(False)
        self._news.set()
        self._stir.set()

    def _answered(self, mid: int, came: int) -> None:
        few = WINDOW // 2 if self._address.version == "5" else 8  # brokers of 3.1.1 send 10 at a time, or more
        if self._probe is not None and self._probe[0] == mid and not self._probe[1].done():
            self._probe[1].set_result(came < few)


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself where the handshake fails; paho forgets it there."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of the parent
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _leave_to_the_thread(_client: Client, _user: object, _sock: object) -> None:
    """Being there, this keeps paho from writing to the socket in whatever thread acknowledges."""


def _asked(version: str) -> dict[str, Any]:
    """What to ask of the broker when connecting, beside what every version knows."""
    if version != "5":
        return {}
    asked = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    asked.SessionExpiryInterval = SESSION_S
    asked.ReceiveMaximum = WINDOW
    asked.MaximumPacketSize = MAX_MESSAGE_BYTES + (1 << 16) * 2  # with a topic and properties
    return {"clean_start": False, "properties": asked}


def _kind(reason: ReasonCode) -> str:
    """Out of the closed list of reasons; what the broker wrote beside it is not looked at."""
    return str(reason.getName()).lower().replace(" ", "_")
