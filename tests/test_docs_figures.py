"""Figures in the docs follow from what they are said to follow from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner

from edge_agg.__main__ import cli

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[1]
SCALE = (ROOT / "docs" / "scale.md").read_text()
UNITS = {"us": 1e-6, "core": 1.0, "cores": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
PRODUCT = re.compile(r"([\d,.]+)( M)? x ([\d,.]+) (us|[KG]?B) = ([\d,.]+) (cores?|[MGT]B)\b")


def wrong_products(page: str) -> list[str]:
    """The products on a page whose result is not what its factors give, to the digits printed.

    Args:
        page: Text with products such as `24 M x 120 B = 2.9 GB`.

    Returns:
        Each wrong product as it is printed.
    """
    wrong = []
    for found in PRODUCT.finditer(page):
        count, millions, factor, unit, result, of = found.groups()
        digits = len(result.partition(".")[2])
        product = number(count) * (1e6 if millions else 1.0) * number(factor) * UNITS[unit] / UNITS[of]
        if round(product, digits) != number(result):
            wrong.append(found.group())
    return wrong


def number(text: str) -> float:
    """A printed number with its commas."""
    return float(text.replace(",", ""))


def test_the_products_of_the_page_of_scale_are_right() -> None:
    """Each product shown on the page is what its factors give.

    Mutants, of every product: a factor that changes alone, a result that changes alone.
    """
    assert len(PRODUCT.findall(SCALE)) == SCALE.count(" x ") >= 9, "a product is written in a way that is not read here"
    assert wrong_products(SCALE) == []
    for product in PRODUCT.finditer(SCALE):
        for changed in (product.group().replace(" x ", " x 9"), product.group().replace(" = ", " = 9")):
            assert wrong_products(SCALE.replace(product.group(), changed, 1)) == [changed]


def strays(page: str) -> list[str]:
    """The figures of the arithmetic's table that were not measured above it, or that no product uses."""
    measured, arithmetic = page.split("## The arithmetic")
    table = arithmetic.partition('| figure | from "Measured" |')[2].partition("\n\n")[0]
    figures = [figure.strip() for row in table.splitlines()[2:] for figure in row.split("|")[1].split(", ")]
    assert len(figures) >= 5
    return [
        figure for figure in figures if figure.removesuffix(" us") not in measured or f"x {figure} = " not in arithmetic
    ]


def test_the_arithmetic_uses_what_was_measured() -> None:
    """Each figure that the page of scale reckons with stands among the measured ones, and in a product.

    Mutants: a figure that was measured anew and not carried over, a product that was left with the old figure.
    """
    assert strays(SCALE) == []
    figure = re.findall(r"([\d.,]+ B) an agent", SCALE)[0]
    assert strays(SCALE.replace(f"{figure} an agent", "999 B an agent")) == [figure]
    assert strays(SCALE.replace(f"x {figure}", "x 999 B")) == [figure]


def printed_by_check(readme: str) -> tuple[str, list[str]]:
    """The `edge-agg check` command that the readme shows, and the lines below it."""
    command, _, rest = readme.partition("$ edge-agg check ")[2].partition("\n")
    return command, rest.partition("```")[0].strip().splitlines()


def numbers(line: str) -> list[str]:
    """The numbers of a line, in its order, as they are printed."""
    return re.findall(r"\d[\d.,]*(?:e[+-]?\d+)?", line)


def unsaid(shown: list[str], said: list[str]) -> list[str]:
    """The lines whose numbers, in their order, stand in no line that was printed."""

    def stands_in(wanted: list[str], line: str) -> bool:
        rest = iter(numbers(line))
        return all(one in rest for one in wanted)

    return [line for line in shown if not any(stands_in(numbers(line), other) for other in said)]


def test_the_figures_of_the_readme_are_what_check_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line that the readme shows of `edge-agg check` has the numbers of a line that the command prints.

    Words are not compared, since the readme shortens them. Mutants: an epsilon, a delta, a count of windows that the
    command does not print.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "1000")
    command, shown = printed_by_check((ROOT / "README.md").read_text())
    said = CliRunner().invoke(cli, ["check", *shlex.split(command)], catch_exceptions=False).output.splitlines()
    figures = [one for line in shown for one in numbers(line)]
    assert len(figures) >= 10
    assert unsaid(shown, said) == []
    for figure in figures:
        other = [line.replace(figure, figure + "7") for line in shown]
        assert unsaid(other, said), f"{figure} could be any number"
