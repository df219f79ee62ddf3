"""The agent's config: strict, and what is wrong is named by its path."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from edge_agg.config import FileTable, discovery_of, horizon_of, load, load_plan, plans_of, span_of
from edge_agg.contract.plan import plan_hash
from edge_agg.errors import ConfigInvalid
from examples.flights import site
from tests.fakes import small_plan_text, write_config

if TYPE_CHECKING:
    from pathlib import Path

DESIGN = """\
# agent.toml
[agent]
name = "jfk"
state = "state/jfk"

[collector]
url = "127.0.0.1:8815"                 # without TLS only on loopback

[[account]]                            # one per population, shared by all plans over it
name = "aircraft"
privacy_unit = "tailnum"
epsilon = 20.0
delta = 1e-5
horizon = "365d"

[[source]]
kind = "file"
path = "events/jfk/*.parquet"          # parquet, ndjson, csv, arrow

[[plan]]
path = "plans/flight_delays.toml"
account = "aircraft"
"""
URL = 'url = "127.0.0.1:1"'


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """A good config with one thing changed."""
    path = write_config(tmp_path)
    text = path.read_text()
    assert text.count(old) == 1, f"stands {text.count(old)} times: {old}"
    path.write_text(text.replace(old, new))
    return path


def test_the_sample_of_the_design_is_taken(tmp_path: Path) -> None:
    """Guarantee: what the docs show works, and relative paths are taken from the config's folder."""
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "flight_delays.toml").write_text(site.PLAN.read_text())
    path = tmp_path / "agent.toml"
    path.write_text(DESIGN)
    config, plans = load(path)
    assert [plan.name for plan in plans] == ["flight_delays"]
    assert config.agent.state == str(tmp_path / "state" / "jfk")
    assert isinstance(config.source[0], FileTable)
    assert config.source[0].path == str(tmp_path / "events" / "jfk" / "*.parquet")
    assert config.plan[0].path == str(tmp_path / "plans" / "flight_delays.toml")
    assert (config.agent.tenant, config.collector.batch, config.history) == ("default", 20, None)
    assert (horizon_of(config.account[0]), span_of(None)) == (timedelta(days=365), (None, None))


def test_the_demos_configs_are_taken(tmp_path: Path) -> None:
    """Guarantee: what the example lays out works."""
    from datetime import date

    for path in site.lay_out(tmp_path, port=8815, start=date(2013, 1, 7), end=date(2013, 12, 30)):
        config, _ = load(path)
        assert span_of(config.history) == (datetime(2013, 1, 7, tzinfo=UTC), datetime(2013, 12, 30, tzinfo=UTC))


def test_absolute_paths_stay(tmp_path: Path) -> None:
    """A path from the root is taken as it is."""
    config, _ = load(changed(tmp_path, 'state = "state"', 'state = "/var/lib/agent"'))
    assert config.agent.state == "/var/lib/agent"


