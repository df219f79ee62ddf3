"""What doctor finds: each thing that can be wrong, and what to do; and a bundle that holds nothing raw."""

from __future__ import annotations

import base64
import io
import json
import ssl
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import grpc
import pytest
from rich.console import Console

from edge_agg import prospect
from edge_agg.audit import charges
from edge_agg.config import load
from edge_agg.doctor import around, bundle, page
from edge_agg.doctor import examine as steps
from edge_agg.doctor import folder as room
from edge_agg.doctor.examine import examine
from edge_agg.doctor.finding import Finding, Health, fine
from edge_agg.doctor.redact import redacted
from edge_agg.errors import ConfigInvalid
from edge_agg.journal import Journal
from edge_agg.privacy.statement import budget_of
from edge_agg.report import state
from edge_agg.report.live import Live
from edge_agg.series import Account, Series
from edge_agg.window import Span
from tests.edge_agg.compiled import compiled_once
from tests.fakes import COUNT, DAY, MEAN, MONDAY, WEEK, Row, batch_of, small_plan_text, write_config, write_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


CANARY = "canary"
"""In every value that only the device may know."""
PLAN = small_plan_text(COUNT, MEAN, max_windows=2)
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A device on which an agent has run: units, keys, rows in a spool, secrets in files; all of them canaries."""
    config = write_config(tmp_path, PLAN)
    rows = [Row(u=f"{CANARY}-unit-{i}", k=f"{CANARY}-key", t=MONDAY + i % 20 * DAY, x=float(i)) for i in range(50)]
    write_events(tmp_path / "events" / "a.parquet", rows)
    loaded, (plan,) = load(config)
    with closing(Journal.open(tmp_path / "state", "node", now=MONDAY)) as journal:
        series = Series(
            tenant="default",
            measurement=compiled_once(plan),
            account=Account(name="people", budget=budget_of(epsilon=20.0, delta=1e-5, horizon=365 * DAY)),
            journal=journal,
            span=Span(start=MONDAY, end=MONDAY + 4 * WEEK),
        )
        series.add(batch_of(rows, plan))
        for week in range(4):
            series.close(MONDAY + week * WEEK)
        journal.settle(acked=[1], parked=[])
        journal.note([], {f"{CANARY}.rejected": 31337})
    spool = tmp_path / "state" / "spool"
    spool.mkdir(mode=0o700)
    (spool / f"{CANARY}.segment").write_bytes(CANARY.encode() * 100)
    for path in spool.iterdir():
        path.chmod(0o600)
    (tmp_path / "token").write_text(f"{CANARY}-token")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "policy.toml").write_text("[plans]\nmax_nodes = 5\n")
    (tmp_path / "policy.toml").chmod(0o644)
    text = config.read_text().replace('state = "state"', 'state = "state"\npolicy = "policy.toml"')
    pushed = '\n[[source]]\nkind = "http"\nlisten = "127.0.0.1:18999"\ntoken_file = "token"\n'
    broker = 'url = "mqtt://127.0.0.1:1883"\ntopics = ["t"]\nclient_id = "canary-id"\nusername = "canary-user"\n'
    config.write_text(text + pushed + f'\n[[source]]\nkind = "mqtt"\n{broker}')
    assert loaded.agent.name == "node"
    return config


@pytest.fixture
def collector() -> Iterator[Callable[[bytes], str]]:
    """A collector that says how it is; returns its address."""
    servers: list[grpc.Server] = []

    def serving(answer: bytes) -> str:
        server = grpc.server(ThreadPoolExecutor(1))
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda _, __: answer)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serving
    for server in servers:
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def _well_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources have tests of their own, and so has the way to the collector; here both are well."""

    class Well:
        name = "a source"

        def check(self, columns: object) -> None:
            """Nothing to say."""

    monkeypatch.setattr(around, "source_of", lambda table, clock: Well())
    for place in (steps, state, charges, prospect):
        monkeypatch.setattr(place, "compile_plan", compiled_once)
    monkeypatch.setattr(steps, "examine_collector", lambda _: fine("collector", "serves"))
    monkeypatch.setattr(around, "DEADLINE_S", 0.2)
    monkeypatch.setenv("COLUMNS", "80")


def found(config: Path, about: str) -> Finding:
    """The worst that was found about something."""
    worst = {Health.FAIL: 2, Health.WARN: 1, Health.OK: 0}
    return max((one for one in examine(config).findings if one.about == about), key=lambda one: worst[one.health])


