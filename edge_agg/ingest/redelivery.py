"""Tells messages that a broker sends again from new ones.

Place: step 1, under `mqtt.py`.
Invariants: only a message that the broker itself marks as sent before is ever told to be known, and only if its packet
id, topic and payload are those of one that was taken in the same session; memory is bounded.

QoS 1 means at least once: where the connection is lost between the moment a message is safe and the broker's receipt of
the acknowledgement, it comes again, under the same packet id. A process that was killed remembers nothing; what it had
not acknowledged, `WINDOW` messages at most, may then count twice.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agg.ingest.mqtt_link import Message

KEPT = 4096
"""More messages than a broker leaves unacknowledged."""


class Redelivery:
    """What was taken last, by packet id."""

    def __init__(self) -> None:
        self._taken: OrderedDict[int, int] = OrderedDict()

    def forget(self) -> None:
        """Start anew: the broker has no session, so packet ids mean other messages now."""
        self._taken.clear()

    def add(self, message: Message) -> None:
        """Note that a message is safe."""
        if message.mid:
            self._taken[message.mid] = hash((message.topic, message.payload))
            self._taken.move_to_end(message.mid)
            if len(self._taken) > KEPT:
                self._taken.popitem(last=False)

    def knows(self, message: Message) -> bool:
        """Whether the message was taken before."""
        return message.again and self._taken.get(message.mid) == hash((message.topic, message.payload))
