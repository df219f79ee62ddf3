"""An agent's state as a page for its operator, or as JSON for a program.

Place: for `edge-agg status`.
Invariant: the page shows what only this device may know, and says so; the JSON, which may end up anywhere, does not:
sizes, which follow the raw events that are held, stand there in tenths of their limits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agg.clock import SystemClock
from edge_agg.config import load
from edge_agg.report.state import STATUSES, look

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from edge_agg.identity.credentials import Lifetime
    from edge_agg.report.live import Live
    from edge_agg.report.state import PlanState, State

HOLDING = {
    "memory": "memory is at its limit: nothing is taken in until there is room",
    "disk": "the disk, or its limit, is full: nothing is taken in or drawn until there is room",
    "spool": "raw events have used up their part of the disk: what is pushed is refused until a window is sealed",
    "crowd": "a window has nearly as many privacy units as may be added up: nothing is taken in until it closes",
    "clock": "the clock is not believed: no window closes until it is",
    "head": "the collector has not heard how far this journal is: windows from before the agent's start wait for that",
    "fenced": "the collector has fenced this agent: nothing is drawn until the people who run the fleet let it in",
    "source": "a source is behind: windows wait for it, for as long as [agent].hold says",
}
"""What an agent that holds waits for."""
CAUSES = {
    "backlog": "it hands over what there is",
    "unreachable": "nobody answers at its address, or the connection breaks",
    "untrusted": "TLS fails: look at certificate and CA",
    "refused": "the other end refuses this agent: user, password, client id or topic",
    "unreadable": "a file that it needs, of a CA or a password, cannot be read",
}
"""Why a source is behind."""


def status(path: Path, *, machine: bool) -> bool:
    """Print an agent's state; whether an agent answers.

    Raises:
        ConfigInvalid: the config, or the policy, is wrong.
        JournalFailed: there is no journal yet, or it cannot be read.
    """
    config, plans = load(path)
    state = look(config, plans, now=SystemClock().now())
    if machine:
        print(json.dumps(as_json(state), indent=2))  # noqa: T201  # for machines, no colours
        return state.live is not None
    console = Console()
    _show_process(console, state)
    _show_windows(console, state)
    _show_queue(console, state)
    for account in state.accounts:
        console.print(escape(f"{account.spent}; {account.lasts}"), highlight=False)
    _show_local(console, state)
    return state.live is not None


def _show_process(console: Console, state: State) -> None:
    live = state.live
    if state.pid is None:
        said = "not running"
    else:
        up = f", for {_lasting(live.uptime_s)}" if live is not None else ""
        said = f"running (pid {state.pid}{up})"
    console.print(f"[bold]{escape(state.agent)}[/]  {said}", highlight=False)
    if state.pid is not None and live is None:
        console.print("[yellow]it does not answer: what follows is what its journal says[/]")
    if state.memory_bytes is not None:
        limit = live.memory_limit if live is not None and live.memory_limit else state.memory_limit
        console.print(f"memory {_size(state.memory_bytes)} of {_size(limit)}", highlight=False)
    spool = f", {_size(live.spool_bytes)} of it raw events" if live is not None and live.spool_quota else ""
    free = f"{_size(state.disk_free)} free beside it"
    console.print(f"disk {_size(state.disk_bytes)} of {_size(state.disk_limit)}{spool}; {free}", highlight=False)
    if state.certificate is not None:
        console.print(_certificate(state.certificate, state.now), highlight=False)
    if live is not None:
        _show_live(console, state, live)


def _certificate(held: Lifetime, now: datetime) -> str:
    until = f"{held.ends:%Y-%m-%d %H:%M}"
    if now >= held.ends:
        return f"[red]certificate ended {until}[/]: `edge-agg enroll` again, with --replace; what is sealed is kept"
    left = f"certificate ends {until}, in {_lasting((held.ends - now).total_seconds())}"
    return left if now < held.due else f"[yellow]{left}[/]: it is due to be renewed since {held.due:%Y-%m-%d}"


def _show_live(console: Console, state: State, live: Live) -> None:
    reason = "" if live.clock.reason is None else f" ({live.clock.reason})"
    console.print(escape(f"clock {live.clock.state}{reason}"), highlight=False)
    if live.holding is not None:
        console.print(f"[yellow]holds[/]: {escape(HOLDING.get(live.holding, live.holding))}")
    for source in live.sources:
        colour, said = ("green", "current") if source.current else ("yellow", "behind")
        since = "" if source.since is None else f" for {_lasting((state.now - source.since).total_seconds())}"
        since += "" if source.cause is None else f": {CAUSES.get(source.cause, source.cause)}"
        console.print(f"source {escape(source.name)}: [{colour}]{said}[/]{since}", highlight=False)


def _show_windows(console: Console, state: State) -> None:
    table = Table("plan", title="windows")
    for name in (*STATUSES, "open"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("closed to")
    for plan in state.plans:
        counts = (str(plan.sealed.get(name, 0)) for name in STATUSES)
        closed = "-" if plan.closed_before is None else _moment(plan.closed_before)
        table.add_row(f"{plan.name} v{plan.version}", *counts, _open(plan), closed)
    console.print(table)
    for plan in state.plans:
        if plan.veto is not None:
            console.print(f"[red]vetoed[/]: {plan.name}, by this device's policy, {escape(plan.veto.field)}:")
            console.print(f"  {escape(plan.veto.problem)}", highlight=False)


def _show_queue(console: Console, state: State) -> None:
    waits = f"{state.waiting} releases wait to be acked"
    if state.oldest is not None:
        age = _lasting((state.now - state.oldest).total_seconds())
        waits += f", the oldest for the window that ended {_moment(state.oldest)}, {age} ago"
    console.print(waits, highlight=False)
    for parked in state.parked:
        console.print(
            f"[red]refused for good[/]: seq {parked.seq}, window {parked.window_start:%Y-%m-%d}: {parked.refusal}"
        )


def _show_local(console: Console, state: State) -> None:
    console.print("[dim]Known to this device only, never sent:[/]")
    held = {f"{plan.name}.open": plan.held_rows for plan in state.plans if plan.held_rows is not None}
    taken = {} if state.live is None else {"taken since the start": state.live.rows}
    for name, n in {**state.local_counts, **held, **taken}.items():
        console.print(f"[dim]  {escape(name)}: {n:,}[/]", highlight=False)


def as_json(state: State) -> dict[str, Any]:
    """For machines: what may be known elsewhere, too. Counts of the device's own data are left out."""
    live = state.live
    return {
        "agent": state.agent,
        "at": state.now.isoformat(),
        "pid": state.pid,
        "answers": live is not None,
        "uptime_s": None if live is None else live.uptime_s,
        "holding": None if live is None else live.holding,
        "clock": None if live is None else {"state": live.clock.state, "reason": live.clock.reason},
        "memory_bytes": None if state.memory_bytes is None else _tenths(state.memory_bytes, state.memory_limit),
        "memory_limit": state.memory_limit,
        "disk_bytes": _tenths(state.disk_bytes, state.disk_limit),
        "disk_limit": state.disk_limit,
        "disk_free": -_tenths(-state.disk_free, state.disk_limit),
        "sources": []
        if live is None
        else [
            {"name": one.name, "current": one.current, "since": _iso(one.since), "cause": one.cause}
            for one in live.sources
        ],
        "plans": [_plan_json(plan) for plan in state.plans],
        "queue": {
            "releases": state.waiting,
            "oldest_window_end": _iso(state.oldest),
            "parked": [
                {"seq": one.seq, "window_start": _iso(one.window_start), "refusal": one.refusal.value}
                for one in state.parked
            ],
        },
        "certificate": None
        if state.certificate is None
        else {"ends": _iso(state.certificate.ends), "renewal_due": _iso(state.certificate.due)},
        "accounts": [{"name": one.name, "spent": one.spent, "lasts": one.lasts} for one in state.accounts],
    }


def _tenths(count: int, limit: int) -> int:
    """Rounded up to a whole tenth of its limit, in bytes."""
    step = max(1, limit // 10)
    return -(-count // step) * step


def _plan_json(plan: PlanState) -> dict[str, Any]:
    veto = plan.veto
    return {
        "name": plan.name,
        "version": plan.version,
        "hash": plan.hash.hex(),
        "account": plan.account,
        "windows": {name: plan.sealed.get(name, 0) for name in STATUSES},
        "closed_before": _iso(plan.closed_before),
        "veto": None if veto is None else {"reason": veto.veto.value, "field": veto.field, "problem": veto.problem},
    }


def _open(plan: PlanState) -> str:
    return "-" if plan.open is None else str(len(plan.open))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _lasting(seconds: float) -> str:
    """A length of time as people say it: its largest unit, and the next one."""
    if seconds < 0:
        return f"-{_lasting(-seconds)}"
    left = int(seconds)
    for length, name, part, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= length:
            rest = left % length // part
            return f"{left // length} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{left} s"


def _size(count: int) -> str:
    """Bytes as people say them."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
