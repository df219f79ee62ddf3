"""Every sample in the docs is what it says: the program reads it."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from cloud_collector.config import load as load_collector
from edge_agg.config import load as load_agent
from edge_agg.contract.plan import parse_plan, plan_hash
from edge_agg.policy import Policy, load_policy
from examples.flights.site import PLAN

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
SAMPLES = [
    pytest.param(text, id=f"{page.name}-{i}")
    for page in PAGES
    for i, text in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL))
]
LINKS = [
    pytest.param(page, link, id=f"{page.name}-{link}")
    for page in PAGES
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
]


@pytest.mark.parametrize("text", SAMPLES)
def test_a_sample_is_read_by_the_program(text: str, tmp_path: Path) -> None:
    """Whatever a reader copies out of a page parses; a misspelt field in a sample fails here (tried: `epsilonn`)."""
    sample = tmp_path / "sample.toml"
    sample.write_text(text)
    (tmp_path / "plans").mkdir()
    shutil.copy(PLAN, tmp_path / "plans")
    tables = tomllib.loads(text)
    for name, file in (tables.get("tls", {}) | tables.get("landing", {}) | tables.get("lake", {})).items():
        if name.endswith("_file") or name == "authority":  # a sample's certificates are there when an operator starts
            path = tmp_path / file / "issuer.pem" if name == "authority" else tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
    if "agent" in tables:
        load_agent(sample)
    elif "collector" in tables:
        load_collector(sample)
    elif "plan" not in tables and tables.keys() <= set(Policy.__struct_fields__):
        load_policy(sample)
    else:
        parse_plan(text)


def test_there_are_samples() -> None:
    """A pattern that matches nothing would make the test above pass for ever."""
    assert len(SAMPLES) >= 3


def test_the_demo_runs_the_plan_that_the_docs_explain() -> None:
    """The plan in docs/plan.md and the demo's mean the same: their hashes are equal."""
    text, *_ = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "plan.md").read_text(), re.DOTALL)
    assert plan_hash(parse_plan(text)) == plan_hash(parse_plan(PLAN.read_text()))


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_somewhere(page: Path, link: str) -> None:
    """Every relative link names a file that is there."""
    assert (page.parent / link).exists()


def test_the_map_names_only_what_is_there() -> None:
    """Every path that ARCHITECTURE.md names in code quotes exists."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"`((?:edge_agg|cloud_collector|tests|docs)/[\w/.]+?)(?:::\w+)?`", text):
        assert (ROOT / name).exists(), name
