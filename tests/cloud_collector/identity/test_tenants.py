"""Tenants never see each other: every method of every service is tried as another tenant, and every road to rows.

The methods are read off the descriptors, so a method that is added without a case here fails.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud_collector import client, gate, service
from cloud_collector.caller import Caller, Kind
from cloud_collector.config import PlanEntry
from cloud_collector.errors import PlanUnknown, QuestionInvalid
from cloud_collector.plans import PlanRegistry
from cloud_collector.query import Query
from cloud_collector.question import Question
from cloud_collector.totals import Rows
from edge_agg.contract import v1
from edge_agg.contract.head import Head
from edge_agg.contract.v1 import enrollment_pb2, query_pb2
from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceStub
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceStub
from edge_agg.contract.v1.query_pb2_grpc import QueryServiceStub
from edge_agg.identity.request import Request
from tests.cloud_collector.fleet import Fleet, aged, pushed, refusal
from tests.cloud_collector.front import PLAN_TEXT, FakeLake, release, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OURS, THEIRS = "acme", "globex"
SECRET = "departures_of_globex"  # a metric's name, to be looked for in every answer


def declared() -> set[str]:
    """Every method of every service of the contract, as gRPC writes it."""
    rooms = [importlib.import_module(f"{v1.__name__}.{one.name}") for one in pkgutil.iter_modules(v1.__path__)]
    services = [
        one for room in rooms if hasattr(room, "DESCRIPTOR") for one in room.DESCRIPTOR.services_by_name.values()
    ]
    return {f"/{one.full_name}/{method.name}" for one in services for method in one.methods}


def served_methods(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every method that the collector's server was given, whoever gave it."""
    found: set[str] = set()

    class Noting(grpc.aio._server.Server):  # type: ignore[misc,name-defined]  # its stub hides it
        def add_registered_method_handlers(self, name: str, handlers: dict[str, Any]) -> None:
            found.update(f"/{name}/{method}" for method in handlers)
            super().add_registered_method_handlers(name, handlers)

    with monkeypatch.context() as noting:
        noting.setattr(grpc.aio._server, "Server", Noting)  # type: ignore[attr-defined]  # as above
        with fleet.serving():
            pass
    return found


def theirs(text: str = PLAN_TEXT) -> str:
    return text.replace('name = "flights"', 'name = "globex_flights"').replace("departures", SECRET)


@pytest.fixture
def plans(tmp_path: Path) -> list[PlanEntry]:
    """A plan of ours, one of theirs that nobody else has, and ours registered by them as well."""
    (tmp_path / "ours.toml").write_text(PLAN_TEXT)
    (tmp_path / "shared.toml").write_text(f"# {SECRET}\n{PLAN_TEXT}")
    (tmp_path / "theirs.toml").write_text(theirs())
    return [
        PlanEntry(path=tmp_path / "ours.toml", nodes=("jfk",), tenant=OURS),
        PlanEntry(path=tmp_path / "shared.toml", nodes=("jfk", f"{SECRET}-node"), tenant=THEIRS),
        PlanEntry(path=tmp_path / "theirs.toml", nodes=(f"{SECRET}-node",), tenant=THEIRS),
    ]


def push_as_them(channel: grpc.Channel) -> Iterator[Any]:
    """A batch that claims to be theirs."""
    stub = CollectorServiceStub(channel)
    sent = request(release("jfk", 5, tenant=THEIRS), release(f"{SECRET}-node", 5, tenant=THEIRS))
    answer = stub.PushReleases(sent, timeout=10)
    assert {one.refusal for one in answer.receipts} == {"identity_mismatch"}
    yield answer


def say_head_as_them(channel: grpc.Channel) -> Iterator[Any]:
    """How far our journal is, which is ours to ask; and how far theirs."""
    stub = CollectorServiceStub(channel)
    yield stub.SayHead(Head(tenant=OURS, agent="jfk", incarnation="a" * 32, spent={}).message(), timeout=10)
    theirs = Head(tenant=THEIRS, agent="jfk", incarnation="a" * 32, spent={}).message()
    answer = told(lambda: stub.SayHead(theirs, timeout=10))
    assert "identity_mismatch" in answer
    yield answer


