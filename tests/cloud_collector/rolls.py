"""What the tests of typed absence share: agents with real chains, of which only some releases arrive."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from cloud_collector.absence import BEGINNING, END, Due, Known
from cloud_collector.landed import Verdict
from cloud_collector.register import Contact, Expectation
from cloud_collector.roll_call import Ask
from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Charge, Link, Status
from tests.cloud_collector.conftest import MONDAY, Made, Maker, land

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloud_collector.landing import Landing

MAKER = Maker()
WEEK_US = 7 * 86_400_000_000
HOUR_US = 3_600_000_000
START_US = to_us(MONDAY)
WINDOWS = 6
STATUSES = (Status.RELEASED, Status.LOST, Status.EXHAUSTED, Status.VETOED)


def start_us(window: int) -> int:
    """The first instant of a window."""
    return START_US + window * WEEK_US


@dataclass
class Agent:
    """An agent with one journal, and what of its chain has arrived."""

    name: str
    heard_us: int | None = None
    fenced: bool = False
    named: str = "config"
    """By whom it is expected: `config`, `told`, or `nobody`."""
    span: tuple[int, int] = (BEGINNING, END)
    chain: list[tuple[int, Status, Made]] = field(default_factory=list)
    here: dict[int, Status] = field(default_factory=dict)

    def seal(self, window: int, status: Status = Status.RELEASED) -> Made:
        """The chain's next release; it has not arrived."""
        seq = len(self.chain) + 1
        head = self.chain[-1][2].sealed.hash if self.chain else b""
        link = Link(incarnation=self.name.encode().hex().rjust(32, "0")[:32], seq=seq, prev_hash=head)
        spent = Charge(rho=Fraction(seq))
        made = MAKER.make(agent=self.name, window=window, status=status, link=link, cumulative=spent)
        self.chain.append((window, status, made))
        return made

    def arrive(self, landing: Landing, seq: int) -> None:
        """Let one release of the chain arrive."""
        window, status, made = self.chain[seq - 1]
        assert land(landing, made) == [Verdict.ACCEPTED]
        self.here[window] = status

    def tell(self, landing: Landing) -> None:
        """Let the landing know what is known beside releases."""
        if self.named == "told":
            told = Expectation(
                tenant="acme", plan=MAKER.plan.name, agent=self.name, since_us=self.span[0], until_us=self.span[1]
            )
            landing.expect([told], who="ada")
        if self.heard_us is not None:
            landing.note_contacts([contact(self.name, self.heard_us)])
        if self.fenced:
            landing.fence("acme", self.name, who="ada", note="")

    @property
    def known(self) -> Known:
        """What is known of it, by the definition: the chain without a hole, followed release by release."""
        passed = None
        for window, _, _ in self.chain:
            if window not in self.here:
                break
            passed = start_us(window)
        return Known(heard_us=self.heard_us, passed_us=passed, fenced=self.fenced)


def contact(agent: str, heard_us: int, ends_us: int | None = None) -> Contact:
    """An agent of the tests' tenant called."""
    return Contact(tenant="acme", agent=agent, heard_us=heard_us, certificate_ends_us=ends_us)


def due(now_us: int) -> Due:
    """An hour is allowed."""
    return Due(window_us=WEEK_US, allowed_us=HOUR_US, now_us=now_us)


def ask(nodes: Sequence[str] = (), *, now_us: int = start_us(50), **changes: Any) -> Ask:
    """About all six windows."""
    asked: dict[str, Any] = {
        "tenant": "acme",
        "plan": MAKER.plan.name,
        "plan_hash": bytes(MAKER.hash),
        "nodes": nodes,
        "due": due(now_us),
        "start_us": START_US,
        "end_us": start_us(WINDOWS),
    }
    return Ask(**{**asked, **changes})
