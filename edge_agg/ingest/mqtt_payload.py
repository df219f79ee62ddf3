"""Payloads of MQTT in, one frame out.

Place: steps 1 and 2, under `mqtt.py`.
Invariants: a payload is one JSON object, which may be written over several lines, or objects, one a line; what is
neither costs itself and is counted; nothing is raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_agg.ingest import push
from edge_agg.ingest.lines import BAD_LINE
from edge_agg.ingest.source import Frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_agg.contract.plan import ColumnType

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def frame_of(payloads: Sequence[bytes], columns: Mapping[str, ColumnType], *, max_bytes: int) -> Frame:
    """Make one frame of some payloads; one that is longer than `max_bytes` is rejected unread."""
    kept = [_lines(payload) for payload in payloads if len(payload) <= max_bytes]
    overlong = len(payloads) - len(kept)
    try:
        whole = push.frame_of_ndjson(b"\n".join(kept), columns)
    except push.BodyRefused:
        frames = [frame for text in kept if (frame := _alone(text, columns)) is not None]
        whole = push.joined(frames, columns)
        overlong += len(kept) - len(frames)
    return Frame(part=None, batch=whole.batch, rejected=whole.rejected + overlong, last=True)


def _alone(text: bytes, columns: Mapping[str, ColumnType]) -> Frame | None:
    """The frame of one payload that costs no other what it costs itself."""
    try:
        return push.frame_of_ndjson(text, columns)
    except push.BodyRefused:
        return None


def _lines(payload: bytes) -> bytes:
    """The payload as lines of one object each; between the tokens of JSON, a line's end is as good as a space."""
    text = payload.strip()
    if b"\n" in text:
        try:
            _OBJECT.decode(text)
        except BAD_LINE:
            return text
        return text.replace(b"\n", b" ")
    return text
