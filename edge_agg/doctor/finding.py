"""One thing that was looked at, and what to do where it is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How something is."""

    OK = "ok"
    WARN = "warn"
    """It works, and somebody should look."""
    FAIL = "fail"
    """The agent does not work, or will not for long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. Its texts hold names of files and fields, never a value out of an event."""

    about: str
    health: Health
    said: str
    remedy: str = ""
    """What to do; empty where all is well."""


def fine(about: str, said: str) -> Finding:
    """All is well."""
    return Finding(about=about, health=Health.OK, said=said)


def odd(about: str, said: str, remedy: str) -> Finding:
    """Somebody should look."""
    return Finding(about=about, health=Health.WARN, said=said, remedy=remedy)


def wrong(about: str, said: str, remedy: str) -> Finding:
    """It does not work, or will not for long."""
    return Finding(about=about, health=Health.FAIL, said=said, remedy=remedy)
