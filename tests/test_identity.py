"""From a one-time token to releases over mutual TLS, and on over renewals: agent and collector as they run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from cloud_collector.__main__ import cli as collector_cli
from cloud_collector.config import PlanEntry
from edge_agg.__main__ import cli as agent_cli
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceStub
from edge_agg.errors import ConfigInvalid, EnrollmentFailed
from edge_agg.identity import enroll as first
from edge_agg.identity import files as disk
from edge_agg.identity import renewal as room
from edge_agg.identity.credentials import Credentials, credentials_of
from edge_agg.identity.files import IdentityFiles
from edge_agg.identity.renewal import Renewal, due
from edge_agg.identity.request import Request
from edge_agg.telemetry import Event, watch
from edge_agg.uplink import Uplink
from edge_agg.wire import GrpcWire
from tests.cloud_collector.fleet import DOMAIN, Fleet, aged, pushed, refusal
from tests.cloud_collector.front import release
from tests.fakes import FakeClock, FakeCollector, Row, settle, small_plan_text, write_config, write_events

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.contract.release import Sealed

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Event, dict[str, Any]]]:
    """What the agent says about itself."""
    heard: list[tuple[Event, dict[str, Any]]] = []
    monkeypatch.setattr("edge_agg.telemetry._watchers", [])
    watch(lambda event, fields: heard.append((event, dict(fields))))
    return heard


class Waiting:
    """A sealed release that waits."""

    seq = 1

    def __init__(self, sealed: Sealed) -> None:
        self.sealed = sealed


def agg(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(agent_cli, [str(word) for word in words], env=environment)


def token(fleet: Fleet, agent: str = "jfk") -> str:
    with fleet.authority() as authority:
        return authority.make_token("acme", agent, HOUR)


def serial(files: IdentityFiles) -> int:
    return x509.load_pem_x509_certificate(files.cert.read_bytes()).serial_number


@pytest.mark.slow
@pytest.mark.parametrize("by", ["file", "fingerprint"])
def test_a_device_enrolls_and_pushes(fleet: Fleet, by: str) -> None:
    """`ca token`, `edge-agg enroll`, and releases are taken; the token works once, the key is the device's own."""
    made = CliRunner().invoke(collector_cli, ["ca", "token", str(fleet.pki), "--tenant", "acme", "--agent", "jfk"])
    assert made.exit_code == 0, made.output
    given, files = made.output.strip(), IdentityFiles.within(fleet.folder / "identity")
    with fleet.authority() as authority:
        print_ = authority.fingerprint
    trust = ["--ca", fleet.pki / "root.pem"] if by == "file" else ["--ca-fingerprint", print_.upper()]
    with fleet.serving() as served:
        done = agg("enroll", served.open, *trust, "--out", files.key.parent, EDGE_AGG_TOKEN=given)
        assert done.exit_code == 0, done.output
        assert f"this device is spiffe://{DOMAIN}/acme/jfk" in done.output
        assert files.key.stat().st_mode & 0o777 == 0o600
        assert files.ca.read_bytes() == fleet.anchors

        async def go() -> None:
            wire = GrpcWire(served.address, deadline_s=10, credentials=Credentials(files))
            receipts = await wire.push([Waiting(release("jfk", 0, tenant="acme"))])
            assert [one.refusal for one in receipts] == [""]
            await wire.close()

        asyncio.run(go())
        again = agg("enroll", served.open, *trust, "--out", fleet.folder / "second", EDGE_AGG_TOKEN=given)
        assert again.exit_code == 9
        assert "no such token" in again.stderr
        assert not (fleet.folder / "second").exists()
        kept = agg("enroll", served.open, *trust, "--out", files.key.parent, "--token", token(fleet))
        assert kept.exit_code == 3
        assert "--replace" in kept.stderr
    issued = [fields for event, fields in served.events if event == "certificate_issued"]
    about = {"how": "enroll", "agent": f"spiffe://{DOMAIN}/acme/jfk", "serial": f"{serial(files):x}"}
    assert issued == [about | {"request_id": issued[0]["request_id"]}]


