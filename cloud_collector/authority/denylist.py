"""What an authority writes into its list of the denied; `cloud_collector/denied.py` reads it and says what is in it.

Place: below the authority's folder.
Invariants: an entry is on the disk when the call returns, on a line of its own, whoever wrote the lines before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloud_collector.errors import StoreFailed
from cloud_collector.files import write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cloud_collector.authority.index import Issued

NAME = "denied.txt"
_HEAD = b"# serial:HEX, id:spiffe://..., sha256:HEX of a certificate or its issuer; one a line; read while running\n"


def begin(folder: Path) -> None:
    """A list that denies nobody."""
    write(folder / NAME, _HEAD)


def append(folder: Path, issued: Iterable[Issued]) -> None:
    """Deny certificates; raises StoreFailed."""
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
