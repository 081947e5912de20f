"""One coarse timer for all connections.

A connection is in exactly one bucket, that of the tick at which it wants to be looked at next.
Entering and leaving cost a set operation each, and a tick touches only the connections that are
due: a hundred thousand idle ones cost nothing. A connection whose `due` raises is aborted, and the
exception goes to the event loop's handler; the others do not notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A fifth of the shortest delay there is, the 250 ms between two connection attempts.
TICK_S = 0.05


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """What is used of an event loop: its clock, in seconds, and its timers."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer: ...


class Scheduled(Protocol):
    """What a wheel holds; `tick` belongs to the wheel."""

    deadline_tick: int

    def on_timer(self) -> None:
        """The time has come; the wheel has let go of this."""

    def abort(self, reason: Reason) -> None:
        """End now."""


class TimerWheel:
    """Calls `due` of each member once its delay is over, up to one tick late."""

    def __init__(self, loop: Timers, tick_s: float = TICK_S) -> None:
        self._loop = loop
        self._tick_s = tick_s
        self._buckets: dict[int, set[Scheduled]] = {}
        self._done = self._current()
        self._timer: Timer | None = None

    def __iter__(self) -> Iterator[Scheduled]:
        """All members; a copy, so that they may leave meanwhile."""
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
        """Forget `member`; one that is due at this moment may leave too."""
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
        defects: list[Exception] = []
        # At least the tick that the timer was for, whatever the division makes of its time:
        # 0.35 s / 0.05 s is 6.999….
        for tick in range(self._done + 1, max(self._done + 1, self._current()) + 1):
            self._done = tick
            # One may make others leave, so the bucket stays in its place while it is emptied.
            while bucket := self._buckets.get(tick):
                member = bucket.pop()
                try:
                    member.on_timer()
                except Exception as error:  # noqa: BLE001 - the others are due all the same
                    member.abort(Reason.ERROR)
                    defects.append(error)
            self._buckets.pop(tick, None)
        if self._buckets:
            self._arm()
        else:
            self._timer = None
        if defects:
            raise defects[0]
