"""What edge and cloud can hold against a plan or a release. Messages name fields and limits, never values."""

from __future__ import annotations


class ContractError(Exception):
    """Anything that breaks what edge and cloud have agreed on."""


class PlanInvalid(ContractError):
    """A plan is malformed: fix the field whose path the message begins with."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        """Where in the plan, for example `$.metric[1].lower`."""
        self.problem = problem
        """What is wrong there."""


class MalformedRelease(ContractError):
    """Bytes are not a release of the plan they claim: give up on them; sending them again cannot help."""


class IdentityInvalid(ContractError):
    """A text is not the id of an agent or analyst, or a name cannot be part of one: correct it."""
