"""`egress-proxy hold`: passes events to the elector, and carries out its actions.

Actions on the LAN and the kernel are carried out at once, in their order; a request to the API
server is a task, whose answer becomes an event. After an unexpected exception the process drops the
address and ends, and the kubelet starts it again. If it can't even do that, the kernel removes the
address when its lifetime ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from egress_proxy import __version__
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import DaemonDefect, Observers
from egress_proxy.hold import elector, messages
from egress_proxy.hold.address import ReservedAddresses, refused
from egress_proxy.hold.admin_port import AdminPort
from egress_proxy.hold.events import HoldStarted
from egress_proxy.hold.labels import Labels
from egress_proxy.hold.lan import Lan
from egress_proxy.hold.link import LinkMonitor, read_mac
from egress_proxy.hold.pages import Counts, HoldPages
from egress_proxy.hold.requests import Requests
from egress_proxy.hold.states import ElectorSettings
from egress_proxy.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from egress_proxy.config.hold_variables import HoldSettings
    from egress_proxy.events import Observer
    from egress_proxy.hold.messages import Action, Input
    from egress_proxy.hold.requests import Client
    from egress_proxy.hold.states import State


def read_clock() -> float:
    """Seconds since the machine was started, including the time that it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def elector_settings(settings: HoldSettings) -> ElectorSettings:
    return ElectorSettings(
        identity=settings.pod_name,
        duration_s=settings.duration_s,
        handover_s=settings.handover_s,
        drain_s=settings.drain_s,
        release_on_silence=settings.release_on_silence,
        gateway_check=settings.gateway_check,
        gateways=tuple(source.gateway for source in settings.sources),
    )