def list_plans(channel: grpc.Channel) -> Iterator[Any]:
    """What there is to ask about."""
    yield QueryServiceStub(channel).ListPlans(query_pb2.ListPlansRequest(), timeout=10)


def estimate(channel: grpc.Channel) -> Iterator[Any]:
    """Everything that can be asked of our plan; and of theirs, by name."""
    stub = QueryServiceStub(channel)
    for by in ([], ["node"], ["carrier", "node"]):
        yield b"".join(one.arrow for one in stub.Estimate(asked("flights", "departures", by=by), timeout=10))
    for plan, metric in (("globex_flights", SECRET), ("globex_flights", "aircraft")):
        yield told(lambda plan=plan, metric=metric: list(stub.Estimate(asked(plan, metric), timeout=10)))  # type: ignore[misc]  # bound now
    for node in (f"{THEIRS}/jfk", f"{SECRET}-node"):
        where = [query_pb2.Filter(column="node", values=[node])]
        yield told(lambda where=where: list(stub.Estimate(asked("flights", "departures", where=where), timeout=10)))  # type: ignore[misc]  # as above


def coverage(channel: grpc.Channel) -> Iterator[Any]:
    """Who reported under our plan; and under theirs, by name."""
    stub = QueryServiceStub(channel)
    for total in (False, True):
        sent = query_pb2.CoverageRequest(plan="flights", total=total)
        yield b"".join(one.arrow for one in stub.Coverage(sent, timeout=10))
    for sent in (
        query_pb2.CoverageRequest(plan="globex_flights"),
        *(query_pb2.CoverageRequest(plan="flights", nodes=[node]) for node in (f"{THEIRS}/jfk", f"{SECRET}-node")),
    ):
        yield told(lambda sent=sent: list(stub.Coverage(sent, timeout=10)))  # type: ignore[misc]  # as above


def asked(plan: str, metric: str, **more: Any) -> query_pb2.EstimateRequest:
    return query_pb2.EstimateRequest(plan=plan, metric=metric, **more)


def told(call: Callable[[], object]) -> str:
    """What a refusal says, in all its parts."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return f"{raised.value.code()} {raised.value.details()} {raised.value.trailing_metadata()}"


def enroll(channel: grpc.Channel) -> Iterator[Any]:
    """With a certificate of ours nobody enrolls, least of all as them."""
    sent = enrollment_pb2.EnrollRequest(token="eagg_x", csr=Request().csr)
    yield told(lambda: EnrollmentServiceStub(channel).Enroll(sent, timeout=10))


def renew(channel: grpc.Channel) -> Iterator[Any]:
    """What comes back is ours, whatever the request would like."""
    answer = EnrollmentServiceStub(channel).Renew(enrollment_pb2.RenewRequest(csr=Request().csr), timeout=10)
    from cryptography import x509

    from edge_agg.identity.credentials import identity_of

    assert identity_of(x509.load_pem_x509_certificate(answer.chain)).tenant == OURS
    yield answer


def get_trust(channel: grpc.Channel) -> Iterator[Any]:
    """Certificates of roots, which are public."""
    yield EnrollmentServiceStub(channel).GetTrust(enrollment_pb2.GetTrustRequest(), timeout=10)


def check(channel: grpc.Channel) -> Iterator[Any]:
    """Services have health, tenants and plans have none."""
    stub = health_pb2_grpc.HealthStub(channel)
    yield stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=10)
    yield told(lambda: stub.Check(health_pb2.HealthCheckRequest(service=THEIRS), timeout=10))


def list_health(channel: grpc.Channel) -> Iterator[Any]:
    """As above; the server has none."""
    text = told(lambda: health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=10))
    assert "UNIMPLEMENTED" in text
    yield text


def watch(channel: grpc.Channel) -> Iterator[Any]:
    """As above."""
    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=10)
    yield next(watching)
    watching.cancel()


def reflect(channel: grpc.Channel) -> Iterator[Any]:
    """The schema, which is public; no plan is part of it."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    sent = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    yield from stub.ServerReflectionInfo(sent, timeout=10)


