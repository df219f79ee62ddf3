"""The agent as a process: signals, its supervisor, its door for the operator.

Place: between the command line and the assembly.
Invariants: SIGTERM and SIGINT stop in order, SIGHUP reloads tuning and nothing else; a reload that cannot be taken
leaves the agent as it was.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agg import control
from edge_agg.assembly import build, retune
from edge_agg.ceilings import settle_heap
from edge_agg.clock import SystemClock, wait_first
from edge_agg.config import load
from edge_agg.errors import ConfigInvalid
from edge_agg.notify import Notifier
from edge_agg.telemetry import Event, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_agg.agent import Agent
    from edge_agg.clock import Clock
    from edge_agg.config import Config
    from edge_agg.contract.plan import Plan
    from edge_agg.wire import Wire

STARTING_S = 180.0
"""How long a start may take from one sign of its going on to the next, seconds: the unit's TimeoutStartSec."""
_SIGN_S = 5.0
"""How often a start gives such a sign, at most, seconds."""
STATUS_S = 60.0
"""How often the supervisor's status line is written anew, seconds."""


async def drain(config: Config, plans: Sequence[Plan], *, patience_s: float) -> bool:
    """Drain once; SIGTERM and SIGINT call it off.

    Returns:
        Whether the collector has everything.

    Raises:
        CancelledError: it was called off; nothing is lost.
    """
    agent = build(config, plans, clock=SystemClock())
    task = asyncio.ensure_future(agent.drain(patience_s))
    _on_signals(task.cancel, signal.SIGTERM, signal.SIGINT)
    try:
        return await task
    finally:
        await agent.close()


async def live(path: Path, config: Config, plans: Sequence[Plan], *, wire: Wire | None = None) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        path: of the config, which SIGHUP reads again.
        config: as read from it.
        plans: as read with it.
        wire: the way to the collector; over gRPC unless a test brings its own.
    """
    settle_heap()
    clock, notifier = SystemClock(), Notifier.from_environment()
    agent = build(config, plans, clock=clock, wire=wire, going_on=_going_on(notifier, clock))
    stop = asyncio.Event()
    door = partial(control.serve, Path(config.agent.state) / control.SOCKET, control.facts_of(agent, clock))
    agent.attendants = (door, partial(_tell_supervisor, agent, notifier))
    _on_signals(stop.set, signal.SIGTERM, signal.SIGINT)
    _on_signals(partial(reload, agent, path, config, notifier), signal.SIGHUP)
    try:
        running = asyncio.ensure_future(agent.run(stop))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        notifier.stopping()
        await running
    finally:
        await agent.close()


def reload(agent: Agent, path: Path, config: Config, notifier: Notifier) -> None:
    """Take over the tuning of the config as it is on disk now, or say why not."""
    notifier.reloading(time.monotonic_ns() // 1000)
    try:
        new, plans = load(path)
        refused = retune(agent, config, new, plans)
    except ConfigInvalid:
        refused = "invalid"
    if refused is None:
        emit(Event.CONFIG_RELOADED)
    else:
        emit(Event.CONFIG_REFUSED, reason=refused)
    notifier.ready()


def _going_on(notifier: Notifier, clock: Clock) -> Callable[[], None]:
    """What a start calls at every step: now and then it tells the supervisor that a long start is no hang."""
    told_s = -math.inf

    def going_on() -> None:
        nonlocal told_s
        now_s = clock.since_boot_s()
        if now_s - told_s >= _SIGN_S:
            told_s = now_s
            notifier.starting(STARTING_S)

    return going_on


async def _tell_supervisor(agent: Agent, notifier: Notifier, ended: asyncio.Event) -> None:
    """Say that the agent is ready, that its loop turns, and how it is."""
    notifier.ready()
    every_s = STATUS_S if notifier.watchdog_s is None else min(STATUS_S, notifier.watchdog_s / 3)
    while not ended.is_set():
        notifier.alive()
        notifier.status(_how(agent))
        await wait_first(ended.wait(), asyncio.sleep(every_s))


def _how(agent: Agent) -> str:
    """One line: what it holds for, what waits to be sent, which sources are behind and why."""
    held = control.holding(agent)
    said = [] if held is None else [f"holding ({agent.timekeeper.doubt or held})"]
    behind = [state for state in agent.intake.sources.values() if not state.current]
    waiting = f"{agent.journal.unacked()} releases wait"
    return "; ".join([*said, waiting, *(f"{state.name} behind ({state.cause.value})" for state in behind)])


def _on_signals(action: Callable[[], object], *numbers: signal.Signals) -> None:
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, action)
