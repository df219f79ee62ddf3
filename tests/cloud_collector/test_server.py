"""The whole collector in one process, from sealed bytes to an answer, with the real landing and lake."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud_collector import client, sealing, server, service
from cloud_collector.config import Config, Database, PlanEntry
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.groups import Groups
from cloud_collector.lake import OWNER, Lake
from cloud_collector.landing import Landing
from cloud_collector.payload import most_bytes
from cloud_collector.plans import PlanRegistry
from cloud_collector.sealer import Sealer
from cloud_collector.sealing import Turns
from cloud_collector.telemetry import Event
from cloud_collector.upkeep import Upkeep
from edge_agg.contract import codec
from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import plan_hash
from edge_agg.contract.release import Status
from edge_agg.contract.v1 import collector_pb2
from edge_agg.contract.vectors import payload_columns
from tests.cloud_collector.front import PLAN, PLAN_TEXT, push, release, running, week

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ACCEPTED = (collector_pb2.OUTCOME_ACCEPTED, "")
DUPLICATE = (collector_pb2.OUTCOME_DUPLICATE, "")
REFUSED = collector_pb2.OUTCOME_REFUSED


def settings(folder: Path, *nodes: str, **more: Any) -> Config:
    plan = folder / "flights.toml"
    plan.write_text(PLAN_TEXT)
    given: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "data": folder / "data",
        "seal_every_s": 60.0,
        "max_message_bytes": 2**20,
        "max_queued_releases": 100,
        "max_batch": 10,
        "plans": (PlanEntry(path=plan, nodes=nodes),),
    }
    return Config(**{**given, **more})


def check_end_to_end(folder: Path) -> None:
    with running(settings(folder, "jfk", "lga", "ewr")) as address, client.connect(address) as c:
        first = [release("jfk", 0, 10), release("jfk", 1, 20), release("lga", 1, status=Status.EXHAUSTED)]
        assert push(address, *first, release("lga", 0, -3)) == [ACCEPTED] * 4
        assert push(address, *first) == [DUPLICATE] * 3
        assert push(address, release("ewr", 0, 1), release("lga", 1, 7)) == [ACCEPTED, (REFUSED, "conflict")]
        assert push(address, release("lga", 2)) == [(REFUSED, "fenced")]
        frame = c.estimate("flights", "departures", by=["carrier"], every="7d")
        again = c.estimate("flights", "departures", by=["carrier"], every="7d")
    assert frame["start"].to_list() == [week(0)] * 3 + [week(1)] * 3
    assert frame["carrier"].to_list() == ["UA", "AA", "other"] * 2
    assert frame["value"].to_list() == [2.0 * (10 - 3 + 1)] * 3 + [2.0 * 20] * 3
    assert frame["windows_reporting"].to_list() == [3] * 3 + [1] * 3
    assert frame["windows_expected"].to_list() == [3] * 6
    assert frame["status"].to_list() == ["complete"] * 3 + ["exhausted"] * 3
    assert frame.equals(again)


def test_what_was_acked_is_in_the_answer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushed, acked and asked for at once: exact totals, duplicates do not double, what is missing is typed."""
    for folder in ("real", "never sealed"):
        (tmp_path / folder).mkdir()
    check_end_to_end(tmp_path / "real")
    with monkeypatch.context() as mutant:
        mutant.setattr(Sealer, "seal", lambda self, upto: 0)
        with pytest.raises(AssertionError):
            check_end_to_end(tmp_path / "never sealed")


def test_a_missing_node_is_offline(tmp_path: Path) -> None:
    """A registered node that sent nothing is expected, counted and typed."""
    with running(settings(tmp_path, "jfk", "lga")) as address, client.connect(address) as c:
        push(address, release("jfk", 0))
        frame = c.estimate("flights", "aircraft", by=["node"])
    assert frame["node"].to_list() == ["jfk", "lga"]
    assert frame["value"].to_list() == [6.0, None]
    assert frame["status"].to_list() == ["complete", "offline"]


def check_restart(folder: Path) -> None:
    config = settings(folder, "jfk")
    with running(config) as address:
        push(address, release("jfk", 0, 4))
    with contextlib.closing(Landing(config.landing_path)) as landing:
        assert landing.unsealed(10) == []
    with running(config) as address, client.connect(address) as c:
        assert push(address, release("jfk", 0, 4)) == [DUPLICATE]
        assert c.estimate("flights", "departures")["value"].to_list() == [24.0]