WRONG = [
    ('name = "node"', 'name = "no/de"', "$.agent.name"),
    ('name = "node"', 'name = ""', "$.agent.name"),
    ('name = "node"', f'name = "{"n" * 64}"', "$.agent.name"),
    ('name = "node"', "name = 7", "$.agent.name"),
    ('state = "state"', "", "$.agent"),
    ('state = "state"', 'state = "state"\ntenant = "a b"', "$.agent.tenant"),
    ('state = "state"', 'state = "state"\nstat = "x"', "$.agent"),
    (URL, 'url = "10.0.0.1:1"', "$.collector.url"),
    (URL, 'url = "collector.example:443"', "$.collector.url"),
    (URL, 'url = "127.0.0.1"', "$.collector.url"),
    (URL, f"{URL}\nbatch = 0", "$.collector.batch"),
    (URL, f"{URL}\nbatch = 65", "$.collector.batch"),
    (URL, f"{URL}\nbatch = 2.5", "$.collector.batch"),
    (URL, f"{URL}\nretries = 2", "$.collector"),
    ("epsilon = 20.0", "epsilon = 0.0", "$.account[0].epsilon"),
    ("epsilon = 20.0", "epsilon = nan", "$.account[0].epsilon"),
    ("epsilon = 20.0", "epsilon = inf", "$.account[0].epsilon"),
    ("epsilon = 20.0", "epsilon = 1000.1", "$.account[0].epsilon"),
    ("delta = 1e-5", "delta = 0.0", "$.account[0].delta"),
    ("delta = 1e-5", "delta = 1.0", "$.account[0].delta"),
    ('horizon = "365d"', 'horizon = "23h"', "$.account[0].horizon"),
    ('horizon = "365d"', 'horizon = "a year"', "$.account[0].horizon"),
    ('horizon = "365d"', "", "$.account[0]"),
    ('privacy_unit = "u"', 'privacy_unit = "k"', "$.plan[0].account"),
    ('account = "people"', 'account = "nobody"', "$.plan[0].account"),
    ('kind = "file"', 'kind = "kafka"', "$.source[0].kind"),
    ("start = 2013-01-07", "start = 2013-02-04", "$.history"),
    ("start = 2013-01-07", 'start = "soon"', "$.history.start"),
    ("start = 2013-01-07", "", "$.history"),
]


@pytest.mark.parametrize(("old", "new", "field"), WRONG)
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, old: str, new: str, field: str) -> None:
    """Guarantee: every rule is checked at start, and the error names the file and the field."""
    path = changed(tmp_path, old, new)
    with pytest.raises(ConfigInvalid) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {field}: ")


@pytest.mark.parametrize(
    "line",
    [
        "retry_first_s = 0.0",
        "retry_first_s = -1.0",
        "retry_first_s = nan",
        "retry_limit_s = 0.0",
        "retry_limit_s = inf",
        "deadline_s = 0.0",
        "deadline_s = -5.0",
    ],
)
def test_waiting_times_are_positive_and_finite(tmp_path: Path, line: str) -> None:
    """Guarantee: no config makes the agent hammer its collector, give up each call at once, or wait for ever."""
    path = changed(tmp_path, URL, f"{URL}\n{line}")
    with pytest.raises(ConfigInvalid, match=r"\$\.collector\." + line.split(maxsplit=1)[0]):
        load(path)


@pytest.mark.parametrize("name", ["", "x" * 129])
def test_an_accounts_name_fits_a_release(tmp_path: Path, name: str) -> None:
    """Guarantee: a name that the collector would refuse is refused before anything is charged to it."""
    path = write_config(tmp_path)
    path.write_text(path.read_text().replace('"people"', f'"{name}"'))
    with pytest.raises(ConfigInvalid, match=r"\$\.account\[0\]\.name"):
        load(path)


@pytest.mark.parametrize("horizon", ["999999999d", "800000d"])
def test_a_horizon_can_be_reckoned_with(tmp_path: Path, horizon: str) -> None:
    """Guarantee: a horizon that no calendar holds is refused at start, not at the first charge."""
    with pytest.raises(ConfigInvalid, match=r"\$\.account\[0\]\.horizon"):
        load(changed(tmp_path, 'horizon = "365d"', f'horizon = "{horizon}"'))


def test_names_are_taken_once(tmp_path: Path) -> None:
    """Two plans or two accounts of one name are refused."""
    with pytest.raises(ConfigInvalid, match=r"\$\.plan: two plans"):
        load(write_config(tmp_path, small_plan_text(), small_plan_text()))
    path = write_config(tmp_path)
    table = 'name = "people"\nprivacy_unit = "u"\nepsilon = 1.0\ndelta = 1e-6\nhorizon = "7d"\n'
    path.write_text(f"{path.read_text()}\n[[account]]\n{table}")
    with pytest.raises(ConfigInvalid, match=r"\$\.account: two accounts"):
        load(path)


