"""What the contract's tests share: the plan of the design, whose every line is part of the agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable

# A busy machine is no failure of the code: time is limited by pytest-timeout, not by the example.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

PLAN = """\
[plan]
name = "flight_delays"
version = 1

[events]
time = "time_hour"                     # event time
[events.columns]                       # what an event must have; anything else is dropped at the door
time_hour = "timestamp"
tailnum = "string"
carrier = "string"
dep_delay = "float"

[privacy_unit]
column = "tailnum"
max_nodes = 3                          # sites one unit may appear at in one window

[bounds]
max_partitions = 1                     # L0: partitions a unit may touch in one window
max_rows_per_partition = 5             # L-infinity

[window]
every = "7d"
lateness = "1h"

[[partition]]
column = "carrier"
values = ["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"]
other = true                           # everything else lands in one "other" partition

[[metric]]
name = "departures"
kind = "count"

[[metric]]
name = "aircraft"
kind = "distinct_units"

[[metric]]
name = "delay"
kind = "mean"                          # sum, mean, variance, histogram, quantiles likewise
column = "dep_delay"                   # a null leaves the row out of this metric, not out of the others
lower = -30.0
upper = 180.0
resolution = 0.1                       # the fixed-point grid

[budget]                               # what one window's release costs one unit at one site
mechanism = "gaussian"                 # or "laplace"
epsilon = 2.0
delta = 1e-6
"""


@pytest.fixture(scope="session")
def plan_text() -> str:
    """The plan of the design, as people write it."""
    return PLAN


@pytest.fixture(scope="session")
def edit() -> Callable[..., str]:
    """Change lines of the plan: `edit((old, new), ...)`, where each `old` must stand in the text exactly once."""

    def apply(*changes: tuple[str, str]) -> str:
        text = PLAN
        for old, new in changes:
            assert text.count(old) == 1, f"stands {text.count(old)} times: {old}"
            text = text.replace(old, new)
        return text

    return apply
