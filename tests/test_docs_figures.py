"""Figures in the docs follow from what they are said to follow from."""

from __future__ import annotations

import re
from pathlib import Path

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

    Mutants: a measured factor that changes alone (tried: 1,577 us became 1,219 us), a result that changes alone.
    """
    assert len(PRODUCT.findall(SCALE)) == SCALE.count(" x ") >= 9, "a product is written in a way that is not read here"
    assert wrong_products(SCALE) == []
    assert wrong_products(SCALE.replace("x 1,577 us", "x 1,219 us"))
    assert wrong_products(SCALE.replace("= 2.9 GB", "= 6 GB"))


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

    Mutants: a figure that was measured anew and not carried over (tried: 243 B became 256 B above), a product that
    was left with the old figure.
    """
    assert strays(SCALE) == []
    assert strays(SCALE.replace("243 B an agent", "256 B an agent")) == ["243 B"]
    assert strays(SCALE.replace("x 243 B", "x 256 B")) == ["243 B"]
