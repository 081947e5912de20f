"""A life of the daemon in simulated time: its records, its signals, and how its drain goes on.

It listens nowhere (EGRESS_DNS_PROXY_LISTEN is empty here, which the grammar refuses), so that no
test needs a port; clients through real ones are in tests/integration.
"""

from __future__ import annotations

import asyncio
import gc
import resource
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.settings import Settings, read_settings
from egress_proxy.errors import PlatformError
from egress_proxy.events import (
    ConfigRejected,
    ConfigReloaded,
    DaemonDefect,
    DaemonDraining,
    DaemonReady,
    DaemonStarted,
    DaemonStopped,
    Event,
    LogSwitched,
)
from egress_proxy.pod.descriptors import raise_descriptor_limit
from egress_proxy.pod.facts import Pod
from egress_proxy.run.daemon import Daemon
from egress_proxy.run.drain import Shutdown
from tests.support.manual_loop import run_simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from egress_proxy.pod.addresses import Interfaces

INTERFACES = {"eth0": (ip_address("192.0.2.10"),), "macvlan0": (ip_address("203.0.113.99"),)}
P = "EGRESS_DNS_PROXY_"
TEXT = "80 203.0.113.1\n443 203.0.113.2\n"


class Log:
    """Keeps all events."""

    dropped = 0

    def __init__(self) -> None:
        self.debug = False
        self.events: list[Event] = []
        self.ready = asyncio.Event()
        self.reloads: asyncio.Queue[Event] = asyncio.Queue()

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, DaemonReady):
            self.ready.set()
        elif isinstance(event, ConfigReloaded | ConfigRejected):
            self.reloads.put_nowait(event)

    @property
    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]


class Life:
    """A daemon that runs from `start` until its signals say so, and the time since."""

    def __init__(self, interfaces: Interfaces = INTERFACES, **variables: str) -> None:
        environ = {f"{P}DESTINATION": TEXT, f"{P}SOURCE": "any", f"{P}ADMIN_LISTEN": "off"}
        environ |= {f"{P}{name}": value for name, value in variables.items()}
        self.settings: Settings = replace(read_settings(environ), listen=())
        self.log = Log()
        self.shutdown = Shutdown()
        pod = Pod(
            interfaces=interfaces,
            autoconfigured=frozenset(),
            reserved=frozenset(),
            listens_by_device=False,
            descriptors=raise_descriptor_limit(),
        )
        self.daemon = Daemon(self.settings, pod, self.log, environ)

    async def run(self) -> None:
        await self.daemon.run(self.shutdown)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """From when it is ready to its end."""
        task = asyncio.create_task(self.run(), name="daemon")
        await self.log.ready.wait()
        yield task
        await task


async def time_to(end: asyncio.Task[None]) -> float:
    """Seconds from now."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await end
    return loop.time() - began


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """What a daemon changes of its process: the limit of descriptors, and the garbage collector."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.unfreeze()


def simulated(scenario: Callable[[], Coroutine[object, object, None]]) -> Callable[[], None]:
    def call() -> None:
        run_simulated(scenario())

    call.__doc__ = scenario.__doc__
    return call


@simulated
async def test_a_life_from_the_start_to_the_end() -> None:
    life = Life(DRAIN_TIMEOUT="25s")
    async with life.running() as task:
        life.shutdown.request()
        # Clients are served 2 s longer, and there is no session to wait for.
        assert await time_to(task) == pytest.approx(2.0, abs=0.1)
    assert life.log.kinds == [DaemonStarted, DaemonReady, DaemonDraining, DaemonStopped]
    started, ready, draining, stopped = life.log.events
    assert isinstance(started, DaemonStarted)
    assert (started.source, started.listen, started.destinations) == ((), (), 2)
    assert isinstance(ready, DaemonReady)
    assert isinstance(draining, DaemonDraining)
    assert (draining.connections, draining.timeout_s) == (0, 25.0)
    assert isinstance(stopped, DaemonStopped)
    assert stopped.reset == 0


