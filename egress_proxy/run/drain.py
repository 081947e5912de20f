"""The end of the daemon, from SIGTERM on.

Accept clients a little longer while the cluster withdraws the endpoints, or with high availability
while `hold` moves them to another pod; close the listeners, let sessions finish, reset those that
are left.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from egress_proxy.events import DaemonDraining, DaemonStopped, Reason

if TYPE_CHECKING:
    from egress_proxy.events import Observer
    from egress_proxy.forwarding.plane import Plane
    from egress_proxy.run.destination_table import DestinationTable
    from egress_proxy.run.snapshot import Snapshot

# After SIGTERM clients still come until every node knows that the pod is terminating.
_WITHDRAWAL_S = 2.0


class Shutdown:
    """What the signals have asked for: `requested` to drain, `forced` to end at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def request(self) -> None:
        """Drain; called a second time, end at once."""
        if self.requested.is_set():
            self.forced.set()
        self.requested.set()


class SourcePresence:
    """Whether this pod has the source address, with high availability: to be waited for.

    Neither event is set before `set` was called.
    """

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.gone = asyncio.Event()

    def set(self, *, there: bool) -> None:
        """It is there from now on, or gone."""
        now, before = (self.there, self.gone) if there else (self.gone, self.there)
        before.clear()
        now.set()


class Drain:
    """Ends what `plane` and `table` serve; `snapshot` says so to readiness probes."""

    def __init__(
        self, plane: Plane, table: DestinationTable, snapshot: Snapshot, observer: Observer
    ) -> None:
        self._plane = plane
        self._table = table
        self._snapshot = snapshot
        self._observer = observer

    async def run(
        self, shutdown: Shutdown, timeout_s: float, source: SourcePresence | None
    ) -> None:
        """Drain within `timeout_s`; `source` is None without high availability.

        Destinations must not be read again from now on: it would reopen ports.
        """
        self._snapshot.draining = source is None
        await self._plane.count()
        self._observer.observe(
            DaemonDraining(connections=self._plane.shared.admission.active, timeout_s=timeout_s)
        )
        forced = asyncio.create_task(shutdown.forced.wait(), name="wait for a second signal")
        # 1. Serve clients that are still sent here.
        if source is None:
            await asyncio.wait({forced}, timeout=min(_WITHDRAWAL_S, timeout_s))
        elif await _handed_over(source, forced, timeout_s):
            timeout_s = 0.0
        self._snapshot.draining = True
        # 2. Accept no more clients.
        self._table.close()
        # 3. Let sessions finish.
        emptied = asyncio.create_task(self._plane.emptied(), name="wait for sessions")
        await asyncio.wait(
            {forced, emptied},
            timeout=max(timeout_s - _WITHDRAWAL_S, 0),
            return_when=asyncio.FIRST_COMPLETED,
        )
        forced.cancel()
        emptied.cancel()
        await asyncio.gather(forced, emptied, return_exceptions=True)
        # 4. Reset the others.
        left = await self._plane.abort_all(Reason.DRAINED)
        self._observer.observe(DaemonStopped(reset=left))


async def _handed_over(
    source: SourcePresence, forced: asyncio.Task[bool], timeout_s: float
) -> bool:
    """Wait until `hold` has moved the clients to another pod.

    False: this pod is a standby, also after the time that a takeover takes. Clients may wait for
    one that is under way, and `hold` finishes it first.
    """
    if not source.there.is_set():
        await _first_of(forced, source.there, min(_WITHDRAWAL_S, timeout_s))
    if not source.there.is_set():
        return False
    await _first_of(forced, source.gone, timeout_s)
    return True


async def _first_of(forced: asyncio.Task[bool], event: asyncio.Event, timeout_s: float) -> None:
    """Wait for `event`, for the second signal, or for `timeout_s`."""
    expected = asyncio.create_task(event.wait(), name="wait for the source address")
    await asyncio.wait({forced, expected}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    expected.cancel()
