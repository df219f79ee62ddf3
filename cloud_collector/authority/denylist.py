"""What an authority writes into its list of the denied; `cloud_collector/denied.py` reads it and says what is in it.

Place: below the authority's folder.
Invariants: an entry is on the disk when the call returns, on a line of its own, whoever wrote the lines before; a
revocation adds few lines, for the collector reads them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloud_collector.errors import StoreFailed
from cloud_collector.files import write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cloud_collector.authority.index import Issued

NAME = "denied.txt"
MOST_LINES = 8
"""Beyond so many certificates of one subject, the subject is denied."""
_HEAD = b"# serial:HEX, id:spiffe://..., sha256:HEX of a certificate or its issuer; one a line; read while running\n"


def begin(folder: Path) -> None:
    """A list that denies nobody."""
    write(folder / NAME, _HEAD)


def by_subject(issued: Sequence[Issued]) -> bool:
    """Whether a revocation of these denies their subject, for they are too many to be denied one by one."""
    return (
        len(issued) > MOST_LINES
        and len({one.subject for one in issued}) == 1
        and issued[0].kind in {"agent", "analyst"}
    )


def append(folder: Path, issued: Sequence[Issued]) -> None:
    """Deny certificates; raises StoreFailed."""
    if by_subject(issued):
        lines = f"id:{issued[0].subject}  # {len(issued)} certificates, the last to {max(one.ends for one in issued)}\n"
    else:
        lines = "".join(f"{_entry(one)}  # {one.subject}\n" for one in issued)
    write(folder / NAME, so_far(folder) + lines.encode())


def so_far(folder: Path) -> bytes:
    """The list as it is, whose last line is over; raises StoreFailed."""
    try:
        text = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return _HEAD
    except OSError:
        raise StoreFailed(f"{NAME}: cannot be read") from None
    return text if text.endswith(b"\n") else text + b"\n"


def _entry(issued: Issued) -> str:
    """The line that denies a certificate: an issuer by its fingerprint, for it stands in others' chains."""
    return f"sha256:{issued.fingerprint}" if issued.kind == "issuer" else f"serial:{issued.serial:x}"
