"""The device's own policy: ceilings that no plan, and no table of the config, overrides.

Place: read when the agent starts, asked once for each plan before it is given any event.
Invariants: strict (a field that is unknown or wrong stops the start, so a slip of the pen never opens the door); a veto
follows from plan, account and policy alone, so that saying it tells nothing about the data; what the policy does not
mention it does not limit.

A vetoed plan takes no events and is charged nothing; each of its windows is released as `vetoed`, with the rule's name.

| file | job |
|---|---|
| `tables.py` | what the owner of a device may write, and reading it |
| `judge.py` | a plan against it |
"""

from edge_agg.policy.judge import Objection, objections, veto
from edge_agg.policy.tables import Policy, load_policy

__all__ = ["Objection", "Policy", "load_policy", "objections", "veto"]
