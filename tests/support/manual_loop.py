"""Event loops whose time a test drives: nothing waits, and everything comes in its order.

`ManualLoop` is for callbacks: it has a clock and timers, and `advance` turns it on. `run_simulated`
is for coroutines: a real event loop whose clock jumps to the next timer as soon as nothing else is
left to do, so that hours pass in milliseconds.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class _Timer:
    """One callback; from outside it looks like an event loop's timer."""

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __lt__(self, other: _Timer) -> bool:
        return self.when < other.when


class ManualLoop:
    """A clock and its timers; `errors` holds what callbacks raised."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.errors: list[Exception] = []
        self._timers: list[_Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], /, *args: object) -> _Timer:
        timer = _Timer(when, partial(callback, *args))
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: object) -> _Timer:
        return self.call_at(self.now + delay, callback, *args)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, with all timers in them."""
        until = self.now + seconds
        while self._timers and self._timers[0].when <= until:
            timer = heapq.heappop(self._timers)
            self.now = max(self.now, timer.when)
            if not timer.cancelled:
                try:
                    timer.callback()
                except Exception as error:  # noqa: BLE001 - as an event loop does
                    self.errors.append(error)
        self.now = until

    @property
    def armed(self) -> int:
        """How many timers are waiting."""
        return sum(not timer.cancelled for timer in self._timers)


class _Jumping(selectors.DefaultSelector):
    """Finds what is ready now; where an event loop would wait, its clock jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and no timer will end it"
            self.now += timeout
        return ready


class _SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_simulated(main: Coroutine[object, object, T]) -> T:
    """Run `main` in simulated time, which begins at 0."""
    with asyncio.Runner(loop_factory=_SimulatedLoop) as runner:
        return runner.run(main)