class Hold:
    """Everything that one process of `egress-proxy hold` runs."""

    def __init__(self, settings: HoldSettings, client: Client, log: Observer) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._settings = settings
        self._elector = elector_settings(settings)
        self._client = client
        self.counts = Counts()
        self._observer = Observers(log, self.counts)
        self._supervisor = Supervisor(loop, self._observer)
        loop.set_exception_handler(self._supervisor.handle_loop_exception)
        self._address = ReservedAddresses(
            settings.interface, settings.sources, settings.duration_s, read_clock
        )
        self._link = LinkMonitor(
            loop, settings.interface, lambda up: self.feed(messages.CarrierChanged(up))
        )
        self._labels = Labels(
            client,
            self._supervisor,
            self._observer,
            settings.pod_name,
            settings.lease,
            self._elector.request_timeout_s,
        )
        self._requests = Requests(
            client, self._labels, self.counts, settings.lease, self._elector.request_timeout_s
        )
        self._admin = AdminPort(settings.admin_listen, settings.pod_ip)
        self._lan: Lan | None = None
        self._state: State | None = None
        self._inputs: deque[Input] = deque()
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[Problem | None] = loop.create_future()

    def request_stop(self) -> None:
        """SIGTERM: hand over; a second time: end at once."""
        self.feed(messages.StopRequested())

    async def run(self) -> None:
        """Hold the address until SIGTERM. Raises `PlatformError` with what prevents that."""
        try:
            self._open()
            await self._admin.serve(HoldPages(self.snapshot, self.counts))
            self._supervisor.spawn("watch the lease", self._watch)
            self.feed(messages.Tick())
            problem = await self._ended
        finally:
            await self._close()
        if problem is not None:
            raise PlatformError(problem)

    def snapshot(self) -> tuple[State, float]:
        """What `HoldPages` shows."""
        assert self._state is not None  # noqa: S101 - asked only while it runs
        return self._state, read_clock()

    def _open(self) -> None:
        settings = self._settings
        try:
            mac = read_mac(settings.interface)
            self._lan = Lan(self._loop, settings.interface, mac, settings.sources, self.feed)
            self._lan.start()
            self._link.start()
        except OSError as error:
            raise PlatformError(_not_opened(settings.interface, error)) from error
        self._admin.bind()
        self._state = elector.start(
            read_clock(), carrier=self._link.carrier, inherited=self._address.present()
        )
        self._observer.observe(
            HoldStarted(
                version=__version__,
                identity=settings.pod_name,
                lease=settings.lease,
                duration_s=settings.duration_s,
                source=tuple(str(source.address) for source in settings.sources),
                gateway=tuple(map(str, self._elector.gateways)),
            )
        )

    async def _close(self) -> None:
        self._feeding = True
        await self._admin.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._lan is not None:
            self._lan.stop()
        self._link.stop()
        await self._supervisor.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def feed(self, event: Input) -> None:
        """Pass `event` to the elector and carry out its actions; events that result follow."""
        self._inputs.append(event)
        if self._feeding or self._state is None:
            return
        self._feeding = True
        try:
            while self._inputs and not self._ended.done():
                self._advance(self._inputs.popleft())
        except Exception as error:  # noqa: BLE001 - see the module
            self._fail(error)
        finally:
            self._feeding = False

    def _advance(self, event: Input) -> None:
        assert self._state is not None  # noqa: S101 - feed has looked
        now = read_clock()
        self._state, actions = elector.advance(self._elector, self._state, event, now)
        if isinstance(event, messages.Claimed) and self._state.address_until is not None:
            self.counts.conflicts += 1
        for action in actions:
            self._carry_out(action)
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(self._state.wake_at - read_clock(), 0.0)
        self._timer = self._loop.call_later(delay_s, self.feed, messages.Tick())

    def _fail(self, error: Exception) -> None:
        self._observer.observe(DaemonDefect.of(error, "elector"))
        try:
            self._address.drop()
        finally:
            if not self._ended.done():
                self._ended.set_result(
                    Problem(reason=f"a defect of this program: {error!r}", cure="report it")
                )

    def _carry_out(self, action: Action) -> None:  # noqa: C901, PLR0912 - one branch per action
        assert self._lan is not None  # noqa: S101 - opened before the first event
        match action:
            case messages.Keep(deadline):
                self._keep(deadline)
            case messages.Drop():
                self._address.drop()
            case messages.Deprecate():
                self._address.deprecate()
            case messages.Probe():
                if not self._lan.probe():
                    self.feed(messages.ProbeFailed())
            case messages.Announce(deadline):
                if read_clock() <= deadline:
                    self._lan.announce()
            case messages.AskGateway(owner):
                if self._settings.gateway_check or owner:
                    self._lan.ask_gateways(owner=owner)
            case messages.Read():
                self._start("read the lease", self._requests.read())
            case messages.Write(lease, acquire):
                self._start("write the lease", self._requests.write(lease, acquire=acquire))
            case messages.ListPods():
                self._start("list the pods", self._requests.list_pods())
            case messages.HandOver(successor):
                self._start("hand over", self._requests.hand_over(successor))
            case messages.ShowRole(active):
                self._labels.show_role(active=active)
            case messages.ShowGateway(heard):
                self._labels.show_gateway(heard=heard)
            case messages.Tell(event):
                self._observer.observe(event)
            case messages.Exit(problem):
                self._ended.set_result(problem)

    def _keep(self, deadline: float) -> None:
        try:
            kept = self._address.keep(deadline)
        except OSError as error:
            self.feed(messages.KeepFailed(refused(error, self._settings.sources[0])))
        else:
            if not kept:
                self.feed(messages.KeptLate())

    def _start(self, name: str, work: Awaitable[Input]) -> None:
        async def answer() -> None:
            try:
                event = await work
            except Exception as error:  # noqa: BLE001 - see the module
                self._fail(error)
            else:
                self.feed(event)

        task = self._loop.create_task(answer(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        async for lease in self._client.watch_lease():
            self.feed(messages.LeaseSeen(lease))


def _not_opened(interface: str, error: OSError) -> Problem:
    return Problem(
        variable="EGRESS_INTERFACE",
        value=interface,
        reason=f"can't send and hear frames on it: {error.strerror or error}",
        cure="check that init has run, and add NET_ADMIN and NET_RAW to "
        "securityContext.capabilities of egress-hold, and runAsUser: 0",
    )