@pytest.mark.slow
def test_an_agent_drains_over_mutual_tls(fleet: Fleet) -> None:
    """The program itself, from its config; with another agent's certificate it does not start."""
    (fleet.folder / "plan.toml").write_text(small_plan_text())
    plan = PlanEntry(path=fleet.folder / "plan.toml", nodes=("jfk",), tenant="acme")
    write_events(fleet.folder / "events" / "a.parquet", [Row()])
    config = write_config(fleet.folder)
    with fleet.serving(plan) as served:
        enrolled(fleet, served.open)
        files = "".join(f'{name}_file = "identity/{name}.pem"\n' for name in ("ca", "cert", "key"))
        text = config.read_text().replace('url = "127.0.0.1:1"', f'url = "{served.address}"\n{files}')
        config.write_text(text)
        assert agg("run", "--drain", "--log", "none", config).exit_code == 3  # the config is of `node`
        config.write_text(text.replace('name = "node"', 'name = "jfk"\ntenant = "acme"'))
        done = agg("run", "--drain", "--log", "none", config)
        assert done.exit_code == 0, done.output
    assert sum(fields["accepted"] for event, fields in served.events if event == "release_accepted") == 4


@pytest.mark.slow
def test_a_token_is_not_given_to_whom_nobody_vouches_for(fleet: Fleet, tmp_path: Path) -> None:
    """Another root's collector, by file and by fingerprint, gets no token and writes no file."""
    (tmp_path / "other").mkdir()
    other, given = Fleet(tmp_path / "other"), token(fleet)
    with other.serving() as served:
        with fleet.authority() as authority:
            wanted = authority.fingerprint
        for trust in (["--ca", fleet.pki / "root.pem"], ["--ca-fingerprint", wanted]):
            done = agg("enroll", served.open, *trust, "--out", tmp_path / "identity", "--token", given)
            assert done.exit_code == 9, done.output
        assert not (tmp_path / "identity").exists()
        assert agg("enroll", served.open, "--token", given).exit_code == 2
    with fleet.serving() as served:
        agg("enroll", served.open, *trust, "--out", tmp_path / "identity", "--token", given)
        assert (tmp_path / "identity" / "key.pem").exists()


