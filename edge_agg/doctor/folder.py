"""The state folder and its journal: rights, room, whether the file is whole and the books follow.

Invariant: the journal is opened read-only; of its tables only those of plans, charges and releases are read.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from edge_agg.accounts import promised
from edge_agg.audit.books import open_books
from edge_agg.audit.recount import recount
from edge_agg.config import bytes_of
from edge_agg.doctor.finding import Finding, fine, odd, wrong
from edge_agg.errors import JournalFailed
from edge_agg.report.state import folder_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.config import Config

LEAST_FREE = 64 << 20
"""Free bytes below which a full disk is near."""
_VOLATILE = {"tmpfs", "ramfs"}


def examine_folder(config: Config) -> Iterator[Finding]:
    """Look at the state folder, and at the journal in it if there is one."""
    folder = Path(config.agent.state)
    if not folder.is_dir():
        yield odd("state folder", "is not there yet", "Start the agent once: it makes the folder.")
        return
    yield _rights(folder)
    yield _room(config, folder)
    if not (folder / "journal.sqlite").exists():
        yield odd("journal", "is not there yet", "Start the agent once: it makes the journal.")
        return
    whole = _integrity(folder)
    yield whole
    if not whole.remedy:
        yield _books(config, folder)


def _rights(folder: Path) -> Finding:
    about, me = "state folder", os.geteuid()
    places = [folder, *(path for path in folder.glob("**/*") if not path.is_symlink())]
    for path in places:
        try:
            found = path.stat()
        except OSError:
            continue  # it went away meanwhile, as SQLite's own files do
        if found.st_mode & 0o077:
            problem = f"{path} may be read or written by others (mode {found.st_mode & 0o777:04o})"
            return wrong(about, problem, f"Take their rights away: chmod -R go= {folder}")
        if me not in {0, found.st_uid}:
            problem = f"{path} belongs to another user (uid {found.st_uid})"
            return wrong(about, problem, "Run doctor as the agent's user, or give the folder to it with chown -R.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return wrong(about, "cannot be written", "Mount its file system read-write, or give the folder to this user.")
    return fine(about, "its owner's alone")


def _room(config: Config, folder: Path) -> Finding:
    about = "disk"
    used, limit, free = folder_bytes(folder), bytes_of(config.disk.limit), shutil.disk_usage(folder).free
    kind = _file_system(folder)
    if kind in _VOLATILE:
        problem = f"the state folder lies on {kind}, which a restart of the machine empties"
        return wrong(about, problem, "Put [agent].state on a disk: without its journal the ledger begins anew.")
    if free < LEAST_FREE:
        problem = f"{free >> 20} MiB are free beside the state folder"
        return wrong(about, problem, "Make room: on a full disk the agent takes nothing in and draws nothing.")
    if used > limit:
        problem = "the state folder takes more than [disk].limit"
        return wrong(about, problem, "Raise the limit, or see with `edge-agg status` what waits to be sent.")
    if used + free < limit:
        problem = f"[disk].limit is {limit >> 20} MiB, and the file system has only {(used + free) >> 20} MiB for it"
        return odd(about, problem, "Lower the limit, so that the agent says in good time that it is full.")
    return fine(about, f"{free >> 20:,} MiB free, within [disk].limit")


def _integrity(folder: Path) -> Finding:
    about, remedy = (
        "journal",
        "Look at the disk. Keep a copy of the folder; restore nothing older: see docs/operate.md.",
    )
    try:
        db = apsw.Connection(str(folder / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            db.set_busy_timeout(2000)
            answer = db.execute("PRAGMA quick_check(1)").get  # its text can quote a row, so it is not shown
        finally:
            db.close()
    except apsw.Error as error:
        return wrong(about, f"cannot be read ({type(error).__name__})", remedy)
    return fine(about, "the file is whole") if answer == "ok" else wrong(about, "the file is damaged", remedy)


def _books(config: Config, folder: Path) -> Finding:
    about = "ledger"
    try:
        with open_books(folder) as books:
            if books.agent != config.agent.name:
                problem = "the journal belongs to another agent"
                return wrong(about, problem, "Correct [agent].name, or [agent].state: no two agents share a folder.")
            found = recount(books, promised(config))
    except JournalFailed as error:
        return wrong(about, str(error), "Start the agent once: it brings an older journal to this version.")
    if found.differences:
        problem = f"{len(found.differences)} things do not follow"
        return wrong(about, problem, "Read them with `edge-agg ledger verify`, and keep a copy of the folder.")
    return fine(about, f"everything follows, {found.releases:,} releases")


def _file_system(folder: Path) -> str:
    """The kind of file system that a folder lies on; empty if that cannot be told."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2:3] == [wanted]:
            return kind.split()[0]
    return ""
