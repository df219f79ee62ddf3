"""What can go wrong at the collector, and what the caller should do about it.

No message carries a value that came from outside: an error's text may cross the wire.
"""

from __future__ import annotations

from typing import ClassVar


class CollectorError(Exception):
    """Anything the collector raises on purpose."""

    exit_code: ClassVar[int] = 3
    """What a process ends with that cannot go on because of it; `commands.py` says what each means."""


class ConfigInvalid(CollectorError):
    """A config or plan file is wrong: fix the field that the message names, then start again."""


class PlanUnknown(CollectorError):
    """No registered plan has that name, version or hash: register it with `cloud-collector plans add`."""


class QuestionInvalid(CollectorError):
    """The question names a metric, column, value or duration that the plan does not have: fix the question."""


class StoreFailed(CollectorError):
    """The disk did not keep what it was given: stop, look at the disk, start again. Nothing unacked was promised."""

    exit_code = 5


class StoreUnavailable(StoreFailed):
    """A store does not take part just now (a server that does not answer, a full disk): try again by and by."""

    exit_code = 6


class Overloaded(CollectorError):
    """The queue is full: send the same bytes again after the pushback."""


class CollectorUnreachable(CollectorError):
    """No collector answers at that address: start it with `cloud-collector serve`, or correct the address."""


class RequestInvalid(CollectorError):
    """A certificate or token cannot be given out as asked: correct the request, or ask for a new one-time token."""


class AccessDenied(CollectorError):
    """The collector does not take this certificate or token: renew it, or ask the people who run the collector."""
