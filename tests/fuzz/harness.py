"""A coverage-guided search for an input that breaks a law of `targets.py`.

    python -m tests.fuzz.harness TARGET [--mutant] [libFuzzer's own options, such as -runs=100000 or a corpus folder]

Ends with 0 if no input was found; otherwise the input is kept in a file, and given as an argument it is tried again.
With `--mutant` a rule is broken first, and an input must be found.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

import atheris

with atheris.instrument_imports(include=["edge_agg.ingest", "tests.fuzz"]):
    from edge_agg.errors import SourceUnreadable
    from edge_agg.ingest import decode, file
    from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def break_a_rule() -> None:
    """Believe that all text is UTF-8, and let readers tell what they read."""

    def attempt(path: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except SourceUnreadable:
            raise
        except Exception as error:
            raise SourceUnreadable(f"{path}: {error}") from error

    decode._is_utf8 = lambda value: True
    file._attempt = attempt


def main() -> None:
    """Search until `-runs` inputs were tried, or a law is broken."""
    name = sys.argv.pop(1)
    if "--mutant" in sys.argv:
        sys.argv.remove("--mutant")
        break_a_rule()
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
