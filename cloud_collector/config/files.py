"""Reading the config file, and what must hold beyond types.

Place: the one way from a file to a :class:`Config`.
Invariants: the first thing that is wrong is named by its path; every path is absolute once loaded; without `[tls]` only
loopback is listened on.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import msgspec

from cloud_collector.bucket import bucket_of
from cloud_collector.caller import Scopes
from cloud_collector.config.tables import File, LandingTable, LimitsTable, PlanEntryTable, TlsTable
from cloud_collector.config.values import MAX_WORKERS, Config, Database, PlanEntry, Tls
from cloud_collector.errors import ConfigInvalid
from edge_agg.contract.address import is_loopback
from edge_agg.contract.plan import parse_duration
from edge_agg.contract.spiffe import is_domain, is_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def load(path: Path) -> Config:
    """Read the config file.

    Raises:
        ConfigInvalid: naming the path of the first field that is wrong; fix it there.
    """
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=File)
    except OSError:
        raise ConfigInvalid("$: the config file cannot be read") from None
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `")
        raise ConfigInvalid(f"{where.rstrip('`') or '$'}: {problem}") from None
    except msgspec.DecodeError as error:
        raise ConfigInvalid(f"$: not TOML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigInvalid("$: not TOML: not UTF-8") from None
    folder = path.resolve().parent
    _check_listen("$.collector.listen", file.collector.listen, tls=file.tls is not None)
    _check_limits(file.limits)
    _require("$.collector.workers", 1 <= file.collector.workers <= MAX_WORKERS, f"must lie in 1 .. {MAX_WORKERS}")
    if file.monitor.listen is not None:
        _check_listen("$.monitor.listen", file.monitor.listen, tls=True)  # it shows nothing that must be hidden
    if file.monitor.traces is not None:
        _require("$.monitor.traces", file.monitor.traces.startswith(("http://", "https://")), "must be a URL")
    data = (folder / file.collector.data).resolve()
    _require("$.collector.data", "%" not in str(data), "the path holds a `%`, which the lake's library misreads")
    return Config(
        listen=file.collector.listen,
        data=data,
        seal_every_s=_seconds("$.collector.seal_every", file.collector.seal_every),
        upkeep_every_s=_seconds("$.collector.upkeep_every", file.collector.upkeep_every),
        new_incarnation=file.fleet.new_incarnation,
        grace=_grace(file.fleet.grace),
        scopes=_scopes(file),
        max_message_bytes=file.limits.max_message_bytes,
        max_queued_releases=file.limits.max_queued_releases,
        max_batch=file.limits.max_batch,
        max_connections=file.limits.max_connections,
        plans=tuple(_plan_entry(i, entry, folder) for i, entry in enumerate(file.plan)),
        workers=file.collector.workers,
        monitor=file.monitor.listen,
        traces=file.monitor.traces,
        bucket=None if file.lake is None else bucket_of(file.lake, folder),
        tls=None if file.tls is None else _tls(file.tls, folder),
        database=None if file.landing is None else _database(file.landing, folder),
    )


def _grace(text: str) -> timedelta:
    try:
        grace = parse_duration(text)
    except ValueError as error:
        raise ConfigInvalid(f"$.fleet.grace: {error}") from None
    _require("$.fleet.grace", grace <= timedelta(days=365), "must lie in 0s .. 365d")
    return grace


def _scopes(file: File) -> Scopes:
    listed: dict[tuple[str, str], frozenset[str] | None] = {}
    for i, one in enumerate(file.analyst):
        where, who = f"$.analyst[{i}]", (one.tenant, one.name)
        _require(where, file.tls is not None, "needs [tls]: without it, whoever calls may ask about everything")
        _require(f"{where}.name", is_name(one.name), "letters, digits and _.- only, 63 at most")
        _require(f"{where}.tenant", is_name(one.tenant), "letters, digits and _.- only, 63 at most")
        _require(where, who not in listed, "is listed twice")
        listed[who] = None if one.plans is None else frozenset(one.plans)
    closed = file.tls is not None and file.tls.unlisted_analysts == "none"
    return Scopes(listed=listed, others=frozenset() if closed else None)


def _require(path: str, holds: bool, problem: str) -> None:  # noqa: FBT001  # reads as a sentence
    if not holds:
        raise ConfigInvalid(f"{path}: {problem}")


def _check_listen(path: str, listen: str, *, tls: bool) -> None:
    host, _, port = listen.rpartition(":")
    valid = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 2**16
    _require(path, bool(host) and valid, "must be host:port")
    _require(path, tls or is_loopback(listen), "without [tls], only a loopback address is listened on")


def _tls(table: TlsTable, folder: Path) -> Tls:
    for name in ("cert_file", "key_file", "ca_file", "denied_file"):
        _require(f"$.tls.{name}", (folder / getattr(table, name)).is_file(), "no such file")
    _require("$.tls.trust_domain", is_domain(table.trust_domain), "lower case letters, digits and ._- only")
    if table.listen_open is not None:
        _check_listen("$.tls.listen_open", table.listen_open, tls=True)
    authority = None if table.authority is None else folder / table.authority
    held = authority is None or (authority / "issuer.pem").is_file()
    _require("$.tls.authority", held, "holds no authority; make one with `cloud-collector ca init`")
    passphrase = table.authority_passphrase_file
    _require("$.tls.authority_passphrase_file", passphrase is None or authority is not None, "needs an authority")
    return Tls(
        cert_file=(folder / table.cert_file).absolute(),  # a link stays one: what it points to may be exchanged
        key_file=(folder / table.key_file).absolute(),
        ca_file=(folder / table.ca_file).absolute(),
        denied_file=(folder / table.denied_file).absolute(),
        trust_domain=table.trust_domain,
        listen_open=table.listen_open,
        authority=None if authority is None else authority.absolute(),
        # It is read when it is needed: the supervisor may show it to the service alone.
        authority_passphrase_file=None if passphrase is None else (folder / passphrase).absolute(),
        max_connection_age_s=_seconds("$.tls.max_connection_age", table.max_connection_age),
        max_connection_grace_s=_seconds("$.tls.max_connection_grace", table.max_connection_grace),
    )


def _database(table: LandingTable, folder: Path) -> Database:
    scheme, _, rest = table.url.partition("://")
    _require("$.landing.url", scheme in {"postgresql", "postgres"} and bool(rest), "must be postgresql://...")
    user = rest.partition("/")[0].rpartition("@")[0]
    hidden = ":" not in user and "password=" not in rest.partition("?")[2]
    _require("$.landing.url", hidden, "holds a password: put it in a file, and name that as password_file")
    mode = dict(parse_qsl(urlsplit(table.url).query)).get("sslmode")
    near = all(host.startswith("/") or is_loopback(f"{host}:0") for host in _hosts(table.url) if host)
    _require("$.landing.url", near or mode == "verify-full", "off loopback, needs ?sslmode=verify-full")
    if table.password_file is None:
        return Database(url=table.url)
    _require("$.landing.password_file", (folder / table.password_file).is_file(), "no such file")
    return Database(url=table.url, password_file=(folder / table.password_file).absolute())


def _hosts(url: str) -> Iterator[str]:
    """The machines that a URL names, `[v6]` in brackets; a folder is a socket of this one."""
    parts = urlsplit(url)
    for address in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = address.rpartition(":")
        yield host if host and port.isdigit() else address
    for name, value in parse_qsl(parts.query):
        if name in {"host", "hostaddr"}:
            yield from (f"[{one}]" if ":" in one else one for one in value.split(","))


def _check_limits(limits: LimitsTable) -> None:
    for name in ("max_message_bytes", "max_queued_releases", "max_batch", "max_connections"):
        _require(f"$.limits.{name}", 1 <= getattr(limits, name) < 2**31, "must lie in 1 .. 2**31 - 1")
    _require("$.limits.max_batch", limits.max_batch <= limits.max_queued_releases, "exceeds max_queued_releases")


def _seconds(path: str, text: str) -> float:
    try:
        seconds = parse_duration(text).total_seconds()
    except ValueError as error:
        raise ConfigInvalid(f"{path}: {error}") from None
    _require(path, 0.01 <= seconds <= 86_400, "must lie in 10ms .. 1d")
    return seconds


def _plan_entry(i: int, entry: PlanEntryTable, folder: Path) -> PlanEntry:
    path, where = folder / entry.path, f"$.plan[{i}]"
    _require(f"{where}.path", path.is_file(), "no such file")
    _require(f"{where}.nodes", len(entry.nodes) > 0, "names at least one agent")
    _require(f"{where}.nodes", len(set(entry.nodes)) == len(entry.nodes), "names an agent twice")
    _require(
        f"{where}.nodes", all(0 < len(node) <= 128 for node in entry.nodes), "an agent's name has 1 .. 128 characters"
    )
    _require(f"{where}.tenant", is_name(entry.tenant), "letters, digits and _.- only, 63 at most")
    retention = None if entry.retention is None else _retention(f"{where}.retention", entry.retention)
    return PlanEntry(path=path.resolve(), nodes=tuple(entry.nodes), tenant=entry.tenant, retention=retention)


def _retention(path: str, text: str) -> timedelta:
    try:
        kept = parse_duration(text)
    except ValueError as error:
        raise ConfigInvalid(f"{path}: {error}") from None
    _require(path, timedelta(days=1) <= kept <= timedelta(days=36_500), "must lie in 1d .. 36500d")
    return kept
