"""The statuses of what still waits, where the tables are of a version that did not keep them.

Place: below both of a landing's stores, when one brings its tables up to date.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from edge_agg.contract import codec
from edge_agg.contract.errors import MalformedRelease

if TYPE_CHECKING:
    from cloud_collector.landing_store import Statements


def say_what_waits(db: Statements) -> None:
    """Note what each says of itself; what was sealed before is not known here, and counts as released."""
    query = "SELECT id, header FROM waiting WHERE length(payload) = 0"  # the others have values
    for landing_id, header in db.execute(query).fetchall():
        with suppress(MalformedRelease):  # `verify` tells of it
            status = codec.open_sealed(header, b"")[0].status
            db.execute("UPDATE releases SET status = ? WHERE id = ?", (status.value, landing_id))