@simulated
async def test_an_exception_of_a_timer_is_a_defect_in_the_log() -> None:
    life = Life(DRAIN_TIMEOUT="0s")

    def fail() -> None:
        raise ValueError("of a timer")

    async with life.running():
        asyncio.get_running_loop().call_soon(fail)
        life.shutdown.request()
    [defect] = [event for event in life.log.events if isinstance(event, DaemonDefect)]
    assert (defect.where, defect.error) == ("event loop", "ValueError('of a timer')")


@simulated
async def test_a_short_drain_serves_no_longer_than_that() -> None:
    life = Life(DRAIN_TIMEOUT="500ms")
    async with life.running() as task:
        life.shutdown.request()
        assert await time_to(task) == pytest.approx(0.5, abs=0.1)


@simulated
async def test_a_second_signal_ends_the_drain_at_once() -> None:
    life = Life(DRAIN_TIMEOUT="1h")
    async with life.running() as task:
        life.shutdown.request()
        await asyncio.sleep(1)
        assert DaemonDraining in life.log.kinds
        life.shutdown.request()
        assert await time_to(task) == pytest.approx(0.0, abs=0.1)
    assert life.log.kinds[-1] is DaemonStopped


@simulated
async def test_a_signal_before_it_is_ready_is_a_drain_too() -> None:
    life = Life(DRAIN_TIMEOUT="0s")
    life.shutdown.request()
    await life.run()
    assert life.log.kinds[-2:] == [DaemonDraining, DaemonStopped]


def test_the_destinations_of_a_file_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "destinations"
    file.write_text(TEXT)

    async def scenario() -> None:
        life = Life(DESTINATION="", DESTINATION_FILE=str(file), DRAIN_TIMEOUT="0s")
        async with life.running():
            for text in ("80 203.0.113.1\n8443 203.0.113.2\n", "80 localhost\n"):
                file.write_text(text)
                life.daemon.reload()
                await life.log.reloads.get()
            life.shutdown.request()
        reloaded, rejected = [
            event for event in life.log.events if isinstance(event, ConfigReloaded | ConfigRejected)
        ]
        assert isinstance(reloaded, ConfigReloaded)
        assert (reloaded.added, reloaded.removed, reloaded.unchanged) == ((8443,), (443,), 1)
        assert isinstance(rejected, ConfigRejected)
        assert "a name of a single label" in rejected.problems[0]

    # In real time: a thread reads the file.
    asyncio.run(scenario())


@simulated
async def test_nothing_is_reloaded_once_the_drain_has_begun() -> None:
    life = Life(DRAIN_TIMEOUT="25s")
    async with life.running():
        life.shutdown.request()
        await asyncio.sleep(1)
        life.daemon.reload()
    assert not {ConfigReloaded, ConfigRejected} & set(life.log.kinds)


@simulated
async def test_many_sigusr1_switch_debug_once() -> None:
    life = Life(DRAIN_TIMEOUT="0s")
    for _ in range(10):
        life.daemon.toggle_debug()
    assert life.log.debug
    assert life.log.events == [LogSwitched(debug=True)]
    life.shutdown.request()
    await life.run()


@simulated
async def test_without_its_source_address_it_does_not_start() -> None:
    with pytest.raises(PlatformError, match="macvlan0"):
        Life({"eth0": INTERFACES["eth0"]}, SOURCE="auto")


@simulated
async def test_what_can_not_be_reached_is_refused_before_anything_starts() -> None:
    life = Life(SOURCE="auto", DESTINATION="80 203.0.113.1\n443 2001:db8::1\n")
    with pytest.raises(PlatformError) as caught:
        await life.run()
    [problem] = caught.value.problems
    assert (problem.line, problem.value) == (2, "2001:db8::1")
    assert DaemonStarted not in life.log.kinds


@simulated
async def test_requests_to_end_are_two() -> None:
    shutdown = Shutdown()
    assert (shutdown.requested.is_set(), shutdown.forced.is_set()) == (False, False)
    shutdown.request()
    assert (shutdown.requested.is_set(), shutdown.forced.is_set()) == (True, False)
    for _ in range(2):
        shutdown.request()
        assert (shutdown.requested.is_set(), shutdown.forced.is_set()) == (True, True)
