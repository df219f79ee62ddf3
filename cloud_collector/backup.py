"""Backup while running, and restore into an empty folder.

Place: `cloud-collector backup`, `restore` and `mark-restored`. A landing on a server is copied by that server's tools.
On disk: the data folder as a collector would find it, each table's log summed up in one entry, and `backup.json` with
the sha256 of every file.
Invariants:
- The landing is copied first: whatever is sealed meanwhile still waits in the copy, and is known again by its key when
  it is sealed from there. So the copy loses nothing that was acked before it began, and doubles nothing. What was acked
  meanwhile may be in the copy's lake alone, and counts. Roll-ups are not copied: they are made again from that lake.
- A backup appears whole or not at all, and on the disk; a restore checks every file, and writes into no folder that
  holds anything.
- A restored landing knows that it is one. Its keys and heads refuse every conflict that the backup knew; what was acked
  after the backup is gone, for agents keep no payload of it: where an agent's chain goes on further along, the windows
  between are `lost`, in answers and in `cloud-collector fleet`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import apsw

from cloud_collector import landing_rows
from cloud_collector.deltalog import Snapshot
from cloud_collector.errors import CollectorError, ConfigInvalid, StoreFailed
from cloud_collector.folderstore import sync
from cloud_collector.lake import Lake
from cloud_collector.lake_rows import table_schema
from cloud_collector.landing_file import LandingFile
from cloud_collector.objectstore import Missing
from cloud_collector.plans import PlanRegistry
from edge_agg.contract.errors import PlanInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from cloud_collector.landing_store import Store
    from cloud_collector.plans import RegisteredPlan
    from edge_agg.contract.plan import Plan, PlanHash

MANIFEST = "backup.json"
_SQLITE = ("landing.sqlite", "tokens.sqlite")
"""In the order in which they are copied."""
_LEFT = frozenset({MANIFEST, "rollups.sqlite"})
"""Stays in the backup: the manifest, and roll-ups where an earlier version copied them, perhaps older than the lake."""
_TRIES = 3


def backup(data: Path, target: Path, lake: Lake | None = None) -> int:
    """Copy a collector's data folder; how many bytes that is.

    Args:
        data: the folder, of a collector that may be running.
        target: must not exist.
        lake: where the tables are; in the data folder if None.

    Raises:
        ConfigInvalid: there is nothing to copy, or the target exists.
        StoreFailed: the disk refused, or a table was changed too often meanwhile; nothing is left of the target.
    """
    if not (data / _SQLITE[0]).exists():
        raise ConfigInvalid("$.collector.data: no collector has run here yet")
    if target.exists():
        raise ConfigInvalid("the backup's folder exists already")
    with _drafted(target, "the backup was not made") as draft:
        draft.mkdir(mode=0o700, parents=True)
        for name in _SQLITE:
            if (data / name).exists():
                _copy_sqlite(data / name, draft / name)
        shutil.copytree(data / "plans", draft / "plans", dirs_exist_ok=True)
        for one in PlanRegistry(draft / "plans").list():
            _copy_table(lake or Lake(data / "lake"), one.plan, one.hash, Lake(draft / "lake"))
        size = _write_manifest(draft)
        draft.rename(target)
        sync(target.parent)
    return size


def restore(source: Path, data: Path, *, who: str, lake: Lake | None = None) -> datetime:
    """Bring a backup back as a collector's data folder.

    Args:
        source: what :func:`backup` made.
        data: must not exist, or be empty.
        who: decided it, for the audit log.
        lake: where the tables go, which must be empty there; to the data folder if None.

    Returns:
        When the backup was made.

    Raises:
        ConfigInvalid: the source is no backup, or the data folder holds something.
        StoreFailed: a file of the backup is not what it was, or the disk refused.
    """
    if data.exists() and any(data.iterdir()):
        raise ConfigInvalid("$.collector.data: the folder is not empty; move it away first")
    with _drafted(data, "the backup was not restored") as draft:
        made = _check_manifest(source)
        shutil.copytree(source, draft, ignore=lambda _, names: _LEFT.intersection(names))
        draft.chmod(0o700)
        if lake is not None:
            _claim(draft, lake)
            _put_tables(draft, lake)
        _mark_restored(draft, who)
        _sync_tree(draft)
        if data.exists():
            data.rmdir()
        draft.rename(data)
        sync(data.parent)
    return made


def mark_restored(landing: Store, plans: Iterable[RegisteredPlan], *, who: str) -> None:
    """Note in a landing that it came out of a backup, so that what may be lost is said.

    Raises:
        Broken: nothing was noted.
    """
    every_us = {bytes(one.hash): one.plan.every // timedelta(microseconds=1) for one in plans}
    mark = partial(landing_rows.mark_restored, landing.db, every_us, who=who)
    landing.run(lambda: landing.transact(mark, ()))


@contextmanager
def _drafted(place: Path, failure: str) -> Iterator[Path]:
    """A folder beside a place, to be renamed to it; gone if that does not come about, whatever the reason.

    Raises:
        StoreFailed: what the disk, a database or the bucket's client raised, by its name: its text may quote keys.
    """
    draft = place.with_name(f".{place.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        yield draft
    except (CollectorError, PlanInvalid):
        raise
    except Exception as error:  # noqa: BLE001  # of SQLite, of the disk, of the bucket's client
        raise StoreFailed(f"{failure} ({type(error).__name__}): look at the disks, and at the bucket") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_sqlite(source: Path, target: Path) -> None:
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(apsw.Connection(str(source))) as old, closing(apsw.Connection(str(target))) as new:
        old.set_busy_timeout(5_000)
        with new.backup("main", old, "main") as copy:
            copy.step()  # all at once: in WAL mode nobody waits for a reader
        new.pragma("journal_mode", "delete")


def _copy_table(lake: Lake, plan: Plan, plan_hash: PlanHash, target: Lake) -> None:
    for turn in range(_TRIES):
        now = lake.snapshot(plan, plan_hash)
        if now.version < 0:
            return
        source, copy = lake.log(plan, plan_hash), target.log(plan, plan_hash)
        try:
            for name in now.files:
                copy.keep(name, source.fetch(name))
        except Missing:  # dropped, and removed as a leftover: the copy took longer than the grace time
            if turn == _TRIES - 1:
                raise StoreFailed("a table was changed too often to be copied: try again") from None
            continue
        copy.commit(
            Snapshot(),
            schema=table_schema(plan),
            operation="BACKUP",
            add=list(now.files.values()),
            transactions=now.transactions,
        )
        return


def _claim(draft: Path, lake: Lake) -> None:
    with closing(LandingFile(draft / _SQLITE[0])) as landing:
        landing.run(lambda: landing.bind(lake))


def _put_tables(draft: Path, lake: Lake) -> None:
    """Bring the tables of a backup to where the collector will look for them."""
    plans = PlanRegistry(draft / "plans").list()
    if any(lake.snapshot(one.plan, one.hash).version >= 0 for one in plans):
        raise ConfigInvalid("$.lake.url: the place holds tables already; name an empty one")
    for one in plans:
        _copy_table(Lake(draft / "lake"), one.plan, one.hash, lake)
    shutil.rmtree(draft / "lake", ignore_errors=True)


def _write_manifest(folder: Path) -> int:
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sums = {name: _sha256(path) for name, path in files.items()}
    about = {"made_us": time.time_ns() // 1000, "files": sums}
    (folder / MANIFEST).write_text(json.dumps(about, indent=1))
    _sync_tree(folder)
    return sum(path.stat().st_size for path in files.values())


def _check_manifest(folder: Path) -> datetime:
    try:
        about: Any = json.loads((folder / MANIFEST).read_bytes())
        made = datetime.fromtimestamp(about["made_us"] / 1e6, UTC)
        sums = dict(about["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigInvalid("the folder is no backup") from None
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    if present != set(sums):
        raise StoreFailed("the backup has other files than it had")
    for name, digest in sums.items():
        if _sha256(folder / name) != digest:
            raise StoreFailed(f"{name}: not what was backed up")
    return made


def _mark_restored(data: Path, who: str) -> None:
    with closing(LandingFile(data / _SQLITE[0])) as landing:
        mark_restored(landing, PlanRegistry(data / "plans").list(), who=who)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
