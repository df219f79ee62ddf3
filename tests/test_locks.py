"""What each role installs: a part of the one lock, with hashes, and none of what only developers need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"agent": [], "collector": ["collector", "s3", "postgres", "tracing"], "build": None}
"""What a role's file holds beside the package's own dependencies; None: what builds the package, and not those."""
_FROM_BUILD_ALONE = {"tomlkit", "trove-classifiers"}


def locked(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Packages, each with its version and hashes."""
    found = {}
    for entry in re.split(r"\n(?=[a-z0-9])", text):
        named = re.match(r"([a-z0-9-]+)(?:\[[a-z,]+\])?==(\S+)", entry)
        assert named, entry
        found[named[1]] = named[2], frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry))
    return found


def names(requirements: list[str]) -> set[str]:
    """The packages that requirements name."""
    return {re.split(r"[\[<>=]", one)[0] for one in requirements}


def check(role: str, text: str) -> None:
    mine, whole = locked(text), locked((ROOT / "requirements.lock").read_text())
    extras, of_extras = EXTRAS[role], MADE["project"]["optional-dependencies"]
    wanted = names(MADE["build-system"]["requires"])
    if extras is not None:
        wanted = names(MADE["project"]["dependencies"]).union(*(names(of_extras[extra]) for extra in extras))
    assert wanted <= mine.keys()
    assert {name: one for name, one in mine.items() if name in whole} == {
        name: whole[name] for name in mine if name in whole
    }, "as the whole has them"
    assert all(hashes for _, hashes in mine.values())
    assert mine.keys() <= whole.keys() | (_FROM_BUILD_ALONE if extras is None else set())
    tools = names(of_extras["dev"]) | names(of_extras["demo"])
    assert not mine.keys() & (tools - wanted), "what this role has no use for"
    assert "://" not in text


@pytest.mark.parametrize("role", EXTRAS)
def test_a_roles_lock_is_a_part_of_the_whole(role: str) -> None:
    """Guarantee: what the role imports, at the versions and hashes that the tests ran with; no host."""
    check(role, (ROOT / f"requirements-{role}.lock").read_text())


@pytest.mark.parametrize(
    ("was", "mutant"),
    [
        (r"^grpcio==\S+", "grpcio==1.0.0"),
        (r"^click==(.*\n)(    --hash.*\n)+", r"click==\1"),
        (r"^rich==(.*\n)(    .*\n)+", ""),
        (r"^rich==", "ruff==0.17.0 \\\n    --hash=sha256:" + "0" * 64 + "\nrich=="),
    ],
)
def test_a_careless_lock_is_caught(was: str, mutant: str) -> None:
    """Mutants: another version, no hash, a package too few, a developer's tool."""
    text = (ROOT / "requirements-agent.lock").read_text()
    changed = re.sub(was, mutant, text, count=1, flags=re.MULTILINE)
    assert changed != text
    with pytest.raises(AssertionError):
        check("agent", changed)


@pytest.mark.parametrize(("file", "role"), [("Containerfile", "agent"), ("collector.Containerfile", "collector")])
def test_a_container_installs_its_role(file: str, role: str) -> None:
    """Guarantee: the role's lock and no other in what is run; the wheel is built with hashes too, and apart."""
    text = (ROOT / "deploy" / file).read_text()
    assert set(re.findall(r"requirements[a-z-]*\.lock", text)) == {
        "requirements-build.lock",
        f"requirements-{role}.lock",
    }
    assert text.count("--require-hashes") == 2
    assert set(re.findall(r"/(\w+)/bin/pip install[^\n]*requirements-build", text)) == {"build"}


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["deltalake", "duckdb", "grpc_health", "grpc_reflection", "prometheus_client"])
def test_an_agents_installation_says_what_a_collector_lacks(tmp_path: Path, missing: str) -> None:
    """Guarantee: one line that names what to install, and the exit code of a config that cannot work.

    Mutant: the import's own error; a traceback.
    """
    (tmp_path / "collector.toml").write_text('[collector]\nlisten = "127.0.0.1:0"\n')
    program = f"import sys; sys.modules[{missing!r}] = None; from cloud_collector.__main__ import main; main()"
    words = [sys.executable, "-c", program, "serve", str(tmp_path / "collector.toml")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (3, 1), done.stderr
    assert f"{missing} is not installed: install requirements-collector.lock" in lines[0]
