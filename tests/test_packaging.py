"""What a wheel carries beside the code."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "packages"
]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_is_typed(package: str) -> None:
    """Whoever installs a package gets its types: the mark lies in the folder that the wheel is made of.

    Mutant: the mark removed (tried); mypy then takes all of the package for Any.
    """
    assert (ROOT / package / "py.typed").is_file()


def test_the_wheel_has_both_packages() -> None:
    """The test above asks about all that is installed."""
    assert set(PACKAGES) == {"edge_agg", "cloud_collector"}