@pytest.mark.slow
def test_the_key_never_leaves(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes out holds nothing of it; mutant: the key is sent along."""
    sent: list[bytes] = []
    real = EnrollmentServiceStub

    class Tapped:
        def __init__(self, channel: Any) -> None:
            self._stub = real(channel)

        def Enroll(self, request: Any, **more: Any) -> Any:  # noqa: N802  # the contract's name
            sent.append(request.SerializeToString())
            return self._stub.Enroll(request, **more)

    def secret_number(files: IdentityFiles) -> bytes:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key.private_numbers().private_value.to_bytes(32, "big")

    def leaks() -> bool:
        files = IdentityFiles.within(fleet.folder / f"identity{len(sent)}")
        with fleet.serving() as served:
            try:
                first.enroll(served.open, token(fleet), anchors=fleet.anchors, into=files)
            except EnrollmentFailed:
                return "PRIVATE" in str(sent[-1])
        return secret_number(files) in sent[-1]

    monkeypatch.setattr(first, "EnrollmentServiceStub", Tapped)
    assert not leaks()
    monkeypatch.setattr(Request, "csr", Request.key)
    assert leaks()


def enrolled(fleet: Fleet, address: str, name: str = "identity") -> IdentityFiles:
    files = IdentityFiles.within(fleet.folder / name)
    first.enroll(address, token(fleet), anchors=fleet.anchors, into=files)
    return files


def grown(fleet: Fleet, name: str = "identity") -> IdentityFiles:
    """A device's files in the second half of the certificate's life, before the agent renews it."""
    return IdentityFiles.within(fleet.hand_out(name, fleet.holder("acme", "jfk", now=aged)))


async def check_renewal(fleet: Fleet, name: str, said: list[tuple[Event, dict[str, Any]]]) -> None:
    said.clear()
    with fleet.serving() as served:
        files = grown(fleet, name)
        credentials = Credentials(files)
        clock, key = FakeClock(datetime.now(UTC)), files.key.read_bytes()
        renewal = Renewal(address=served.address, credentials=credentials, clock=clock, jitter=lambda: 0.5)
        wire = GrpcWire(served.address, deadline_s=10, credentials=credentials)
        before = serial(files)
        await wire.push([Waiting(release("jfk", 0, tenant="acme"))])
        assert not await renewal.look()
        clock.time = due(credentials.held()) - timedelta(seconds=1)
        assert not await renewal.look()
        assert said == []
        clock.time += timedelta(seconds=1)
        assert await renewal.look()
        assert [event for event, _ in said] == [Event.CERTIFICATE_AGED, Event.CERTIFICATE_RENEWED]
        assert said[0][1] == {"agent": f"spiffe://{DOMAIN}/acme/jfk", "days_left": 10.0}
        assert serial(files) != before
        assert files.key.read_bytes() != key
        with fleet.authority() as authority:
            authority.revoke(serial=before)  # the old one is worth nothing: what is pushed goes by the new one
        receipts = await wire.push([Waiting(release("jfk", 1, tenant="acme"))])
        assert [one.refusal for one in receipts] == [""]
        await wire.close()


def test_a_certificate_is_renewed_at_two_thirds_and_used(
    fleet: Fleet, said: list[tuple[Event, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator hears of it, the key is new, and the channel is built anew. Mutant: the channel stays."""
    asyncio.run(check_renewal(fleet, "real", said))
    with monkeypatch.context() as mutant:

        async def stay(self: GrpcWire) -> None:
            return

        mutant.setattr(GrpcWire, "_dial_if_changed", stay)
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            asyncio.run(check_renewal(fleet, "mutant", said))


@pytest.mark.slow
def test_a_fleet_follows_a_change_of_the_root(fleet: Fleet) -> None:
    """Agent by agent as they renew, then the server; nobody is cut off until the old root is taken out."""

    async def go() -> None:
        roots = fleet.pki / "root.pem"
        with fleet.serving(ca_file=roots) as served:
            files, late = grown(fleet), fleet.holder("acme", "jfk")
            credentials = Credentials(files)
            wire = GrpcWire(served.address, deadline_s=10, credentials=credentials)

            async def taken(n: int) -> bool:
                receipts = await wire.push([Waiting(release("jfk", n, tenant="acme"))])
                return [one.refusal for one in receipts] == [""]

            with fleet.authority() as authority:
                authority.renew_root()
            assert await taken(0)
            clock = FakeClock(due(credentials.held()))
            assert await Renewal(
                address=served.address, credentials=credentials, clock=clock, jitter=lambda: 0.5
            ).look()
            assert await taken(1)
            with fleet.authority() as authority:
                authority.renew_in(fleet.folder / "server")
            new_root = roots.read_bytes()[: roots.read_bytes().index(b"-----BEGIN", 1)]
            roots.write_bytes(new_root)
            fresh = GrpcWire(served.address, deadline_s=10, credentials=Credentials(files))
            receipts = await fresh.push([Waiting(release("jfk", 2, tenant="acme"))])
            assert [one.refusal for one in receipts] == [""]
            with late.channel(served.address, files.ca.read_bytes()) as channel:
                assert refusal(lambda: pushed(channel, release("jfk", 3, tenant="acme"))) == "UNAVAILABLE"
            await fresh.close()
            await wire.close()

    asyncio.run(go())


def test_a_renewal_that_fails_changes_nothing_and_is_said(
    fleet: Fleet, said: list[tuple[Event, dict[str, Any]]]
) -> None:
    """Nobody there, or revoked: the files stay, and it is tried again."""

    async def go() -> None:
        with fleet.serving() as served:
            files = enrolled(fleet, served.open)
            credentials = Credentials(files)
            clock = FakeClock(due(credentials.held()))
            renewal = Renewal(address=served.address, credentials=credentials, clock=clock, jitter=lambda: 0.5)
            before = [path.read_bytes() for path in (files.ca, files.cert, files.key)]
            with fleet.authority() as authority:
                authority.revoke(serial=serial(files))
            assert not await renewal.look()
        assert not await renewal.look()
        assert [fields["cause"] for event, fields in said if event is Event.RENEWAL_FAILED] == [
            "UNAUTHENTICATED",
            "UNAVAILABLE",
        ]
        assert [path.read_bytes() for path in (files.ca, files.cert, files.key)] == before

    asyncio.run(go())


def test_an_agent_looks_from_time_to_time_until_it_stops(fleet: Fleet) -> None:
    """The task of the agent: it waits with jitter and ends with the agent."""

    async def go() -> None:
        files = IdentityFiles.within(fleet.hand_out("jfk", fleet.holder("acme", "jfk")))
        clock, stop = FakeClock(datetime.now(UTC)), asyncio.Event()
        renewal = Renewal(address="127.0.0.1:1", credentials=Credentials(files), clock=clock, jitter=lambda: 0.5)
        running = asyncio.create_task(renewal.run(stop))
        for _ in range(3):
            await clock.advance(timedelta(seconds=room.LOOK_S))
        assert clock.waits[:2] == [0.75 * room.LOOK_S] * 2
        stop.set()
        await asyncio.wait_for(running, 5)

    asyncio.run(go())


async def check_beside(renewal: Any) -> None:
    class Empty:
        """A journal in which nothing waits."""

        def waiting(self, limit: int, *, skip: Any) -> list[Any]:
            return []

    stop = asyncio.Event()
    uplink = Uplink(
        journal=Empty(),  # type: ignore[arg-type]  # nothing is settled
        wire=FakeCollector(),
        clock=FakeClock(),
        jitter=lambda: 0.5,
        batch=1,
        retry_first_s=1.0,
        retry_limit_s=1.0,
        renewal=renewal,
    )
    running = asyncio.create_task(uplink.run(stop))
    await settle()
    stop.set()
    await asyncio.wait_for(running, 5)


def test_the_uplink_renews_also_in_a_drain(fleet: Fleet, said: list[tuple[Event, dict[str, Any]]]) -> None:
    """It looks at once, survives what nobody foresaw, and ends only when the look is over."""
    files = IdentityFiles.within(fleet.hand_out("jfk", fleet.holder("acme", "jfk")))
    looks: list[str] = []

    class Noting(Renewal):
        async def look(self) -> bool:
            looks.append("begun")
            await asyncio.sleep(0)
            looks.append("over")
            raise RuntimeError

    asyncio.run(
        check_beside(Noting(address="x:1", credentials=Credentials(files), clock=FakeClock(), jitter=lambda: 0.5))
    )
    assert looks == ["begun", "over"]
    assert said == [(Event.RENEWAL_FAILED, {"cause": "RuntimeError"})]
    asyncio.run(check_beside(None))


def check_cut(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Cut a replacement off after some renames; whatever is left must be a pair that fits."""
    old, new = fleet.holder("acme", "jfk"), fleet.holder("acme", "jfk")
    files = IdentityFiles.within(fleet.hand_out(f"cut{steps}", old))
    done: list[int] = []
    real = os.replace

    class Cut(Exception):
        pass

    def rename(source: Any, target: Any) -> None:
        if len(done) == steps:
            raise Cut
        done.append(1)
        real(source, target)

    with monkeypatch.context() as cut:
        cut.setattr("pathlib.Path.replace", rename)
        with contextlib.suppress(Cut):
            disk.replace(files, ca=fleet.anchors, chain=new.chain, key=new.key)
    held = Credentials(files).held()
    assert held.id.name == "jfk"
    assert files.cert.read_bytes() == (old.chain if steps < 2 else new.chain)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_replacement_that_is_cut_off_leaves_a_pair_that_fits(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """At any rename; mutant: nothing repairs it."""
    check_cut(fleet, monkeypatch, steps)
    if steps == 2:
        with monkeypatch.context() as mutant:
            mutant.setattr(disk, "repair", lambda files: None)
            with pytest.raises(ConfigInvalid, match="key_file"):
                check_cut(fleet, monkeypatch, steps)


def test_files_that_change_and_do_not_fit_change_nothing(
    fleet: Fleet, said: list[tuple[Event, dict[str, Any]]]
) -> None:
    """Half a rotation by somebody else's tool is waited out."""
    files = IdentityFiles.within(fleet.hand_out("jfk", fleet.holder("acme", "jfk")))
    credentials, new = Credentials(files), fleet.holder("acme", "jfk")
    before = credentials.held()
    files.key.write_bytes(new.key)
    assert credentials.held() is before
    assert credentials.held() is before
    assert [event for event, _ in said] == [Event.CREDENTIALS_UNUSABLE]
    files.cert.write_bytes(new.chain)
    assert credentials.held() is not before


def test_an_agent_starts_as_whom_its_certificate_names(fleet: Fleet) -> None:
    """Another name or tenant, an analyst's certificate, files that are missing: refused at the start."""
    from edge_agg.config import CollectorTable

    out = fleet.hand_out("jfk", fleet.holder("acme", "jfk"))
    ann = fleet.hand_out("ann", fleet.holder("acme", "jfk", analyst=True))

    def table(folder: Path) -> CollectorTable:
        ca, cert, key = (str(folder / f"{name}.pem") for name in ("ca", "cert", "key"))
        return CollectorTable(url="collector.example:8815", ca_file=ca, cert_file=cert, key_file=key)

    assert credentials_of(table(out), tenant="acme", agent="jfk")
    assert credentials_of(CollectorTable(url="127.0.0.1:1"), tenant="acme", agent="jfk") is None
    for folder, tenant, agent in (
        (out, "acme", "lga"),
        (out, "globex", "jfk"),
        (ann, "acme", "jfk"),
        (fleet.folder / "none", "acme", "jfk"),
    ):
        with pytest.raises(ConfigInvalid):
            credentials_of(table(folder), tenant=tenant, agent=agent)


def test_without_credentials_the_wire_speaks_to_loopback_alone() -> None:
    """Whoever builds it, and whatever the config says."""
    with pytest.raises(ConfigInvalid, match="loopback"):
        GrpcWire("collector.example:8815", deadline_s=1)
