"""Several workers on one address, one process that seals, and this one, which looks after them.

Place: around the servers where `workers` is above 1. A worker takes calls on a socket of its own (SO_REUSEPORT: the
kernel deals connections out), and all commit to the one landing; only the sealer process moves it to the lake.
Invariants: workers are spawned, not forked (gRPC and Arrow have threads); one that ends without being told to is
started again after a growing pause, but a failed disk ends all of them, and so does what keeps one of the first from
starting (later it keeps out that one alone, until it is put right); on a stop the workers drain first and the
sealer seals what is left (a Ctrl-C, which the terminal says to all, is heard by this process alone); if this process
dies, however it dies, the others see its pipe close and stop in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from cloud_collector import garbage, metrics, server, telemetry
from cloud_collector.errors import CollectorError, ConfigInvalid, StoreFailed
from cloud_collector.lake import Lake
from cloud_collector.landing import Landing
from cloud_collector.monitor import Monitor
from cloud_collector.telemetry import Event, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from cloud_collector.config import Config

PAUSE_S, MOST_PAUSE_S, STEADY_S = 0.1, 10.0, 60.0
"""The pause before a worker is started again: the first, the longest, and how long a worker must live to reset it."""
DRAIN_S = 30.0
"""How long a process may take to stop in order before it is killed."""
SEALER_NICE = 10
"""How far the sealer steps back where processors are short: acks are waited for, the lake is not."""
_SPAWN = multiprocessing.get_context("spawn")


async def serve(
    config: Config,
    *,
    ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
    monitored: Callable[[str], None] | None = None,
) -> None:
    """Run a collector of several processes until it is told to stop.

    Args:
        config: what :func:`cloud_collector.config.load` read; its `workers` take calls.
        ready: is told the address once every worker takes calls.
        stop: ends the collector when set; SIGTERM and SIGINT do if there is none.
        monitored: is told the address of the page for those who watch, if there is one.

    Raises:
        ConfigInvalid: a plan or the address does not work: fix what the text names.
        StoreFailed: the disk failed: look at it, then start again.
    """
    ending = stop if stop is not None else server.on_signals()
    metrics.start()
    registry, _ = server.registry_of(config)
    with contextlib.closing(Landing(config.landing)) as landing:  # makes it, once
        server.bind(config, landing, Lake.of(config, writes=True), registry)
    with contextlib.ExitStack() as reserved:
        config = _reserved(config, reserved)
        house = _House(config, ending)
        async with Monitor(house.ready).listening(config.monitor) as watched:
            if monitored is not None and watched is not None:
                monitored(watched)
            await house.run(ready)
    emit(Event.COLLECTOR_STOPPED)
    if house.failure is not None:
        raise house.failure


class _House:
    """The processes, by what they are for."""

    def __init__(self, config: Config, ending: asyncio.Event) -> None:
        self._config = config
        self._ending = ending
        self._up: set[str] = set()
        self._all_up = asyncio.Event()
        self._workers = [f"{i}" for i in range(config.workers)]
        self._problems: dict[str, str] = {}
        self.failure: CollectorError | None = None

    def ready(self) -> bool:
        """Whether a worker takes calls and the sealer is there."""
        return not self._ending.is_set() and "sealer" in self._up and len(self._up) > 1

    async def run(self, ready: Callable[[str], None] | None) -> None:
        """Keep the processes running until told to stop, then end them in order."""
        stop_workers, stop_sealer = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            sealer = tasks.create_task(self._keep("sealer", stop_sealer))
            workers = [tasks.create_task(self._keep(name, stop_workers)) for name in self._workers]
            up, end = (tasks.create_task(event.wait()) for event in (self._all_up, self._ending))
            await asyncio.wait([up, end], return_when=asyncio.FIRST_COMPLETED)
            if not self._ending.is_set() and ready is not None:
                ready(self._config.listen)
            await end
            up.cancel()
            emit(Event.COLLECTOR_DRAINING)
            stop_workers.set()
            await asyncio.wait(workers)
            stop_sealer.set()
            await sealer

    async def _keep(self, name: str, stop: asyncio.Event) -> None:
        pause_s = PAUSE_S
        while not stop.is_set():
            began = time.monotonic()
            code = await self._run_once(name, stop)
            if stop.is_set():
                break
            if self.failure is not None:
                self._ending.set()
                break
            pause_s = PAUSE_S if time.monotonic() - began > STEADY_S else pause_s
            problem = self._problems.pop(name, None)
            emit(
                Event.WORKER_DIED,
                worker=name,
                exit_code=code,
                wait_s=pause_s,
                **({} if problem is None else {"problem": problem}),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)

    async def _run_once(self, name: str, stop: asyncio.Event) -> int:
        """Start a process and wait for its end; its exit code."""
        child = _start(name, self._config)
        emit(Event.WORKER_STARTED, worker=name, pid=child.pid)
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(child.pipe, self._hear, name, child, loop)
        loop.add_reader(child.sentinel, over.set)
        stopping = loop.create_task(stop.wait())
        ended = loop.create_task(over.wait())
        try:
            await asyncio.wait([stopping, ended], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.stop()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), DRAIN_S)
        finally:
            stopping.cancel()
            ended.cancel()
            loop.remove_reader(child.sentinel)
            self._hear(name, child, loop)
            self._up.discard(name)
            code = child.end()
            metrics.forget(child.pid)
        if self.failure is None and code == StoreFailed.exit_code:
            self.failure = StoreFailed(server.DISK_FAILED)
        elif self.failure is None and code == ConfigInvalid.exit_code and not self._all_up.is_set():
            self.failure = ConfigInvalid(self._problems.get(name, "a worker cannot start"))
        return code

    def _hear(self, name: str, child: _Child, loop: asyncio.AbstractEventLoop) -> None:
        """Read what a process says: that it is up, or why it cannot be."""
        try:
            while child.pipe.poll():
                problem = child.pipe.recv()
                if problem:
                    self._problems[name] = problem
                else:
                    self._up.add(name)
        except (EOFError, OSError):
            loop.remove_reader(child.pipe)
        if len(self._up) == len(self._workers) + 1:
            self._all_up.set()


@dataclass(frozen=True, slots=True)
class _Child:
    process: multiprocessing.process.BaseProcess
    pipe: Connection

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    @property
    def sentinel(self) -> int:
        return self.process.sentinel

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def end(self) -> int:
        """Make sure that it is over; its exit code."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode or 0