def test_plans_agree_on_the_columns_that_they_share(tmp_path: Path) -> None:
    """Guarantee: one source is read once, so a column has one type."""
    other = small_plan_text(name="other").replace('x = "float"', 'x = "integer"')
    with pytest.raises(ConfigInvalid, match=r"\$\.plan\[1\]: reads a column as another type"):
        load(write_config(tmp_path, small_plan_text(), other))


@pytest.mark.parametrize("table", ["source", "plan"])
def test_an_agent_needs_something_to_do(tmp_path: Path, table: str) -> None:
    """Guarantee: no sources, or no plans, is an error of the config."""
    path = write_config(tmp_path)
    head, _, tail = path.read_text().partition(f"[[{table}]]")
    rest = tail[tail.index("[[") :] if "[[" in tail else ""
    path.write_text(f"{table} = []\n{head}{rest}")
    with pytest.raises(ConfigInvalid, match=rf"\$\.{table}: an agent has at least one"):
        load(path)


def test_a_plan_that_is_wrong_is_named_with_its_file(tmp_path: Path) -> None:
    """Guarantee: the plan's file and the path in it."""
    path = write_config(tmp_path, small_plan_text(max_rows=0))
    with pytest.raises(ConfigInvalid) as caught:
        load(path)
    assert str(caught.value).startswith(f"{tmp_path / 'plan0.toml'}: $.bounds.max_rows_per_partition: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Not there, not UTF-8, not TOML: one line each, naming the file."""
    with pytest.raises(ConfigInvalid, match=r"none\.toml: cannot be read"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigInvalid, match=r"none\.toml: cannot be read"):
        load_plan(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid, match="not TOML"):
        load(tmp_path / "bad.toml")
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        load_plan(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("[agent")
    with pytest.raises(ConfigInvalid, match="not TOML"):
        load(tmp_path / "bad.toml")


@pytest.mark.parametrize("url", ["localhost:1", "127.0.0.1:65535", "[::1]:8815", "127.9.9.9:80"])
def test_loopback_addresses_are_taken(tmp_path: Path, url: str) -> None:
    """Without TLS this machine alone is spoken to."""
    assert load(changed(tmp_path, URL, f'url = "{url}"'))[0].collector.url == url


# What the wider grammar asks of a config


@pytest.mark.parametrize(
    ("given", "discovers", "kept"), [(None, False, 0.0), (None, True, 5e-6), (1e-6, True, 1e-6), (1e-6, False, 1e-6)]
)
def test_an_account_keeps_a_part_of_its_delta_for_discovery(
    tmp_path: Path, given: float | None, *, discovers: bool, kept: float
) -> None:
    """Guarantee: what is written, or half of delta where a plan of that account discovers keys, or nothing."""
    text = small_plan_text(discover=1e-9 if discovers else None)
    config, plans = load(write_config(tmp_path, text, discovery=given))
    account = config.account[0]
    assert discovery_of(account, plans_of(config, plans, account.name)) == kept
    assert discovery_of(account, plans_of(config, plans, "another")) == (0.0 if given is None else given)


def test_another_accounts_discovery_takes_nothing(tmp_path: Path) -> None:
    """Guarantee: each account keeps delta for its own plans."""
    path = write_config(tmp_path, small_plan_text(), small_plan_text(name="found", discover=1e-9))
    table = '[[account]]\nname = "readers"\nprivacy_unit = "u"\nepsilon = 1.0\ndelta = 1e-6\nhorizon = "7d"\n'
    head, plan, last = path.read_text().rpartition("[[plan]]")
    path.write_text(head + table + plan + last.replace('"people"', '"readers"'))
    config, plans = load(path)
    kept = [discovery_of(account, plans_of(config, plans, account.name)) for account in config.account]
    assert kept == [0.0, 5e-7]


@pytest.mark.parametrize(
    ("discovery", "field"),
    [("1e-5", r"account\[0\]\.discovery"), ("-1e-9", r"account\[0\]\.discovery"), ("nan", r"account\[0\]\.discovery")],
)
def test_discovery_is_a_part_of_delta(tmp_path: Path, discovery: str, field: str) -> None:
    """Guarantee: something of delta stays for the conversion of rho, and nothing is taken from it twice."""
    path = changed(tmp_path, "delta = 1e-5", f"delta = 1e-5\ndiscovery = {discovery}")
    with pytest.raises(ConfigInvalid, match=field):
        load(path)


def test_an_account_that_keeps_nothing_cannot_pay_for_discovery(tmp_path: Path) -> None:
    """Guarantee: fail at start, not with an exhausted window."""
    with pytest.raises(ConfigInvalid, match=r"\$\.plan\[0\]\.account: keeps no delta for discovery"):
        load(write_config(tmp_path, small_plan_text(discover=1e-9), discovery=0.0))


EVENT = small_plan_text(max_rows=1).replace('column = "u"', "event = true")


def test_events_that_are_their_own_units_are_a_population(tmp_path: Path) -> None:
    """Guarantee: an account whose privacy unit is `event` pays for plans of events, and for no others."""
    path = write_config(tmp_path, EVENT)
    with pytest.raises(ConfigInvalid, match=r"\$\.plan\[0\]\.account: protects another privacy unit"):
        load(path)
    path.write_text(path.read_text().replace('privacy_unit = "u"', 'privacy_unit = "event"'))
    assert load(path)[1][0].privacy_unit.column is None
    (tmp_path / "plan0.toml").write_text(small_plan_text())
    with pytest.raises(ConfigInvalid, match=r"\$\.plan\[0\]\.account: protects another privacy unit"):
        load(path)


FROM_FILE = small_plan_text(keys="[]").replace("values = []", 'file = "keys/shops.txt"')


def test_keys_are_read_from_beside_the_plan(tmp_path: Path) -> None:
    """Guarantee: a file is named from the plan's folder, wherever the config lies; the plan is what lists its keys."""
    (tmp_path / "plans" / "keys").mkdir(parents=True)
    (tmp_path / "plans" / "keys" / "shops.txt").write_bytes(b"a\r\n\nb\n")
    (tmp_path / "plans" / "plan.toml").write_text(FROM_FILE)
    path = write_config(tmp_path)
    path.write_text(path.read_text().replace('path = "plan0.toml"', 'path = "plans/plan.toml"'))
    (plan,) = load(path)[1]
    assert plan.partition[0].values == ["a", "b"]
    assert plan_hash(plan) == plan_hash(load_plan(tmp_path / "plan0.toml"))
    (tmp_path / "plans" / "keys" / "shops.txt").write_text("a\nb\nc\n")
    assert plan_hash(load_plan(tmp_path / "plans" / "plan.toml")) != plan_hash(plan)


def test_a_file_of_keys_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Not there, not UTF-8, or no name of a file: the error names the file of keys, not the plan."""
    path = tmp_path / "plan.toml"
    path.write_text(FROM_FILE)
    with pytest.raises(ConfigInvalid, match=r"keys/shops\.txt: cannot be read"):
        load_plan(path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "shops.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid, match=r"keys/shops\.txt: not UTF-8"):
        load_plan(path)
    (tmp_path / "keys" / "shops.txt").write_text("")
    with pytest.raises(ConfigInvalid, match=r"plan\.toml: \$\.partition\[0\]"):
        load_plan(path)
    path.write_text(FROM_FILE.replace("keys/shops", "keys\\u0000shops"))
    with pytest.raises(ConfigInvalid, match=r"plan\.toml: \$\.partition\[0\]\.file"):
        load_plan(path)
    with pytest.raises(ConfigInvalid, match="no name of a file"):
        load_plan(tmp_path / "plan\0.toml")
