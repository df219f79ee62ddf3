"""A release: everything that is said about one window of one plan at one agent.

Place: the agent makes one when it has drawn the noise; the collector reads the same values back out of the bytes.
Invariant: a value of these types is consistent in itself; whether it fits a plan is the admission's question.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from edge_agg.contract.plan import PlanHash

RHO_GRID = 2**40
"""Charges are whole multiples of 1/RHO_GRID, so that sums stay exact and short."""
DELTA_GRID = 2**80
"""The same for delta."""


class Status(StrEnum):
    """What stands behind a window."""

    RELEASED = "released"
    LOST = "lost"
    EXHAUSTED = "exhausted"
    VETOED = "vetoed"


class Veto(StrEnum):
    """Which rule of a device's own policy a plan breaks: known from plan and policy alone."""

    PLAN = "plan"
    COLUMN = "column"
    UNIT = "unit"
    NODES = "nodes"
    WINDOW = "window"
    EPSILON = "epsilon"
    HORIZON = "horizon"
    NOISE = "noise"


class Mechanism(StrEnum):
    """The distribution of the noise, over the integers."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A zCDP loss. Charges add up; both parts are exact."""

    rho: Fraction = Fraction(0)
    """The loss of the noise."""
    delta: Fraction = Fraction(0)
    """The loss of key discovery, and of nothing else."""

    def __post_init__(self) -> None:
        if self.rho.numerator < 0 or self.delta.numerator < 0:
            raise ValueError("a charge is never negative")

    @classmethod
    def rounded_up(cls, *, rho: Fraction, delta: Fraction = Fraction(0)) -> Charge:
        """The smallest charge on the grid that is no less than what is given."""
        return cls(
            rho=Fraction(math.ceil(rho * RHO_GRID), RHO_GRID),
            delta=Fraction(math.ceil(delta * DELTA_GRID), DELTA_GRID),
        )

    def __add__(self, other: Charge) -> Charge:
        return Charge(rho=self.rho + other.rho, delta=self.delta + other.delta)

    def __mul__(self, times: int) -> Charge:
        return Charge(rho=self.rho * times, delta=self.delta * times)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpec:
    """How one vector of a payload was made."""

    name: str
    mechanism: Mechanism
    scale: float
    """The scale of the noise, in grid steps: sigma of the Gaussian, b of the Laplace."""
    sensitivity: float
    """The distance between neighbours that the mechanism was calibrated to: l2 for Gaussian, l1 for Laplace."""
    loss: float
    """The mechanism's own map at that distance: rho for Gaussian, epsilon for Laplace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """How discovered keys were selected: by noisy distinct units strictly above a threshold."""

    partition: str
    """The partition whose keys they are: the payload's first column."""
    mechanism: Mechanism
    scale: float
    """Of the noise on each key's distinct units."""
    sensitivity: float
    """The distance between neighbours that the mechanism was calibrated to: l2 for Gaussian, l1 for Laplace."""
    threshold: int
    """A key is released where its noisy distinct units exceed this."""
    loss: float
    """The mechanism's own map: rho for Gaussian, epsilon for Laplace."""
    delta: float
    """The mechanism's own map: the probability that a key shows which only one unit has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKey:
    """What a release is about: at most one release exists for a key, forever."""

    tenant: str
    agent: str
    plan: str
    plan_hash: PlanHash
    window_start: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A release's place in its journal's hash chain."""

    incarnation: str
    """A random name given to the journal when it was created, 32 hexadecimal digits."""
    seq: int
    """From 1, without gaps."""
    prev_hash: bytes
    """The hash of the release before; empty for the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The header of a release: all of it but the values."""

    tenant: str
    agent: str
    link: Link
    plan: str
    plan_version: int
    plan_hash: PlanHash
    window_start: datetime
    """UTC."""
    window_end: datetime
    """UTC, the first instant after the window."""
    status: Status
    account: str
    charge: Charge
    """What this window was charged, all attempts together."""
    cumulative: Charge
    """What the account has been charged since the journal was created, this window included."""
    vectors: tuple[VectorSpec, ...] = ()
    """How each column of the payload was made, in its order; empty unless released."""
    max_partitions: int
    max_rows_per_partition: int
    max_nodes: int
    selection: KeySpec | None = None
    """How keys were selected, where the plan discovers them and something was released."""
    rows: int = 0
    """Rows of the payload: the plan's public cells, whatever the data, or that many for each released key."""
    payload_sha256: bytes = b""
    """Of the payload's bytes; empty unless released."""
    veto: Veto | None = None
    """Which rule of the device's policy the plan breaks; None unless vetoed, or where no rule is named."""

    @property
    def key(self) -> ReleaseKey:
        """What this release is about."""
        return ReleaseKey(
            tenant=self.tenant,
            agent=self.agent,
            plan=self.plan,
            plan_hash=self.plan_hash,
            window_start=self.window_start,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A release as stored and sent: bytes that are made once and never made again."""

    header: bytes = field(repr=False)
    payload: bytes = field(repr=False)
    hash: bytes
    """sha256 of the header, which itself names the payload's sha256."""
