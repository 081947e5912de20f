"""One coarse timer for all connections.

A member is in exactly one bucket: that of the tick at which it wants to be called next. Scheduling
and cancelling cost one set operation each, and a tick touches only the members that are due: a
hundred thousand idle connections cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A fifth of the shortest delay in use, the 250 ms between two connection attempts.
TICK_S = 0.05


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """What is used of an event loop: its clock, in seconds, and its timers."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer: ...


class Scheduled(Protocol):
    """A member of a wheel; `deadline_tick` belongs to the wheel."""

    deadline_tick: int

    def on_timer(self) -> None:
        """The delay is over; the member is no longer scheduled."""

    def abort(self, reason: Reason) -> None:
        """End now."""


class TimerWheel:
    """Calls `on_timer` of each member once its delay is over, up to one tick late.

    A member whose `on_timer` raises is aborted. `report` receives the exception, and what `abort`
    may raise; the other members are not affected.
    """

    def __init__(
        self, loop: Timers, report: Callable[[Exception], None], tick_s: float = TICK_S
    ) -> None:
        self._loop = loop
        self._report = report
        self._tick_s = tick_s
        self._buckets: dict[int, set[Scheduled]] = {}
        self._done = self._current()
        self._timer: Timer | None = None

    def __iter__(self) -> Iterator[Scheduled]:
        """All members; a copy, so that members may be cancelled meanwhile."""
        return iter([member for bucket in self._buckets.values() for member in bucket])

    def schedule(self, member: Scheduled, delay_s: float) -> None:
        """Call ``member.on_timer()`` in `delay_s` seconds at the earliest."""
        tick = int((self._loop.time() + delay_s) / self._tick_s) + 1
        if tick <= self._done:
            tick = self._done + 1
        member.deadline_tick = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {member}
            if self._timer is None:
                self._done = self._current()
                self._arm()
        else:
            bucket.add(member)

    def cancel(self, member: Scheduled) -> None:
        """Forget `member`, which may be the one whose `on_timer` runs now."""
        bucket = self._buckets.get(member.deadline_tick)
        if bucket is not None:
            bucket.discard(member)
            if not bucket:
                del self._buckets[member.deadline_tick]

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._buckets.clear()

    def _current(self) -> int:
        return int(self._loop.time() / self._tick_s)

    def _arm(self) -> None:
        self._timer = self._loop.call_at((self._done + 1) * self._tick_s, self._turn)

    def _turn(self) -> None:
        # At least the tick that the timer was set for, even if the division rounds down: 0.35 s /
        # 0.05 s is 6.999….
        for tick in range(self._done + 1, max(self._done + 1, self._current()) + 1):
            self._done = tick
            # A member may cancel others, so the bucket stays in the dict while it is drained.
            while bucket := self._buckets.get(tick):
                self._call(bucket.pop())
            self._buckets.pop(tick, None)
        if self._buckets:
            self._arm()
        else:
            self._timer = None

    def _call(self, member: Scheduled) -> None:
        try:
            member.on_timer()
        except Exception as error:  # noqa: BLE001 - must not stop other members
            self._report(error)
            try:
                member.abort(Reason.ERROR)
            except Exception as another:  # noqa: BLE001 - as above
                self._report(another)
