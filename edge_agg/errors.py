"""What can go wrong at the edge, and what the caller should do about it.

Errors name files, fields and codes, never a value out of an event: an error's text may reach a log.
"""


class EdgeError(Exception):
    """Anything the agent raises on purpose."""


class ConfigInvalid(EdgeError):
    """The agent's config is wrong: fix the field that the message names, then start again."""


class SourceUnreadable(EdgeError):
    """A source cannot be read as the plan needs it (no such file, a column missing): fix the source or the plan."""


class JournalFailed(EdgeError):
    """The journal could not be read or written: the agent stops. Repair the disk and start it again; never retry."""


class JournalFull(JournalFailed):
    """There is no room on the disk, or it is read-only: nothing was changed. Take less input and try again later."""


class SpoolFull(EdgeError):
    """The spool's quota or its disk is full: nothing of it was kept. Take less input and try again later."""


class SpoolFailed(EdgeError):
    """The spool could not be read or written: the agent stops. Repair the disk and start it again; never retry."""


class BudgetExhausted(EdgeError):
    """The account has no room for the charge: nothing was charged or drawn. Wait for the horizon to move on."""


class Fenced(EdgeError):
    """The collector has shut the agent out: since then nothing was drawn. The people who run the fleet must decide."""


class ClockDoubted(EdgeError):
    """The clock is not believed: nothing was read or drawn, nothing is lost. Set the clock right and run again."""


class EnrollmentFailed(EdgeError):
    """No certificate was given out: correct what the message names, or ask for a new one-time token."""


class PlanRefused(EdgeError):
    """The plan is well formed but cannot be run as written (no noise scale fits its budget, say): change the plan."""
