"""What a request to `POST /v1/events` means, and its answer.

Place: steps 1 and 2 of an event's way, under `http.py`; the wire is `http_wire.py`'s.
Invariants: a request is judged by its head before its body is read; a body is one frame, so a batch is taken whole or
not at all, and `ok` is answered once it is safe; an answer holds a code, and the number of rows that were rejected.
That number is exact, and goes to the device's own process that sent those rows: nothing that leaves the device has it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_agg.contract.address import is_loopback
from edge_agg.ingest import arrow_body, push
from edge_agg.ingest.inflate import CODINGS, inflate
from edge_agg.ingest.push import BodyRefused, Code
from edge_agg.ingest.source import InletFull

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.ingest.source import Frame, Inlet

EVENTS, HEALTH = b"/v1/events", b"/healthz"
_ARROW = "application/vnd.apache.arrow.stream"
_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json", _ARROW}
"""Never text/plain or a form: a web page may send those to any address without asking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request without its body."""

    method: bytes
    target: bytes
    headers: Mapping[bytes, bytes]
    """By name in lower case; of a name that comes twice, the last."""
    version: bytes = b"1.1"

    def text(self, name: bytes) -> str:
        """A header's value; empty without one."""
        return self.headers.get(name, b"").decode("latin-1").strip()

    @property
    def length(self) -> int | None:
        """The body's bytes, if they are said."""
        said = self.headers.get(b"content-length")
        return None if said is None else int(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the caller is told."""

    status: int
    code: str
    rejected: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """In JSON, as a line."""
        rejected = {} if self.rejected is None else {"rejected": self.rejected}
        return json.dumps({"code": self.code, **rejected}).encode() + b"\n"


MISDIRECTED = Reply(status=421, code="misdirected")
"""A name that is not this machine's, perhaps a web page's whose name was pointed here."""
BUSY = Reply(status=503, code="busy", headers={"Retry-After": "1"})
"""More connections, or a stop."""
CROWDED = Reply(status=429, code="full", headers={"Retry-After": "1"})
"""Too many bytes on their way at once."""
TOO_LARGE = Reply(status=413, code=Code.TOO_LARGE)
SLOW = Reply(status=408, code="slow")
FAILED = Reply(status=500, code="failed")
"""The agent is ending."""
_REFUSED = {Code.TOO_LARGE: 413}


@dataclass(slots=True, kw_only=True)
class Desk:
    """Judges requests and hands their rows over."""

    inlet: Inlet
    token: bytes | None
    """What callers must show."""
    max_body_bytes: int
    local_names_only: bool
    """Whether the request must name a loopback host: so on TCP, where a browser could be made to call."""
    _decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    _behind: asyncio.TimerHandle | None = None

    def judge(self, head: Head) -> Reply | None:
        """Answer what needs no body; None if the body is wanted."""
        if self.local_names_only and not _names_this_machine(head.text(b"host")):
            return MISDIRECTED
        path, _, _ = head.target.partition(b"?")
        if path == HEALTH:
            return _for_method(head, b"GET") or Reply(status=200, code="ok")
        if path != EVENTS:
            return Reply(status=404, code="not_found")
        return _for_method(head, b"POST") or self._admit(head)

    def _admit(self, head: Head) -> Reply | None:
        scheme, _, shown = head.headers.get(b"authorization", b"").partition(b" ")
        knows = self.token is None or (scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), self.token))
        if not knows:
            return Reply(status=401, code="unauthorized", headers={"WWW-Authenticate": "Bearer"})
        if _media_type(head) not in _TYPES:
            return Reply(status=415, code="content_type", headers={"Accept-Post": ", ".join(sorted(_TYPES))})
        if _coding(head) not in {"", "identity", *CODINGS}:
            return Reply(status=415, code="content_encoding", headers={"Accept-Encoding": ", ".join(CODINGS)})
        if head.length is None and b"transfer-encoding" not in head.headers:
            return Reply(status=411, code="length_required")
        return TOO_LARGE if (head.length or 0) > self.max_body_bytes else None

    async def accept(self, head: Head, body: bytes) -> Reply:
        """Decode a body off the loop, and hand its rows over; answer once they are safe."""
        try:
            async with self._decoding:
                frame = await asyncio.to_thread(push.guarded, lambda: self._decode(head, body))
        except BodyRefused as refused:
            reply = Reply(status=_REFUSED.get(refused.code, 400), code=refused.code)
            frame = push.empty(self.inlet.columns, rejected=1)
        else:
            reply = Reply(status=200, code="ok", rejected=frame.rejected)
            if frame.rejected and not frame.batch.num_rows:
                reply = Reply(status=400, code=Code.NOTHING_FITS, rejected=frame.rejected)
        return await self._take(frame, reply) if frame.batch.num_rows or frame.rejected else reply

    async def _take(self, frame: Frame, reply: Reply) -> Reply:
        try:
            await self.inlet.take(frame)
        except InletFull as full:
            self._fall_behind(full.retry_s)
            return Reply(status=429, code="full", headers={"Retry-After": str(max(1, math.ceil(full.retry_s)))})
        self._catch_up()
        return reply

    def _decode(self, head: Head, body: bytes) -> Frame:
        coding = _coding(head)
        if coding in CODINGS:
            body = inflate(body, coding, limit=self.max_body_bytes)
        if _media_type(head) == _ARROW:
            return arrow_body.frame_of_ipc(body, self.inlet.columns, limit=self.max_body_bytes)
        if body.count(b"\n") > arrow_body.MAX_ROWS:  # "{}" is a row of nulls, and takes ten times its bytes in memory
            raise BodyRefused(Code.TOO_LARGE)
        return push.frame_of_ndjson(body, self.inlet.columns)

    def _fall_behind(self, retry_s: float) -> None:
        """A caller holds rows back: windows wait for it, but not for ever for one that has given up."""
        self.close()
        self.inlet.is_current(False)
        self._behind = asyncio.get_running_loop().call_later(10 * max(1.0, retry_s), self._catch_up)

    def _catch_up(self) -> None:
        if self._behind is not None:
            self.close()
            self.inlet.is_current(True)

    def close(self) -> None:
        """Forget who waits."""
        if self._behind is not None:
            self._behind.cancel()
            self._behind = None


def _for_method(head: Head, method: bytes) -> Reply | None:
    if head.method == method:
        return None
    return Reply(status=405, code="method", headers={"Allow": method.decode()})


def _media_type(head: Head) -> str:
    return head.text(b"content-type").partition(";")[0].strip().lower()


def _coding(head: Head) -> str:
    return head.text(b"content-encoding").lower()


def _names_this_machine(host: str) -> bool:
    return is_loopback(host) or is_loopback(f"{host}:80")
