"""What a person types does what it says: what is made can be cleaned away, and what was skipped is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def recipe(text: str, target: str) -> str:
    """The commands of a target."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert found, target
    return found[1]


def check_clean(text: str) -> None:
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()}
    by_hand = {".ipynb_checkpoints"}  # a notebook server's, who may want it
    assert ignored - by_hand <= set(re.findall(r"\S+", recipe(text, "clean")))


def test_clean_leaves_nothing_that_git_does_not_know() -> None:
    """Guarantee: whatever the targets make is ignored by git, and goes. Mutant: the tools stay."""
    check_clean(MAKEFILE)
    with pytest.raises(AssertionError):
        check_clean(MAKEFILE.replace(" .tools", ""))


@pytest.mark.parametrize("summary", ["fEs", "fE"])
def test_a_check_lists_what_it_skipped(tmp_path: Path, summary: str) -> None:
    """Guarantee: a test that lacks its server is named with the reason at the end. Mutant: pytest's own summary."""
    assert "SUMMARY=fEs" in recipe(MAKEFILE, "check")
    assert "-r $(SUMMARY)" in recipe(MAKEFILE, "test")
    (tmp_path / "test_one.py").write_text("import pytest\ndef test_one():\n    pytest.skip('no broker: make tools')\n")
    words = [sys.executable, "-m", "pytest", "-q", "-r", summary, "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ("no broker: make tools" in done.stdout) is (summary == "fEs")