def write(config: Path, old: str, new: str) -> None:
    """Change the config."""
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


# What is found


def test_a_well_device_is_well(site: Path) -> None:
    """Guarantee: where nothing is wrong nothing is said to be, whatever anybody else's clock or disk says."""
    failed = [one for one in examine(site).findings if one.health is Health.FAIL]
    assert failed == []
    abouts = [one.about for one in examine(site).findings]
    for about in ("config", "plan small", "policy", "state folder", "disk", "journal", "ledger", "clock", "collector"):
        assert about in abouts
    assert found(site, "ledger").said == "everything follows, 4 releases"
    assert found(site, "agent").health is Health.WARN  # it does not run


def loosen(site: Path) -> None:
    (site.parent / "state" / "journal.sqlite").chmod(0o644)


def damage(site: Path) -> None:
    file = site.parent / "state" / "journal.sqlite"
    raw = bytearray(file.read_bytes())
    raw[4096:] = b"\x5a" * (len(raw) - 4096)
    file.write_bytes(raw)


def cook(site: Path) -> None:
    with closing(apsw.Connection(str(site.parent / "state" / "journal.sqlite"))) as db:
        db.execute("UPDATE charge SET rho='1/1000000' WHERE rowid=2")


def take_over(site: Path) -> None:
    write(site, 'name = "node"', 'name = "other"')


def be_careless(site: Path) -> None:
    (site.parent / "token").chmod(0o644)


def leave_empty(site: Path) -> None:
    (site.parent / "token").write_text("")


def open_policy(site: Path) -> None:
    (site.parent / "policy.toml").chmod(0o666)


def misspell_policy(site: Path) -> None:
    (site.parent / "policy.toml").write_text("[plan]\n")


def break_config(site: Path) -> None:
    write(site, "[collector]", "[colector]")


def starve_plan(site: Path) -> None:
    (site.parent / "plan0.toml").write_text(small_plan_text(epsilon=1e-12, max_rows=2**20, mechanism="laplace"))


def fill(site: Path) -> None:
    write(site, "[collector]", '[disk]\nlimit = "16MiB"\n\n[collector]')
    with (site.parent / "state" / "spool" / "more").open("wb") as file:
        file.write(b"\1" * (17 << 20))
    (site.parent / "state" / "spool" / "more").chmod(0o600)


WRONG = {
    "config": (break_config, "config", "colector"),
    "plan": (starve_plan, "plan small", "no noise scale"),
    "policy": (misspell_policy, "policy", "unknown field"),
    "policy file": (open_policy, "policy file", "changed by others"),
    "rights": (loosen, "state folder", "by others (mode 0644)"),
    "disk": (fill, "disk", "more than [disk].limit"),
    "journal": (damage, "journal", "damaged"),
    "ledger": (cook, "ledger", "do not follow"),
    "another agent": (take_over, "ledger", "another agent"),
    "secret": (be_careless, "source 1, token_file", "by others"),
    "no secret": (leave_empty, "source 1, token_file", "is empty"),
}


