"""How many clients there may be, and what happens when there can't be more.

One `Admission` serves all listeners. When the maximum is reached, or the kernel runs out of
descriptors or memory, it pauses them all: nothing spins, clients wait in the kernel's backlog, and
the first connection that ends, or time, opens the listeners again. When only one remote has no
ports left, the listeners of that destination rest alone.
"""

from __future__ import annotations

import asyncio
import os
import resource
from typing import TYPE_CHECKING, Protocol

from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import ListenersPaused, ListenersResumed, Observer
from egress_proxy.relay.pipes import PIPES

if TYPE_CHECKING:
    from egress_proxy.relay.timer_wheel import Timer, Timers

# Descriptors for the event loop, DNS, logs, the admin port and what a library may open.
_HEADROOM = 64
# A client's socket and its upstream's; a race for the upstream may hold one more for a moment.
_PER_CONNECTION = 2

# Out of resources, listeners try again by themselves after so long.
_RETRY_S = 0.25
# At most one record of a kind in so long, however often listeners pause.
_RECORD_INTERVAL_S = 1.0


class Gate(Protocol):
    """The listeners of one port."""

    @property
    def port(self) -> int: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Admission:
    """Counts clients up to `maximum`; pauses and resumes gates, all of them or one alone."""

    def __init__(self, loop: Timers, observer: Observer, maximum: int) -> None:
        self._loop = loop
        self._observer = observer
        self._gates: list[Gate] = []
        self._paused_alone: dict[Gate, Timer] = {}
        self._retry: Timer | None = None
        self._recorded_at = loop.time() - _RECORD_INTERVAL_S
        self._recorded = False
        self._emptied: asyncio.Event | None = None
        self.maximum = maximum
        self.active = 0
        self.paused = False
        self.pauses = 0

    def open(self, gate: Gate) -> None:
        """Let `gate` take clients from now on, whenever there is room for them."""
        self._gates.append(gate)
        if not self.paused:
            gate.resume()

    def close(self, gate: Gate) -> None:
        """Let `gate` take no more clients."""
        if self.takes_clients(gate):
            gate.pause()
        self._gates.remove(gate)
        timer = self._paused_alone.pop(gate, None)
        if timer is not None:
            timer.cancel()

    def takes_clients(self, gate: Gate) -> bool:
        """Whether `gate`, which is open, is neither paused nor resting."""
        return not self.paused and gate not in self._paused_alone

    def enter(self) -> None:
        """One client more; at the maximum the listeners pause."""
        self.active += 1
        if self.active >= self.maximum:
            self._pause(f"the maximum of {self.maximum} connections is reached")

    def leave(self) -> None:
        """One client less."""
        self.active -= 1
        if self._emptied is not None and not self.active:
            self._emptied.set()
        if self.paused and self._retry is None:
            self._resume()

    def exhausted(self, error_number: int) -> None:
        """The kernel has run out of something: `error_number` says of what.

        The clients that fail for it end at once, and must not open the listeners by that: only
        time does.
        """
        if self._retry is None:
            self._retry = self._loop.call_later(_RETRY_S, self._try_again)
        self._pause(os.strerror(error_number))

    def pause_one(self, gate: Gate, error_number: int) -> None:
        """As `exhausted`, of something that only what `gate` connects to lacks."""
        if gate in self._gates and gate not in self._paused_alone:
            if not self.paused:
                gate.pause()
            self.pauses += 1
            recorded = self._record_pause(os.strerror(error_number), gate.port)
            self._paused_alone[gate] = self._loop.call_later(
                _RETRY_S, lambda: self._resume_one(gate, recorded=recorded)
            )

    async def emptied(self) -> None:
        """Wait until there is no client."""
        self._emptied = asyncio.Event()
        if self.active:
            await self._emptied.wait()

    def stop(self) -> None:
        for timer in self._paused_alone.values():
            timer.cancel()
        self._paused_alone.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _try_again(self) -> None:
        self._retry = None
        if self.active < self.maximum:
            self._resume()

    def _resume_one(self, gate: Gate, *, recorded: bool) -> None:
        del self._paused_alone[gate]
        if not self.paused:
            gate.resume()
        if recorded:
            self._observer.observe(ListenersResumed(listener=gate.port, connections=self.active))

    def _pause(self, error: str) -> None:
        if self.paused:
            return
        for gate in self._gates:
            if self.takes_clients(gate):
                gate.pause()
        self.paused = True
        self.pauses += 1
        self._recorded = self._record_pause(error, None)

    def _record_pause(self, error: str, listener: int | None) -> bool:
        now = self._loop.time()
        due = now - self._recorded_at >= _RECORD_INTERVAL_S
        if due:
            self._recorded_at = now
            self._observer.observe(
                ListenersPaused(listener=listener, error=error, connections=self.active)
            )
        return due

    def _resume(self) -> None:
        self.paused = False
        for gate in self._gates:
            if self.takes_clients(gate):
                gate.resume()
        if self._recorded:
            self._observer.observe(ListenersResumed(connections=self.active))


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one, and return it (getrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The kernel's own ceiling, where the hard limit is infinity.
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def maximum_connections(wanted: int | None, descriptors: int, listeners: int) -> int:
    """How many clients `descriptors` allow beside `listeners`; `wanted` if that is fewer.

    Raises `PlatformError` when there is no room for a single one, or for those that are wanted.
    """
    room = (descriptors - _HEADROOM - listeners - 2 * PIPES) // _PER_CONNECTION
    if room < (wanted or 1):
        needed = (wanted or 1) * _PER_CONNECTION + _HEADROOM + listeners + 2 * PIPES
        raise PlatformError(
            Problem(
                variable="EGRESS_DNS_PROXY_MAX_CONNECTIONS" if wanted else "",
                value=str(wanted) if wanted else None,
                reason=f"the limit of open files is {descriptors}, {needed} are needed",
                cure="raise the container's nofile limit (RLIMIT_NOFILE)",
            )
        )
    return wanted or room