def test_a_stop_seals_and_a_restart_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acked before a stop is in the lake after it, and is known when it comes again."""
    for folder in ("real", "never sealed"):
        (tmp_path / folder).mkdir()
    check_restart(tmp_path / "real")
    with monkeypatch.context() as mutant:
        mutant.setattr(Sealer, "seal", lambda self, upto: 0)
        with pytest.raises(AssertionError):
            check_restart(tmp_path / "never sealed")


def test_the_landing_is_sealed_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask before releases reach the lake; a seal that fails is said and tried again."""
    sealed = threading.Event()
    events: list[tuple[Event, dict[str, Any]]] = []
    tries: list[int] = []
    real = Sealer.seal

    def fail_first(self: Sealer, upto: int) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("canary")
        moved = real(self, upto)
        if moved:
            sealed.set()
        return moved

    monkeypatch.setattr(Sealer, "seal", fail_first)
    monkeypatch.setattr(sealing, "emit", lambda event, **fields: events.append((event, fields)))
    with running(settings(tmp_path, "jfk", seal_every_s=0.01)) as address:
        push(address, release("jfk", 0))
        assert sealed.wait(10)
    assert (Event.SEAL_FAILED, {"cause": "RuntimeError"}) in events
    assert "canary" not in str(events)


def test_the_configs_limit_is_what_may_gather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_queued_releases` bounds what waits in front of the landing, which is where releases wait.

    Mutant: the service is not told of it, and a limit of its own holds.
    """
    told: list[int] = []

    def noting(landing: Landing, *, max_waiting: int) -> Groups:
        told.append(max_waiting)
        return Groups(landing, max_waiting=max_waiting)

    monkeypatch.setattr(service, "Groups", noting)
    with running(settings(tmp_path, "jfk", max_queued_releases=17)) as address:
        assert push(address, release("jfk", 0)) == [ACCEPTED]
    assert told == [17]


def test_a_message_over_the_limit_is_not_read(tmp_path: Path) -> None:
    """It is refused by its size; there is no pushback, for sending it again cannot help."""
    config = settings(tmp_path, "jfk", max_message_bytes=100)
    with running(config) as address, pytest.raises(grpc.RpcError) as raised:
        push(address, release("jfk", 0))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def fail(self: Landing, releases: Sequence[object]) -> list[object]:
    """Land as on a disk that met an I/O error."""
    self._failed = True
    raise StoreFailed("the disk met an I/O error")


def test_a_failed_disk_refuses_the_call_and_ends_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is told to send again, and the process does not pretend to go on."""
    monkeypatch.setattr(Landing, "land", fail)
    codes: list[grpc.StatusCode] = []

    def send(address: str) -> None:
        try:
            push(address, release("jfk", 0))
        except grpc.RpcError as error:
            codes.append(error.code())

    async def run() -> None:
        agent: list[threading.Thread] = []

        def ready(address: str) -> None:
            agent.append(threading.Thread(target=send, args=(address,)))
            agent[0].start()

        with pytest.raises(StoreFailed):
            await asyncio.wait_for(server.serve(settings(tmp_path, "jfk"), ready=ready, stop=asyncio.Event()), 20)
        agent[0].join()

    asyncio.run(run())
    assert codes == [grpc.StatusCode.UNAVAILABLE]


def test_a_full_disk_refuses_the_call_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that left nothing behind may be tried again when there is room: the collector recovers alone."""
    real = Landing.land
    tries: list[int] = []

    async def full_once(self: Landing, releases: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise StoreFailed("the landing could not commit")
        return await real(self, releases)

    monkeypatch.setattr(Landing, "land", full_once)
    with running(settings(tmp_path, "jfk")) as address:
        with pytest.raises(grpc.RpcError):
            push(address, release("jfk", 0))
        assert push(address, release("jfk", 0)) == [ACCEPTED]


def test_health_and_reflection_answer(tmp_path: Path) -> None:
    """A load balancer and grpcurl find what they look for."""
    with running(settings(tmp_path, "jfk")) as address, grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "edge_agg.contract.v1.CollectorService", "edge_agg.contract.v1.QueryService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5
        )
        names = {one.name for one in next(listing).list_services_response.service}
    assert "edge_agg.contract.v1.QueryService" in names


def test_a_taken_port_is_a_config_error(tmp_path: Path) -> None:
    """Two collectors never share a port and split the agents' calls."""
    for name in "ab":
        (tmp_path / name).mkdir()
    with running(settings(tmp_path / "a")) as address:
        second = settings(tmp_path / "b", listen=address)
        with pytest.raises(ConfigInvalid, match="listen"):
            asyncio.run(server.serve(second, stop=asyncio.Event()))


def test_a_broken_plan_stops_the_start(tmp_path: Path) -> None:
    """Before a call is taken, and naming the file and the field."""
    config = settings(tmp_path)
    config.plans[0].path.write_text(PLAN_TEXT.replace("max_nodes = 3", "max_nodes = 0"))
    with pytest.raises(ConfigInvalid, match=r"flights\.toml: \$\.privacy_unit\.max_nodes"):
        asyncio.run(server.serve(config, stop=asyncio.Event()))


def test_sigterm_stops_in_order(tmp_path: Path) -> None:
    """The signal ends `serve` without an exception."""
    asyncio.run(server.serve(settings(tmp_path), ready=lambda _: signal.raise_signal(signal.SIGTERM)))


@pytest.mark.parametrize("busy", [(Upkeep, "run"), (Turns, "seal")])
def test_a_stop_drains_at_once_whatever_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: tuple[type, str]
) -> None:
    """A round of upkeep, or a pass of the sealer, that takes long keeps no call coming in after the stop.

    Mutant: the stop waits for the round before it leaves the port; calls are taken all the while.
    """
    begun, over = threading.Event(), threading.Event()

    def long(*_: object) -> int:
        begun.set()
        assert over.wait(30)
        return 0

    async def until_refused(address: str) -> bool:
        for _ in range(100):
            try:
                await asyncio.to_thread(push, address, release("jfk", 0))
            except grpc.RpcError:
                return True
            await asyncio.sleep(0.05)
        return False

    async def run() -> bool:
        stop, up = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(server.serve(settings(tmp_path, "jfk"), ready=up.set_result, stop=stop))
        address = await up
        assert await asyncio.to_thread(begun.wait, 30)
        stop.set()
        try:
            return await until_refused(address)
        finally:
            over.set()
            await serving

    monkeypatch.setattr(*busy, long)
    assert asyncio.run(run())


def test_a_plan_added_by_another_process_is_taken(tmp_path: Path) -> None:
    """`plans add` needs no restart."""
    from cloud_collector.plans import PlanRegistry

    config = settings(tmp_path, plans=())
    with running(config) as address, client.connect(address) as c:
        assert push(address, release("jfk", 0)) == [(REFUSED, "plan_unknown")]
        PlanRegistry(config.plans_path).add(PLAN_TEXT, ["jfk"])
        assert push(address, release("jfk", 0)) == [ACCEPTED]
        assert c.plans()["plan"].unique().to_list() == [PLAN.name]


# What belongs together


def two_landings_in_one_lake(folder: Path, *, marked: bool) -> str | None:
    """A second data folder comes to a lake that another landing was sealed into; why it is refused."""
    lake = Lake(folder / "lake")
    registry = PlanRegistry(folder / "plans")
    registry.add(PLAN_TEXT, ["jfk"])
    config = settings(folder)
    for name in ("one", "two"):
        with contextlib.closing(Landing(folder / f"{name}.sqlite")) as landing:
            try:
                server.bind(config, landing, lake, registry)
            except ConfigInvalid as refused:
                return str(refused)
            sent = release(name, 0)
            asyncio.run(landing.land([codec.open_sealed(sent.header, sent.payload)]))
            assert Sealer(landing, lake, server.plan_of(registry)).seal() == 1
        if not marked:  # by a collector that knew no marks
            (folder / "lake" / OWNER).unlink()
    return None


def test_a_lake_is_sealed_into_from_one_landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its mark, or by what its tables note; roll-ups would lack what the other sealed. Mutants look at neither."""
    assert "another landing" in str(two_landings_in_one_lake(tmp_path / "marked", marked=True))
    assert "sealed from another landing too" in str(two_landings_in_one_lake(tmp_path / "unmarked", marked=False))
    monkeypatch.setattr(Lake, "sealed_by", lambda *_: set())
    assert two_landings_in_one_lake(tmp_path / "tables unread", marked=False) is None
    monkeypatch.setattr(Landing, "bind", lambda *_: None)
    (tmp_path / "mark unread" / "lake").mkdir(parents=True)
    (tmp_path / "mark unread" / "lake" / OWNER).write_text("another's")
    assert two_landings_in_one_lake(tmp_path / "mark unread", marked=True) is None


def test_a_folder_with_a_landing_is_no_place_for_one_on_a_server(tmp_path: Path) -> None:
    """Its keys would be forgotten; nothing is claimed."""
    (tmp_path / "data").mkdir()
    lake, config = Lake(tmp_path / "lake"), settings(tmp_path, database=Database(url="postgresql://localhost/x"))
    with (
        contextlib.closing(Landing(config.landing_path)) as landing,
        pytest.raises(ConfigInvalid, match=r"\$\.landing\.url: .* landing of its own"),
    ):
        server.bind(config, landing, lake, PlanRegistry(config.plans_path))
    assert lake.owner() is None


def test_a_plan_whose_release_may_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before an agent has charged for a release that nobody takes. Mutant: the number of cells alone is looked at."""
    said: list[tuple[Event, dict[str, Any]]] = []
    monkeypatch.setattr(server, "emit", lambda event, **fields: said.append((event, fields)))
    bytes_ = most_bytes(plan_hash(PLAN), PLAN)
    assert bytes_ == 8 * n_cells(PLAN) * len(payload_columns(PLAN)) > 8 * n_cells(PLAN)
    for limit, named in ((bytes_, []), (bytes_ - 1, [bytes_])):
        said.clear()
        server.registry_of(settings(tmp_path, max_message_bytes=limit))
        assert [fields["bytes"] for event, fields in said if event is Event.PLAN_LARGE] == named
