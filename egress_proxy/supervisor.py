"""Runs the long tasks of a daemon: an unforeseen exception becomes an event, and the task restarts.

asyncio keeps the exception of a task until the task is awaited, and prints that of a timer or a
callback as a traceback on stderr, where it is easily missed. Here each one becomes a
`DaemonDefect`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from egress_proxy.events import DaemonDefect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from egress_proxy.events import Observer

# A task that failed starts again after a second, doubled each time up to a minute. After a run of
# more than a minute, the pause is a second again.
_RESTART_FIRST_S = 1.0
_RESTART_LAST_S = 60.0


class Supervisor:
    """Owns tasks by name; `down` names those that wait for their restart."""

    def __init__(self, loop: asyncio.AbstractEventLoop, observer: Observer) -> None:
        self._loop = loop
        self._observer = observer
        self._tasks: set[asyncio.Task[None]] = set()
        self._down: dict[asyncio.Task[None], str] = {}

    @property
    def down(self) -> tuple[str, ...]:
        return tuple(self._down.values())

    def spawn(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Await ``run()``, again after each exception; cancel the task to end it."""
        task = self._loop.create_task(self._supervise(name, run), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def handle_loop_exception(
        self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]
    ) -> None:
        """The event loop's exception handler: a timer, a callback or a forgotten task raised."""
        error = context.get("exception")
        if not isinstance(error, Exception):
            error = RuntimeError(context.get("message", "unknown error in the event loop"))
        self._observer.observe(DaemonDefect.of(error, "event loop"))

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of `spawn` runs in one
        delay_s = _RESTART_FIRST_S
        while True:
            started_at = self._loop.time()
            try:
                await run()
            except Exception as error:  # noqa: BLE001 - each becomes an event
                if self._loop.time() - started_at > _RESTART_LAST_S:
                    delay_s = _RESTART_FIRST_S
                self._observer.observe(DaemonDefect.of(error, name, delay_s))
            else:
                return
            self._down[task] = name
            try:
                await asyncio.sleep(delay_s)
            finally:
                del self._down[task]
            delay_s = min(2 * delay_s, _RESTART_LAST_S)