CASES: dict[str, Callable[[grpc.Channel], Iterator[Any]]] = {
    "/edge_agg.contract.v1.CollectorService/PushReleases": push_as_them,
    "/edge_agg.contract.v1.CollectorService/SayHead": say_head_as_them,
    "/edge_agg.contract.v1.QueryService/ListPlans": list_plans,
    "/edge_agg.contract.v1.QueryService/Estimate": estimate,
    "/edge_agg.contract.v1.QueryService/Coverage": coverage,
    "/edge_agg.contract.v1.EnrollmentService/GetTrust": get_trust,
    "/edge_agg.contract.v1.EnrollmentService/Enroll": enroll,
    "/edge_agg.contract.v1.EnrollmentService/Renew": renew,
    "/grpc.health.v1.Health/Check": check,
    "/grpc.health.v1.Health/List": list_health,
    "/grpc.health.v1.Health/Watch": watch,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflect,
}


def test_every_method_has_a_case_and_a_rule(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is added, to the contract or to the server, must say who may call it and be tried as a stranger."""
    served = served_methods(fleet, monkeypatch)
    assert served >= declared()
    assert served == set(CASES) == set(gate.ALLOWED)


def check_apart(folder: Path, plans: list[PlanEntry]) -> None:
    """Store something of both tenants, then try everything as ours and look for anything of theirs."""
    folder.mkdir()
    fleet = Fleet(folder)
    with fleet.serving(*plans) as served:
        for tenant, node in ((OURS, "jfk"), (THEIRS, "jfk"), (THEIRS, f"{SECRET}-node")):
            with fleet.holder(tenant, node).channel(served.address, fleet.anchors) as channel:
                assert pushed(channel, release(node, 0, 4000 if tenant == THEIRS else 1, tenant=tenant))[0][1] == ""
        ours = {
            Kind.AGENT: fleet.holder(OURS, "jfk", now=aged).channel(served.address, fleet.anchors),
            Kind.ANALYST: fleet.holder(OURS, "ann", analyst=True).channel(served.address, fleet.anchors),
        }
        try:
            for method, tried in CASES.items():
                for kind, channel in ours.items():
                    if kind in gate.ALLOWED[method] or tried is enroll:
                        for answer in tried(channel):
                            text = repr(answer)
                            assert SECRET not in text, method
                            assert THEIRS not in text, method
                    else:
                        assert refusal(lambda tried=tried, channel=channel: list(tried(channel))) == "forbidden"
            token = fleet.token(OURS, "bob")
            root = fleet.pki / "root.pem"
            with client.connect(served.open, ca=root, token=token) as c:
                frame = c.estimate("flights", "departures", by=["node"])
                assert frame["node"].to_list() == ["jfk"]
                assert frame["value"].to_list() == [6.0]
                assert frame["windows_expected"].to_list() == [1]
                assert c.plans()["plan"].unique().to_list() == ["flights"]
                with pytest.raises(PlanUnknown):
                    c.estimate("globex_flights", SECRET)
        finally:
            for channel in ours.values():
                channel.close()


def nobody_asked(self: Rows, duck: Any, files: Any, *, tenant: str | None = None) -> None:
    """The mutant: rows of everybody."""
    self._duck, self._files, self._tenant = duck, files, None


@pytest.mark.slow
def test_no_method_shows_another_tenant(
    tmp_path: Path, plans: list[PlanEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By no answer, refusal or text of an error; mutants: plans are listed, or rows read, whosoever they are."""
    check_apart(tmp_path / "real", plans)
    all_plans, listed = PlanRegistry.list, service._listed
    everything = Caller(kind=Kind.LOCAL)
    for room, name, broken in (
        (service, "_listed", lambda found, asker: listed(found, everything)),
        (Rows, "__init__", nobody_asked),
        (PlanRegistry, "find", lambda self, name, version=None, tenant=None: stolen(all_plans(self), name, tenant)),
        (Caller, "sends_for", lambda self, tenant, agent: True),
    ):
        with monkeypatch.context() as mutant:
            mutant.setattr(room, name, broken)
            with pytest.raises((AssertionError, pytest.fail.Exception, grpc.RpcError)):
                check_apart(tmp_path / name, plans)


def stolen(plans: list[Any], name: str, tenant: str | None) -> Any:
    """The mutant: anybody's plan of that name, as if it were the asker's."""
    found = [one for one in plans if one.plan.name == name]
    if not found:
        raise PlanUnknown
    return dataclasses.replace(found[0], tenant=tenant)


@pytest.mark.parametrize("caller", [Caller(kind=Kind.ANALYST, tenant=OURS, name="ann")])
def test_every_statement_is_bound_to_the_tenant(
    tmp_path: Path, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every SQL statement of a question, whatever the question, passes the one place that binds the tenant."""
    import duckdb

    lake = FakeLake(tmp_path)
    registry = PlanRegistry(tmp_path / "plans")
    registry.add(PLAN_TEXT, ["a"], tenant=OURS)
    lake.write("a", 0, 1, tenant=OURS)
    lake.write("a", 0, 4000, tenant=THEIRS)
    statements: list[tuple[str, Any]] = []
    query = Query(registry, lake, lambda: None)  # type: ignore[arg-type]  # a fake lake
    query._duck = Spy(duckdb.connect(), statements)  # type: ignore[assignment]  # it passes everything on
    for by in ((), ("node",), ("carrier",)):
        rows = query.estimate(Question(plan="flights", metric="departures", by=by), caller).to_pylist()
        assert sum(row["value"] for row in rows) == 6.0
    assert len(statements) >= 9
    assert all("tenant = $tenant" in sql and given["tenant"] == OURS for sql, given in statements)
    with pytest.raises(QuestionInvalid, match="not a known node"):
        query.estimate(Question(plan="flights", metric="departures", where=(("node", (f"{THEIRS}/a",)),)), caller)


class Spy:
    """A connection that notes what it is asked."""

    def __init__(self, duck: Any, statements: list[tuple[str, Any]]) -> None:
        self._duck = duck
        self._statements = statements

    def cursor(self) -> Spy:  # noqa: D102  # DuckDB's
        return Spy(self._duck.cursor(), self._statements)

    def execute(self, sql: str, params: Any) -> Any:  # noqa: D102  # as above
        self._statements.append((sql, params))
        return self._duck.execute(sql, params)

    def close(self) -> None:  # noqa: D102  # as above
        self._duck.close()


def test_no_room_but_one_reads_the_lake() -> None:
    """Of the rooms that read the lake's files only `Rows._run` answers anybody.

    The lake looks for duplicates, its log for checkpoints, compaction for what is small, the upkeep for what is old.
    """
    from pathlib import Path as Disk

    import cloud_collector

    folder = Disk(cloud_collector.__file__).parent
    readers = re.compile(r"read_parquet|pq\.read_table|log\.rows\(|\.to_pyarrow|\.execute\(sql, \{")
    found = {path.name for path in folder.rglob("*.py") if readers.search(path.read_text())}
    assert found == {"totals.py", "lake.py", "deltalog.py", "compaction.py", "upkeep.py"}


def test_a_tenants_plan_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Two tenants give one name and version two meanings; neither hears of the other's."""
    registry = PlanRegistry(tmp_path)
    registry.add(PLAN_TEXT, ["a"], tenant=OURS)
    other = registry.add(PLAN_TEXT.replace("max_nodes = 3", "max_nodes = 4"), ["b"], tenant=THEIRS)
    assert [one.tenant for one in registry.list()] == [OURS, THEIRS]
    assert registry.find("flights", tenant=THEIRS).hash == other.hash
    assert registry.get(other.hash, OURS) is None
    assert registry.get(other.hash) == other


def test_a_token_asks_about_its_plans_alone(fleet: Fleet, tmp_path: Path) -> None:
    """A plan out of scope is as unknown as one that is not there."""
    (tmp_path / "trains.toml").write_text(PLAN_TEXT.replace('name = "flights"', 'name = "trains"'))
    (tmp_path / "flights.toml").write_text(PLAN_TEXT)
    both = [PlanEntry(path=tmp_path / f"{name}.toml", nodes=("a",), tenant=OURS) for name in ("flights", "trains")]
    with fleet.serving(*both) as served:
        token = fleet.token(OURS, "ann", plans=["trains"])
        with client.connect(served.open, ca=fleet.pki / "root.pem", token=token) as c:
            assert c.plans()["plan"].unique().to_list() == ["trains"]
            c.estimate("trains", "departures")
            texts = []
            for name in ("flights", "ships"):
                with pytest.raises(PlanUnknown) as raised:
                    c.estimate(name, "departures")
                texts.append(str(raised.value))
            assert texts[0] == texts[1]
