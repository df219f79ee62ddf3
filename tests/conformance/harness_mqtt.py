"""MQTT, through a real Mosquitto, both versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edge_agg.config.tables import MqttTable
from edge_agg.ingest.mqtt import MqttSource
from edge_agg.ingest.mqtt_link import Address, Link
from tests.conformance.broker import Broker
from tests.conformance.harness import CANARY, SILENT, Answer, Rows, ndjson

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = "edge-under-test"
TOPIC = "site/events"


class Mqtt5Harness:
    """A broker, and a client that publishes each row as a message; see `Harness`."""

    tells: ClassVar[bool] = False
    keeps: ClassVar[bool] = True
    finite: ClassVar[bool] = True
    slow: ClassVar[bool] = True
    version: ClassVar[Literal["3.1.1", "5"]] = "5"

    def __init__(self, folder: Path) -> None:
        self.broker = Broker(folder / "broker")

    async def start(self) -> None:
        """Start the broker, and let it know the client: it keeps messages from then on."""
        await self.broker.start()
        address = Address(host="127.0.0.1", port=self.broker.port, client_id=CLIENT, version=self.version)
        link = Link(address, ["site/#"])
        await link.open()
        await link.wait_caught_up()
        await link.close()

    async def close(self) -> None:
        """End the broker."""
        self.broker.kill()

    def source(self) -> MqttSource:
        """A source under the same client id each time."""
        url = f"mqtt://127.0.0.1:{self.broker.port}"
        table = MqttTable(url=url, topics=["site/#"], client_id=CLIENT, version=self.version)
        return MqttSource(table=table, retry_first_s=0.05, retry_limit_s=0.2)

    async def feed(self, rows: Rows) -> Answer:
        """Publish a message a row."""
        await self.broker.publish(TOPIC, [ndjson([row]) for row in rows])
        return SILENT

    async def feed_raw(self, data: bytes) -> Answer:
        """Publish a message."""
        await self.broker.publish(TOPIC, [data])
        return SILENT

    async def end(self) -> None:
        """Nothing ends a topic."""

    def spoiled(self) -> list[MqttSource]:
        """A password in the address; topics and messages are not looked at."""
        table = MqttTable(url=f"mqtt://user:{CANARY}@127.0.0.1:1", topics=["site/#"], client_id=CLIENT)
        return [MqttSource(table=table)]

    def hostile(self) -> list[bytes]:
        """Nothing of its own: a message is text."""
        return []


class Mqtt311Harness(Mqtt5Harness):
    """The same with the older protocol."""

    version: ClassVar[Literal["3.1.1", "5"]] = "3.1.1"


HARNESSES: dict[str, type] = {"mqtt5": Mqtt5Harness, "mqtt311": Mqtt311Harness}
