"""When the certificates end that somebody must renew by hand: the collector's own, its CA's, the issuer's.

Place: beside the sealer, in the one process of a collector that looks after things.
Invariants: files are only read; one that cannot be read is not judged here, for whoever needs it says so.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from cryptography import x509

from cloud_collector import metrics
from cloud_collector.telemetry import Event, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cloud_collector.config import Tls

EVERY_S = 6 * 3600.0
"""How often it is looked at, and said."""
NOTICE = timedelta(days=30)
"""How long before its end it is said of a certificate; of one that lives shortly, for the last third of its life."""


def look(tls: Tls, now: datetime) -> None:
    """Tell those who watch when each certificate ends, and those who read the log which of them ends soon."""
    for kind, certificate in _by_hand(tls):
        ends = certificate.not_valid_after_utc
        metrics.certificate_ends(kind, ends.timestamp())
        if ends - now < min(NOTICE, (ends - certificate.not_valid_before_utc) / 3):
            emit(Event.CERTIFICATE_AGED, certificate=kind, ends=f"{ends:%Y-%m-%dT%H:%MZ}")


async def look_until(
    waits: Sequence[asyncio.Task[Literal[True]]],
    tls: Tls | None,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Look now and from time to time until one of the waits is over; without TLS do nothing."""
    while tls is not None and not any(wait.done() for wait in waits):
        look(tls, now())
        await asyncio.wait(waits, timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED)


def _by_hand(tls: Tls) -> Iterator[tuple[str, x509.Certificate]]:
    files = [("server", tls.cert_file), ("ca", tls.ca_file)]
    if tls.authority is not None:
        files.append(("issuer", tls.authority / "issuer.pem"))
    for kind, path in files:
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError):
            continue
        # Of anchors the one that stays longest counts: an old root is left there until nobody needs it.
        yield kind, max(found, key=lambda one: one.not_valid_after_utc) if kind == "ca" else found[0]
