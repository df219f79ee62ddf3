"""A small fleet over real TLS on loopback: an authority, a collector, and callers with certificates or tokens."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cloud_collector.authority import certificate as make
from cloud_collector.authority.folder import Authority
from cloud_collector.config import Config, PlanEntry, Tls
from cloud_collector.telemetry import Event
from cloud_collector.tokens import Tokens
from edge_agg.contract.refusal import REFUSAL_KEY
from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceStub
from tests.cloud_collector.front import PLAN_TEXT, request, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography import x509

    from edge_agg.contract.release import Sealed

DOMAIN = "fleet.example"
LIFE = timedelta(days=30)
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]


def aged() -> datetime:
    """When a certificate was issued that may be renewed now, and that an agent does not renew by itself yet."""
    return datetime.now(UTC) - LIFE * 0.55


@dataclass
class Holder:
    """Somebody's certificate and key, in PEM."""

    key: bytes
    chain: bytes

    def channel(self, address: str, anchors: bytes) -> grpc.Channel:
        """A channel of theirs."""
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(anchors, self.key, self.chain), OPTIONS)


@dataclass
class Served:
    """A collector that runs."""

    address: str
    open: str
    """Where callers without a certificate are listened to."""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class _Note(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append((record.getMessage(), getattr(record, "fields", {})))


class Fleet:
    """An authority in a folder, and a collector that trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = folder / "pki"
        Authority.init(self.pki, DOMAIN, now=datetime.now(UTC))
        self.hand_out("server", self.server())

    @contextlib.contextmanager
    def authority(self, **more: Any) -> Iterator[Authority]:
        """The authority, open."""
        with Authority.opened(self.pki, **more) as authority:
            yield authority

    @property
    def anchors(self) -> bytes:
        """The roots, in PEM."""
        return (self.pki / "root.pem").read_bytes()

    def server(self, **more: Any) -> Holder:
        """A certificate for the collector."""
        key = make.new_key()
        with self.authority(**more) as authority:
            chain = authority.issue_server(["127.0.0.1", "localhost"], key.public_key(), LIFE)
        return Holder(make.key_pem(key), chain)

    def holder(self, tenant: str, name: str, *, analyst: bool = False, **more: Any) -> Holder:
        """An agent or an analyst with a certificate."""
        key = make.new_key()
        with self.authority(**more) as authority:
            spiffe_id = authority.id_of(tenant, name, analyst=analyst)
            return Holder(make.key_pem(key), authority.issue_client(spiffe_id, key.public_key(), LIFE))

    def crafted(self, builder: x509.CertificateBuilder, key: Any) -> Holder:
        """Whatever a test wants the issuer to have signed."""
        with self.authority() as authority:
            issuer = authority._issuer()
        return Holder(make.key_pem(key), make.pem(make._sign(builder, issuer)) + make.pem(issuer.certificate))

    def hand_out(self, name: str, holder: Holder) -> Path:
        """Write somebody's files as `ca issue` does."""
        out = self.folder / name
        out.mkdir(exist_ok=True)
        for file, data in (("ca.pem", self.anchors), ("key.pem", holder.key), ("cert.pem", holder.chain)):
            (out / file).write_bytes(data)
        return out

    def config(self, *plans: PlanEntry, **more: Any) -> Config:
        """The collector's config; more: fields of [tls] that differ."""
        if not plans:
            (self.folder / "flights.toml").write_text(PLAN_TEXT)
            plans = (PlanEntry(path=self.folder / "flights.toml", nodes=("jfk", "lga"), tenant="acme"),)
        tls: dict[str, Any] = {
            "cert_file": self.folder / "server" / "cert.pem",
            "key_file": self.folder / "server" / "key.pem",
            "ca_file": self.folder / "server" / "ca.pem",
            "denied_file": self.pki / "denied.txt",
            "trust_domain": DOMAIN,
            "listen_open": "127.0.0.1:0",
            "authority": self.pki,
            "authority_passphrase_file": None,
            "max_connection_age_s": 600.0,
            "max_connection_grace_s": 60.0,
        }
        return Config(
            listen="127.0.0.1:0",
            data=self.folder / "data",
            seal_every_s=60.0,
            max_message_bytes=2**20,
            max_queued_releases=100,
            max_batch=10,
            plans=plans,
            tls=Tls(**{**tls, **more}),
        )

    @contextlib.contextmanager
    def serving(self, *plans: PlanEntry, **more: Any) -> Iterator[Served]:
        """Run the collector; more: fields of [tls] that differ."""
        notes, logger = _Note(), logging.getLogger("cloud_collector")
        logger.addHandler(notes)
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            with running(self.config(*plans, **more)) as address:
                (at,) = [fields["listen"] for event, fields in notes.events if event == Event.DOOR_OPENED]
                yield Served(address, at, notes.events)
        finally:
            logger.setLevel(level)
            logger.removeHandler(notes)

    def token(self, tenant: str, name: str, *, plans: list[str] | None = None, life: timedelta = LIFE) -> str:
        """An analyst's bearer token."""
        now = datetime.now(UTC)
        with contextlib.closing(Tokens(self.folder / "data" / "tokens.sqlite")) as tokens:
            return tokens.issue(tenant, name, plans=plans, now=now, ends=now + life)[1]


def pushed(channel: grpc.Channel, *releases: Sealed) -> list[tuple[int, str]]:
    """Send one batch; (outcome, refusal) of each."""
    answer = CollectorServiceStub(channel).PushReleases(request(*releases), timeout=20)
    return [(receipt.outcome, receipt.refusal) for receipt in answer.receipts]


def refusal(call: Any) -> str:
    """The code that a whole call was refused with; the status where there is no code."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    codes = [str(one.value) for one in raised.value.trailing_metadata() or () if one.key == REFUSAL_KEY]
    return codes[0] if codes else raised.value.code().name
