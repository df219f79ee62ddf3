"""The fleet on a terminal: a table of plans, and one of the agents that are worst off.

Place: shows what `overview.py` found, once or again and again.
Invariants: however large the fleet, a screen or two; a name that came from outside is shown without markup or control
characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cloud_collector.absence import Standing
from cloud_collector.roll_call import ORDER
from edge_agg.contract.codec import from_us, to_us

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from cloud_collector.overview import AgentLine, Overview

MAX_PLANS = 40
"""Plans of one screen; how many others there are is said below."""
_COLOURS = {
    Standing.RELEASED: "green",
    Standing.LATE: "yellow",
    Standing.LOST: "bold red",
    Standing.VETOED: "magenta",
    Standing.OFFLINE: "red",
    Standing.EXHAUSTED: "cyan",
}
_DAY_US = 86_400_000_000
_SOON_US = 10 * _DAY_US
"""An agent renews with a third of 30 days left; one that did not is worth a colour."""


def board(seen: Overview) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [_plans(seen)]
    if len(seen.plans) > MAX_PLANS:
        parts.append(Text(f"and {len(seen.plans) - MAX_PLANS} more plans, none of them worse", "dim"))
    parts += [Text(), _agents(seen)]
    left = sum(one.called.agents for one in seen.plans) - len(seen.agents)
    if left > 0:
        parts.append(Text(f"and {left} more, none of them worse", "dim"))
    return Group(*parts)


def clean(name: str) -> Text:
    """A name that came from outside, without markup or control characters."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in name))


def _plans(seen: Overview) -> Table:
    several = len({one.tenant for one in seen.plans}) > 1
    of = "" if several or not seen.plans else f" of {clean(seen.plans[0].tenant)}"
    table = _table(f"windows{of} that are due, at {seen.now:%Y-%m-%d %H:%M:%S}Z", "tenant" if several else "")
    for name in ("plan", "from", "until"):
        table.add_column(name, overflow="fold")
    for name in ("agents", "absent", "fenced", *ORDER):
        table.add_column(name, justify="right", no_wrap=True)
    for one in seen.plans[:MAX_PLANS]:
        called = one.called
        whose = [clean(one.tenant)] if several else []
        span = (_moment(called.start_us), _moment(called.end_us))
        counts = (_number(called.agents), _number(called.absent, "yellow"), _number(called.fenced, "bold red"))
        table.add_row(*whose, clean(f"{one.plan} v{one.version}"), *span, *counts, *_counts(called.counts))
    return table


def _agents(seen: Overview) -> Table:
    several = len({one.tenant for one in seen.plans}) > 1
    plans = len({one.plan for one in seen.plans}) > 1
    table = _table("agents, the worst first", "tenant" if several else "", "plan" if plans else "")
    for name in ("agent", "last heard", "certificate"):
        table.add_column(name, overflow="fold")
    for name in ORDER:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    now_us = to_us(seen.now)
    for one in seen.agents:
        present = one.present
        whose = [clean(name) for name, is_shown in ((one.tenant, several), (one.plan, plans)) if is_shown]
        heard = Text("never", "dim") if present.heard_us is None else Text(f"{_lasting(now_us - present.heard_us)} ago")
        about = (heard, _certificate(present.certificate_ends_us, now_us), *_counts(present.counts), _state(one))
        table.add_row(*whose, clean(present.agent), *about)
    return table


def _table(title: str, *columns: str) -> Table:
    """A table with these columns first, if they have a name: what is the same in every row is left out."""
    table = Table(title=title, box=None, pad_edge=False)
    for name in columns:
        if name:
            table.add_column(name, overflow="fold")
    return table


def _moment(us: int) -> str:
    moment = from_us(us)
    return f"{moment:%Y-%m-%d}" if us % _DAY_US == 0 else f"{moment:%Y-%m-%d %H:%M}"


def _state(one: AgentLine) -> Text:
    if one.present.fence is not None:
        return Text(f"FENCED: {one.present.fence}", "bold red")
    if one.present.behind:
        return Text("restored: behind", "yellow")
    return Text() if one.present.expected else Text("nobody expects it", "dim")


def _certificate(ends_us: int | None, now_us: int) -> Text:
    if ends_us is None:
        return Text("-", "dim")
    if ends_us <= now_us:
        return Text(f"ended {_lasting(now_us - ends_us)} ago", "bold red")
    return Text(f"{_lasting(ends_us - now_us)} left", "yellow" if ends_us - now_us < _SOON_US else "")


def _counts(counts: Mapping[Standing, int]) -> list[Text]:
    return [_number(counts[what], _COLOURS[what]) for what in ORDER]


def _number(n: int, colour: str = "") -> Text:
    return Text(f"{n:,}", colour) if n else Text("0", "dim")


def _lasting(us: int) -> str:
    """A length of time by its largest unit."""
    for length, name in ((_DAY_US, "d"), (3_600_000_000, "h"), (60_000_000, "min")):
        if us >= length:
            return f"{us // length} {name}"
    return f"{max(0, us) // 1_000_000} s"
