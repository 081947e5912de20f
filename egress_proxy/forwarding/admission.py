"""Limits the number of clients, and pauses listeners at the limit.

One `Admission` serves all listeners. At the maximum, or when the kernel runs out of descriptors or
memory, it pauses them all: clients wait in the kernel's backlog, without a busy loop. The listeners
resume when a connection ends, or after a time. When only one remote has no ports left, only the
listeners of that destination pause.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import ListenersPaused, ListenersResumed, Observer

if TYPE_CHECKING:
    from egress_proxy.relay.timer_wheel import Timer, Timers

# How long after the kernel ran out of a resource the listeners try again.
_RETRY_S = 0.25
# At most one record of a pause per this time, however often listeners pause.
_RECORD_INTERVAL_S = 1.0


class Gate(Protocol):
    """The listeners of one port. Pausing or resuming twice is the same as once."""

    @property
    def port(self) -> int: ...

    def pause(self) -> None: ...

    def resume(self) -> None:
        """Accept clients; raises `OSError`, and is then still paused (epoll_ctl(2): ENOSPC)."""


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
        self._maximum = maximum
        self.active = 0
        self.paused = False
        self.pauses = 0

    @property
    def maximum(self) -> int:
        return self._maximum

    @maximum.setter
    def maximum(self, maximum: int) -> None:
        """Applies at once: clients beyond it stay, and none is accepted until there is room."""
        self._maximum = maximum
        if not self._has_room:
            self._pause_at_maximum()
        else:
            self._resume_if_possible()

    @property
    def _has_room(self) -> bool:
        return self.active < self._maximum

    def open(self, gate: Gate) -> None:
        """Let `gate` take clients from now on, whenever there is room for them."""
        self._gates.append(gate)
        if not self.paused:
            try:
                gate.resume()
            except OSError as error:
                self.exhausted(error.errno or 0)

    def close(self, gate: Gate) -> None:
        """Let `gate` take no more clients."""
        gate.pause()
        self._gates.remove(gate)
        timer = self._paused_alone.pop(gate, None)
        if timer is not None:
            timer.cancel()

    def takes_clients(self, gate: Gate) -> bool:
        """Whether `gate`, which is open, is not paused: neither with all others nor alone."""
        return not self.paused and gate not in self._paused_alone

    def enter(self) -> None:
        """One client more; at the maximum the listeners pause."""
        self.active += 1
        if self.active >= self._maximum:
            self._pause_at_maximum()

    def leave(self) -> None:
        """One client less."""
        self.active -= 1
        if self._emptied is not None and not self.active:
            self._emptied.set()
        if self.paused:
            self._resume_if_possible()

    def set_active(self, active: int) -> None:
        """There are `active` clients, where they are not seen to enter and leave."""
        self.active = active
        if not self._has_room:
            self._pause_at_maximum()
        else:
            self._resume_if_possible()

    def exhausted(self, error_number: int) -> None:
        """Pause all listeners: the kernel has run out of what `error_number` says.

        Clients that fail because of this are closed immediately. Those closes must not resume the
        listeners: only the retry timer does.
        """
        if self._retry is None:
            self._retry = self._loop.call_later(_RETRY_S, self._try_again)
        self._pause(os.strerror(error_number))

    def pause_one(self, gate: Gate, error_number: int) -> None:
        """Pause `gate` alone for `_RETRY_S`: its remote or its own socket is at fault."""
        if gate in self._gates and gate not in self._paused_alone:
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
        self._resume_if_possible()

    def _resume_one(self, gate: Gate, *, recorded: bool) -> None:
        del self._paused_alone[gate]
        if not self.paused:
            try:
                gate.resume()
            except OSError as error:
                self.exhausted(error.errno or 0)
                return
        if recorded:
            self._observer.observe(ListenersResumed(listener=gate.port, connections=self.active))

    def _pause_at_maximum(self) -> None:
        self._pause(f"the maximum of {self._maximum} connections is reached")

    def _pause(self, error: str) -> None:
        if self.paused:
            return
        for gate in self._gates:
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

    def _resume_if_possible(self) -> None:
        """Resume all gates, unless there is no room or a retry is still to come."""
        if not self.paused or not self._has_room or self._retry is not None:
            return
        try:
            for gate in self._gates:
                if gate not in self._paused_alone:
                    gate.resume()
        except OSError:
            for gate in self._gates:
                gate.pause()
            self._retry = self._loop.call_later(_RETRY_S, self._try_again)
            return
        self.paused = False
        # While it drains, there is no listener any more.
        if self._recorded and self._gates:
            self._observer.observe(ListenersResumed(connections=self.active))