def _start(name: str, config: Config) -> _Child:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_run, args=(name, config, theirs), name=f"collector-{name}")
    resource_tracker.ensure_running()  # or the first start would start it, which lets through what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # and a child keeps the mask from birth
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Child(process, ours)


def _run(name: str, config: Config, pipe: Connection) -> None:
    """What a child process does; its exit code is the command line's."""
    telemetry.configure(sys.stderr)
    try:
        asyncio.run(_serve(name, config, pipe))
    except CollectorError as error:
        with contextlib.suppress(OSError):
            pipe.send(str(error))
        sys.exit(error.exit_code)


async def _serve(name: str, config: Config, pipe: Connection) -> None:
    stop = server.on_signals()
    loop = asyncio.get_running_loop()

    def gone() -> None:  # nothing is ever said to us: the pipe is readable when its other end is closed
        loop.remove_reader(pipe)
        stop.set()

    loop.add_reader(pipe, gone)
    run = server.seal if name == "sealer" else server.serve
    if name == "sealer":
        with contextlib.suppress(OSError):  # where that is forbidden it seals all the same
            os.nice(SEALER_NICE)

    def ready(_: str) -> None:
        garbage.settle()
        pipe.send("")

    await run(config, ready=ready, stop=stop)


def _reserved(config: Config, reserved: contextlib.ExitStack) -> Config:
    """The config with the ports that the workers will share, held meanwhile so that nobody else gets them."""
    listen = reserved.enter_context(_held(config.listen, "$.collector.listen"))
    tls = config.tls
    if tls is not None and tls.listen_open is not None:
        tls = replace(tls, listen_open=reserved.enter_context(_held(tls.listen_open, "$.tls.listen_open")))
    return replace(config, listen=listen, tls=tls)


@contextlib.contextmanager
def _held(listen: str, field: str) -> Iterator[str]:
    """Hold an address that is free, without listening on it; yields it with its port."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as probe:  # without SO_REUSEPORT it shows whether somebody listens
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        held = socket.socket(family, kind)
    except OSError:
        raise ConfigInvalid(f"{field}: the address is taken or is not this machine's") from None
    with held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        yield f"{host}:{held.getsockname()[1]}"
