"""Every sample in the docs is what it says: the program reads it."""

from __future__ import annotations

import re
import shutil
import tomllib
from itertools import pairwise
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
    for link in re.findall(r"\]\(([^):]+)\)", page.read_text())
]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


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


def anchors(page: str) -> set[str]:
    """What a link behind `#` may name on a page: its headings, as they are turned into anchors where it is shown."""
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_somewhere(page: Path, link: str) -> None:
    """Every relative link names a file that is there, and a heading of it if it has a `#`.

    Mutants: a link to a file that was renamed; `scale.md#the-sums` (tried).
    """
    file, _, anchor = link.partition("#")
    there = page.parent / file if file else page
    assert there.exists()
    assert not anchor or anchor in anchors(there.read_text())


def test_an_anchor_is_a_heading() -> None:
    """A heading gives its anchor; a comment in a sample, which looks like one, gives none, nor does a wrong name."""
    assert anchors("# Data goes, keys stay\n```toml\n# not this\n```\n## 2 `x_y`\n") == {"data-goes-keys-stay", "2-x_y"}


def decision_faults(name: str, page: str, index: str) -> list[str]:
    """What a decision's page or its line in the index lacks.

    Args:
        name: The page's file name, which begins with its number in four digits.
        page: Its text.
        index: The text of the index.

    Returns:
        A sentence for each fault; for a missing line of the index, that line.
    """
    numbered = re.match(rf"# {int(name[:4])}\. (.+)\n\nStatus: (.+)\n", page)
    if numbered is None:
        return ["it does not begin with its number and title, an empty line and `Status:`"]
    title, status = numbered.groups()
    others = r"\[\d+\]\(\d{4}-[\w-]+\.md\)(?:, \[\d+\]\(\d{4}-[\w-]+\.md\))*"
    line = f"| [{int(name[:4])}]({name}) | {title} | {status} |"
    faults = []
    if not re.fullmatch(rf"accepted|(?:superseded|amended) by {others}", status):
        faults.append(f"no such status: {status}")
    if not re.search(r"What (?:would change|changed) (?:it|this)\b", page):
        faults.append("it does not say what would change it")
    if line not in index.splitlines():
        faults.append(f"docs/decisions/README.md lacks the line {line}")
    return faults


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in DECISIONS])
def test_a_decision_has_its_parts_and_stands_in_the_index(page: Path) -> None:
    """Each decision has a status and what would change it; the index has its title and the same status.

    Mutants: a status nobody knows, a page that only says what it decided, a status that the index does not repeat.
    """
    text, index = page.read_text(), (page.parent / "README.md").read_text()
    assert decision_faults(page.name, text, index) == []
    assert decision_faults(page.name, text.replace("Status: ", "Status: perhaps "), index)
    assert decision_faults(page.name, re.sub("What (would change|changed)", "", text), index)
    assert decision_faults(page.name, text, index.replace(f"({page.name})", "()"))


def test_the_index_of_decisions_names_no_page_that_is_gone() -> None:
    """As many lines as pages; the links themselves are followed above."""
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    assert len(re.findall(r"^\| \[\d+\]", index, re.MULTILINE)) == len(DECISIONS) >= 40


def make_targets(page: str) -> set[str]:
    """The targets of `make` that a page names in code quotes or in its samples."""
    samples = "".join(re.findall(r"```.*?```", page, re.DOTALL))
    return {*re.findall(r"`make ([a-z-]+)", page), *re.findall(r"^make ([a-z-]+)", samples, re.MULTILINE)}


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_a_page_names_only_targets_that_make_has(page: Path) -> None:
    """Every target of `make` that a page names is one of the Makefile.

    Mutant: `make bench-kernel`, which a page named long after it was gone.
    """
    assert make_targets(page.read_text()) <= TARGETS
    assert make_targets("with `make bench-kernel` (...)\n```sh\nmake bench-all\n```") - TARGETS == {
        "bench-kernel",
        "bench-all",
    }


def unlisted(index: str) -> set[str]:
    """The pages of docs/ that an index does not link to."""
    return {page.name for page in (ROOT / "docs").glob("*.md") if f"]({page.name}" not in index} - {"README.md"}


def test_every_page_has_its_reader() -> None:
    """docs/README.md says of every page who reads it.

    Mutant: an index without a page that is there.
    """
    index = (ROOT / "docs" / "README.md").read_text()
    assert unlisted(index) == set()
    assert unlisted(index.replace("](audit.md", "](")) == {"audit.md"}


def glossary_faults(page: str) -> list[str]:
    """Words of a glossary that stand after one that follows them in the alphabet, or that stand there twice."""
    entries = re.findall(r"^\| ([^|]+) \| ", page, re.MULTILINE)[1:]
    firsts = [entry.lower() for entry in entries]
    words = [word for entry in entries for word in entry.split(", ")]
    misplaced = [entry for before, entry in pairwise(firsts) if before > entry]
    return misplaced + [word for word in words if words.count(word) > 1]


def test_the_glossary_can_be_looked_up() -> None:
    """Its lines are in the order of the alphabet, and no word has two.

    Mutants: two lines that changed places, a word that is explained twice.
    """
    page = (ROOT / "docs" / "glossary.md").read_text()
    assert page.count("\n| ") > 60
    assert glossary_faults(page) == []
    assert glossary_faults(page.replace("| ack |", "| zack |")) != []
    assert glossary_faults(page.replace("| alarm |", "| alarm, cell |")) == ["cell", "cell"]


def test_the_map_names_only_what_is_there() -> None:
    """Every path that ARCHITECTURE.md names in code quotes exists."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"`((?:edge_agg|cloud_collector|tests|docs)/[\w/.]+?)(?:::\w+)?`", text):
        assert (ROOT / name).exists(), name
