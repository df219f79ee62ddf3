"""The list of certificates that are taken no more, read again whenever its file changes.

Place: the gate asks it once a call.
On disk: a text file of `serial:HEX`, `id:spiffe://...` and `sha256:HEX` (of a certificate, or of the one that issued
it), one a line, `#` begins a comment.
Invariants: a change counts from the next call on; one that the file's stamp does not show, after REREAD_S at the
latest; a list that cannot be read takes nothing back that was denied before.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from cloud_collector.errors import ConfigInvalid
from cloud_collector.telemetry import Event, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

REREAD_S = 5.0
"""How often the file is read again although its stamp is the same."""
_ENTRY = re.compile(r"serial:[0-9a-f]{1,40}|id:spiffe://[!-~]{1,300}|sha256:[0-9a-f]{64}")


class DenyList:
    """What is denied, as of now.

    Args:
        path: must be there at the start.

    Raises:
        ConfigInvalid: the file is missing or holds a line that is no entry.
    """

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._stamp: tuple[int, ...] | None = None
        self._read_at = monotonic()
        self._trouble = False
        try:
            self._stamp = _stamp(path)
            self._entries, wrong = _read(path)
        except OSError:
            raise ConfigInvalid(f"$.tls.denied_file: {path.name} cannot be read; an empty file denies nobody") from None
        if wrong:
            raise ConfigInvalid(f"$.tls.denied_file: line {wrong[0]}: serial:HEX, id:spiffe://... or sha256:HEX")

    def denies(self, *, serial: int, spiffe_id: str, fingerprints: Iterable[str]) -> bool:
        """Whether a certificate is on the list, by any of its names or by its issuer."""
        self._refresh()
        names = (f"serial:{serial:x}", f"id:{spiffe_id}", *(f"sha256:{one}" for one in fingerprints))
        return not self._entries.isdisjoint(names)

    def _refresh(self) -> None:
        now = self._monotonic()
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp and now - self._read_at < REREAD_S:
                return
            entries, wrong = _read(self._path)
        except OSError:
            self._say("unreadable")
            return
        self._read_at, self._stamp = now, stamp
        if wrong:
            self._say("malformed")
            self._entries |= entries
        else:
            self._entries, self._trouble = entries, False

    def _say(self, problem: str) -> None:
        if not self._trouble:
            emit(Event.DENY_LIST_UNUSABLE, problem=problem)
        self._trouble = True


def _stamp(path: Path) -> tuple[int, ...]:
    stat = os.stat(path)  # noqa: PTH116  # once a call: Path.stat costs twice as much
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> tuple[frozenset[str], list[int]]:
    """The entries, and the numbers of the lines that are none."""
    entries, wrong = set(), []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if entry and _ENTRY.fullmatch(entry):
            entries.add(entry)
        elif entry:
            wrong.append(number)
    return frozenset(entries), wrong
