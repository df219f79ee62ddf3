"""A full round of Python's collector looks at what calls left behind, not at what was loaded before them."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from cloud_collector import garbage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def thawed() -> Iterator[None]:
    """Everything is looked at again afterwards."""
    yield
    gc.unfreeze()


def looked_at(thing: object) -> bool:
    return any(one is thing for one in gc.get_objects())


@pytest.mark.usefixtures("thawed")
def test_what_was_loaded_is_left_out_and_what_comes_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that settles nothing is caught."""
    loaded: list[object] = [[]]
    with monkeypatch.context() as mutant:
        mutant.setattr(gc, "freeze", lambda: None)
        garbage.settle()
        assert looked_at(loaded)
    garbage.settle()
    later: list[object] = [[]]
    assert not looked_at(loaded)
    assert looked_at(later)
