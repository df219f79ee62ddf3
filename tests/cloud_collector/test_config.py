"""The config is strict, says where it is wrong, and keeps plain text on loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cloud_collector.config import load
from cloud_collector.errors import ConfigInvalid

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = """
[collector]
listen = "127.0.0.1:8815"
data = "data"
seal_every = "2s"
[limits]
max_message_bytes = 4194304
max_queued_releases = 2048
max_batch = 64
[[plan]]
path = "plans/flight_delays.toml"
nodes = ["ewr", "jfk", "lga"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "flight_delays.toml").touch()
    return tmp_path / "collector.toml"


def test_the_sample_of_the_design_loads_with_absolute_paths(file: Path) -> None:
    file.write_text(SAMPLE)
    config = load(file)
    assert (config.listen, config.seal_every_s, config.max_batch) == ("127.0.0.1:8815", 2.0, 64)
    assert (config.max_message_bytes, config.max_queued_releases) == (4194304, 2048)
    assert config.landing_path == file.parent / "data" / "landing.sqlite"
    assert config.plans_path == file.parent / "data" / "plans"
    assert config.lake_path == file.parent / "data" / "lake"
    assert config.plans[0].path == file.parent / "plans" / "flight_delays.toml"
    assert config.plans[0].nodes == ("ewr", "jfk", "lga")


def test_an_empty_file_means_the_defaults_of_the_sample(file: Path) -> None:
    file.write_text(SAMPLE[: SAMPLE.index("[[plan]]")])
    full = load(file)
    file.write_text("")
    assert load(file) == full


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('data = "data"', 'datta = "data"', "$.collector: "),
        ("[limits]", "[limits]\nextra = 1", "$.limits: "),
        ("[limits]", "[limit]", "$: "),
        ("max_batch = 64", 'max_batch = "64"', "$.limits.max_batch: "),
        ("max_batch = 64", "max_batch = 0", "$.limits.max_batch: "),
        ("max_batch = 64", "max_batch = 5000", "$.limits.max_batch: "),
        ('"2s"', '"2 seconds"', "$.collector.seal_every: "),
        ('"2s"', '"0s"', "$.collector.seal_every: "),
        ('data = "data"', 'data = "da%20ta"', "$.collector.data: "),
        ("flight_delays.toml", "missing.toml", "$.plan[0].path: "),
        ("[[plan]]", '[[plan]]\nretention = "1h"', "$.plan[0].retention: "),
        ("[[plan]]", '[[plan]]\nretention = "long"', "$.plan[0].retention: "),
        ("[limits]", '[fleet]\nnew_incarnation = "ignore"\n[limits]', "$.fleet.new_incarnation: "),
        ("[limits]", 'upkeep_every = "never"\n[limits]', "$.collector.upkeep_every: "),
        ('["ewr", "jfk", "lga"]', "[]", "$.plan[0].nodes: "),
        ('["ewr", "jfk", "lga"]', '["ewr", "ewr"]', "$.plan[0].nodes: "),
        ('["ewr", "jfk", "lga"]', '["ewr", 3]', "$.plan[0].nodes[1]: "),
        ('["ewr", "jfk", "lga"]', '[""]', "$.plan[0].nodes: "),
        ("[collector]", "[collector", "$: not TOML"),
    ],
)
def test_a_wrong_field_is_refused_by_its_path(file: Path, old: str, new: str, path: str) -> None:
    assert old in SAMPLE
    file.write_text(SAMPLE.replace(old, new))
    with pytest.raises(ConfigInvalid) as caught:
        load(file)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.8.8:8815", "[::1]:8815", "localhost:65535"])
def test_loopback_needs_no_tls(file: Path, listen: str) -> None:
    file.write_text(SAMPLE.replace("127.0.0.1:8815", listen))
    assert load(file).listen == listen


@pytest.mark.parametrize(
    "listen",
    [
        *("0.0.0.0:8815", "[::]:8815", "192.168.1.9:8815", "example.org:8815", "localhost.example.org:8815"),
        *("127.0.0.1", "127.0.0.1:", ":8815", "127.0.0.1:65536", "127.0.0.1:-1", "::1:8815", "unix:/sock", "127.1:80"),
    ],
)
def test_without_tls_nothing_but_loopback_is_listened_on(file: Path, listen: str) -> None:
    file.write_text(SAMPLE.replace("127.0.0.1:8815", listen))
    with pytest.raises(ConfigInvalid, match=r"^\$\.collector\.listen: "):
        load(file)


def test_a_file_that_cannot_be_read_is_a_config_error(file: Path) -> None:
    with pytest.raises(ConfigInvalid):
        load(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid):
        load(file)