@pytest.mark.parametrize(("spoil", "about", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_found(site: Path, spoil: Callable[[Path], None], about: str, said: str) -> None:
    """Guarantee: each thing that is broken on purpose is found by its name, and what to do about it is said."""
    assert about == "config" or found(site, about).health is Health.OK
    spoil(site)
    finding = found(site, about)
    assert finding.health is Health.FAIL
    assert said in finding.said
    assert finding.remedy


def test_a_veto_deserves_a_look(site: Path) -> None:
    """Guarantee: a plan that the policy forbids is named with the rule, and is no failure."""
    (site.parent / "policy.toml").write_text("[plans]\nallowed = []\n")
    finding = found(site, "policy")
    assert (finding.health, finding.said) == (Health.WARN, "vetoes small (plans.allowed)")


def test_an_agent_that_never_ran(tmp_path: Path) -> None:
    """Guarantee: before the first start nothing is broken, and nothing is made by looking."""
    config = write_config(tmp_path)
    assert found(config, "state folder").health is Health.WARN
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir(mode=0o700)
    assert found(config, "journal").health is Health.WARN
    assert list((tmp_path / "state").iterdir()) == []


def test_a_collector_that_answers(site: Path, collector: Callable[[bytes], str]) -> None:
    """Guarantee: serving, not serving, no answer and nobody there are told apart, within the deadline."""
    config, _ = load(site)
    nobody = around.examine_collector(config)
    assert (nobody.health, nobody.said.startswith("127.0.0.1:1 says ")) == (Health.FAIL, True)
    for answer, health in ((_SERVING, Health.OK), (_NOT_SERVING, Health.FAIL), (b"", Health.FAIL)):
        write(site, f'url = "{config.collector.url}"', f'url = "{collector(answer)}"')
        config, _ = load(site)
        assert around.examine_collector(config).health is health


def test_a_clock_that_cannot_be_right(site: Path) -> None:
    """Guarantee: 1970, before the journal was made, and behind what was seen before are found."""
    config, _ = load(site)
    assert around.examine_clock(config, now=datetime(1970, 1, 2, tzinfo=UTC)).health is Health.FAIL
    assert "journal was made" in around.examine_clock(config, now=MONDAY - DAY).said
    assert around.examine_clock(config, now=MONDAY + DAY).health is not Health.FAIL


def test_a_source_that_cannot_be_looked_at(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what a library says about a source is not repeated: it may quote what it read."""

    def broken(*_: object) -> None:
        raise ValueError(f"{CANARY} in row 7")

    monkeypatch.setattr(around, "source_of", broken)
    finding = found(site, "source 0")
    assert (finding.health, CANARY in finding.said + finding.remedy) == (Health.FAIL, False)


def test_a_disk_that_a_restart_empties(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a journal in memory is a ledger that begins anew; it is found."""
    assert found(site, "disk").health is not Health.FAIL
    monkeypatch.setattr(room, "_file_system", lambda _: "tmpfs")
    assert "tmpfs" in found(site, "disk").said


def test_the_end_of_a_certificate_is_seen_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: past its end it is wrong, within thirty days it deserves a look, and a file without one is wrong."""

    class Context:
        def __init__(self, _: object) -> None:
            """Holds one certificate."""

        def load_verify_locations(self, _: object) -> None:
            """Read it."""

        def get_ca_certs(self) -> list[dict[str, str]]:
            """It ends in 2030."""
            return [{"notAfter": "Jan  1 00:00:00 2030 GMT"}]

    file, end = tmp_path / "ca.pem", datetime(2030, 1, 1, tzinfo=UTC)
    assert around._certificates("ca", file, end).health is Health.FAIL
    file.write_text("no certificate")
    assert around._certificates("ca", file, end).health is Health.FAIL
    monkeypatch.setattr(ssl, "SSLContext", Context)
    healths = [around._certificates("ca", file, end + timedelta(days=day)).health for day in (-31, -29, 1)]
    assert healths == [Health.OK, Health.WARN, Health.FAIL]


def test_the_page_says_what_to_do(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: within eighty columns, every remedy under the table; false where anything is wrong."""
    assert page.doctor(site, output=None)
    assert "agent: Start it:" in capsys.readouterr().out
    be_careless(site)
    assert not page.doctor(site, output=None)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "source 1, token_file: chmod go=" in " ".join(out.split())
    assert CANARY not in out


# The bundle


def scan(raw: bytes, secrets: list[bytes]) -> list[str]:
    """Where any canary shows, in any file of a bundle, its name, or the archive's own bytes."""
    spelt = [CANARY.encode(), CANARY.upper().encode(), CANARY.encode("utf-16-le"), CANARY.encode().hex().encode()]
    spelt += [base64.b64encode(CANARY.encode() + bytes(n)).rstrip(b"=")[:7] for n in range(3)]
    spelt += [b"31337", b"31,337"]
    for secret in secrets:
        spelt += [secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret)[:-4]]
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive}
        texts = {"the archive": raw} | {name: file.read() for name, file in files.items() if file is not None}
    return [name for name, text in texts.items() if any(one in text or one in name.encode() for one in spelt)]


def secrets_of(site: Path) -> list[bytes]:
    """The journal's secret and what it still holds of payloads."""
    with closing(apsw.Connection(str(site.parent / "state" / "journal.sqlite"))) as db:
        rows = db.execute("SELECT secret FROM journal UNION ALL SELECT payload FROM release WHERE length(payload) > 0")
        return [value for (value,) in rows]


def bundled(site: Path) -> bytes:
    """A bundle's bytes."""
    output = site.parent / "support.tar.gz"
    bundle.write_bundle(output, examine(site))
    return output.read_bytes()


def test_a_bundle_holds_nothing_of_the_data(site: Path) -> None:
    """Guarantee: in a state folder full of canaries (units, keys, counts, raw rows, secrets) the bundle has none."""
    secrets = secrets_of(site)
    assert len(secrets) >= 4
    raw = bundled(site)
    assert scan(raw, secrets) == []
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        names = {name.removeprefix("edge-agg-support/") for name in archive.getnames()}
    assert names >= {"findings.json", "versions.json", "config.json", "plans/small.json", "policy.json", "journal.json"}
    assert names >= {"status.json", "state.json"}


def _whole_journal(config: Any, _: object) -> str:
    return (Path(config.agent.state) / "journal.sqlite").read_bytes().decode("latin-1")


def _counts(config: Any, _: object) -> dict[str, int]:
    journal = Journal.read(Path(config.agent.state), config.agent.name)
    found = journal.local_counts()
    journal.close()
    return found


def _listing(config: Any, _: object) -> list[str]:
    return [path.name for path in Path(config.agent.state).glob("**/*")]


def _tokens(config: Any, _: object) -> str:
    return Path(config.source[1].token_file).read_text()


def _payloads(config: Any, _: object) -> list[str]:
    with closing(apsw.Connection(str(Path(config.agent.state) / "journal.sqlite"))) as db:
        return [
            base64.b64encode(one).decode() for (one,) in db.execute("SELECT payload FROM release WHERE payload != ''")
        ]


@pytest.mark.parametrize("careless", [_whole_journal, _counts, _listing, _tokens, _payloads])
def test_the_scan_would_find_it(
    site: Path, careless: Callable[[Any, object], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutants: the journal itself, local counts, the spool's names, a file of a secret, a payload; each is caught."""
    monkeypatch.setattr(bundle, "_state", careless)
    assert scan(bundled(site), secrets_of(site)) != []


def test_a_config_without_the_list_would_tell(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a config that is shown whole tells the broker's user."""
    import msgspec

    monkeypatch.setattr(bundle, "redacted", msgspec.to_builtins)
    assert scan(bundled(site), []) == ["edge-agg-support/config.json"]


def test_a_new_field_is_hidden() -> None:
    """Guarantee: what is not listed is not shown; numbers are; a login in an address is not."""
    table = {"name": "n", "url": "mqtt://u:p@h:1", "password": "p", "deadline_s": 2.0, "topics": ["a"], "new": ["x", 1]}
    assert redacted(table) == {
        "name": "n",
        "url": "mqtt://(hidden)@h:1",
        "password": "(hidden)",
        "deadline_s": 2.0,
        "topics": ["a"],
        "new": ["(hidden)", 1],
    }
    assert redacted({"url": "u:p@h:1"}) == {"url": "(hidden)@h:1"}


def test_sizes_are_rough(site: Path) -> None:
    """Guarantee: of a file's size no more than its power of two is told: an exact one would count the units kept."""
    with tarfile.open(fileobj=io.BytesIO(bundled(site))) as archive:
        file = archive.extractfile("edge-agg-support/state.json")
        assert file is not None
        sizes = {name: entry["at_most"] for name, entry in json.loads(file.read()).items()}
    assert sizes["journal.sqlite"] >= (site.parent / "state" / "journal.sqlite").stat().st_size
    assert all(size & (size - 1) == 0 for size in sizes.values())


def test_a_bundle_of_a_config_that_cannot_be_read(site: Path) -> None:
    """Guarantee: there is one, with what was found; and one that cannot be written is said, and leaves no trace."""
    break_config(site)
    assert not scan(bundled(site), [])
    with pytest.raises(ConfigInvalid, match="cannot be written"):
        bundle.write_bundle(site.parent / "none" / "x.tar.gz", examine(site))


def test_the_bundle_is_its_owners_alone(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: mode 0600, and no part is left beside it."""
    output = site.parent / "support.tar.gz"
    page.doctor(site, output=output)
    assert output.stat().st_mode & 0o777 == 0o600
    assert not list(site.parent.glob(".*part"))
    assert "nothing of the data" in " ".join(capsys.readouterr().out.split())
    assert Console().width == 80


def test_a_fence_is_wrong_and_a_head_that_nobody_heard_is_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what only the people who run the fleet can lift is said to be wrong, and whom to ask."""
    config, _ = load(write_config(tmp_path))
    monkeypatch.setattr(around, "holder", lambda folder: 7)
    for holding, health, words in (
        ("fenced", Health.FAIL, "the collector has fenced it"),
        ("head", Health.WARN, "holds: head"),
    ):
        monkeypatch.setattr(around, "ask", lambda folder, holding=holding: Live(pid=7, holding=holding))
        found = around.examine_process(config)
        assert (found.health, words in found.said) == (health, True)
        assert found.remedy
