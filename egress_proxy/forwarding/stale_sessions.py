"""Ends sessions that lead where no new session would lead, after a grace period.

A session becomes stale when DNS withdraws its address from its name, or when a reload removes or
changes its destination. By default no stale session is ended; the administrator sets the grace
period of each kind (EGRESS_DNS_PROXY_WITHDRAWN_TIMEOUT, EGRESS_DNS_PROXY_REMOVED_TIMEOUT).

Sessions are checked only when something has changed or a grace period is over, so that this costs a
connection nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from egress_proxy.ip import Address
    from egress_proxy.relay.timer_wheel import Timer, Timers


class Session(Protocol):
    """A client's connection. `address` is the upstream's socket address, once there is one;
    `origin` identifies the destination that it came in for.
    """

    @property
    def origin(self) -> Hashable: ...

    @property
    def host(self) -> Address | str: ...

    @property
    def address(self) -> Sequence[object] | None: ...

    def abort(self, reason: Reason) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GracePeriods:
    """In seconds; 0 never ends a session. `connect_s` is how long a session may be connecting."""

    withdrawn_s: float
    removed_s: float
    connect_s: float


class StaleSessions:
    """Ends the stale ones of all sessions, each once its grace period is over.

    `look_through` calls its argument with all sessions, at once or a little later. When an address
    comes back in time, its sessions are no longer stale.
    """

    def __init__(
        self,
        look_through: Callable[[Callable[[Iterable[Session]], None]], None],
        periods: GracePeriods,
        loop: Timers,
    ) -> None:
        self._look_through = look_through
        self._periods = periods
        self._loop = loop
        # The addresses of each name, and when they last changed.
        self._names: dict[str, tuple[frozenset[str], float]] = {}
        # Since when each withdrawn (name, address), and each removed origin, is stale.
        self._withdrawn: dict[tuple[str, str], float] = {}
        self._removed: dict[Hashable, float] = {}
        self._timer: Timer | None = None

    def set_addresses(self, name: str, addresses: Iterable[Address]) -> None:
        """`addresses` are the name's from now on."""
        if self._periods.withdrawn_s:
            self._names[name] = (frozenset(map(str, addresses)), self._loop.time())
            self._look()

    def forget_name(self, name: str) -> None:
        """No destination has `name` any more: its sessions end because of their removal."""
        self._names.pop(name, None)

    def remove(self, origin: Hashable) -> None:
        """A reload has removed or changed the destination of `origin`."""
        if self._periods.removed_s:
            self._removed[origin] = self._loop.time()
            self._look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self.stop()
        self._look_through(self._end_stale)

    def _end_stale(self, sessions: Iterable[Session]) -> None:
        """End the sessions that are due, and schedule the next check."""
        self.stop()
        now = self._loop.time()
        withdrawn: dict[tuple[str, str], float] = {}
        for session in sessions:
            removed_at = self._removed.get(session.origin)
            if removed_at is not None:
                if now >= removed_at + self._periods.removed_s:
                    session.abort(Reason.DRAINED)
                continue
            key = self._withdrawn_address(session)
            if key is not None:
                # One that is seen for the first time was still connecting at the last change.
                since = self._withdrawn.get(key, self._names[key[0]][1])
                withdrawn[key] = since
                if now >= since + self._periods.withdrawn_s:
                    session.abort(Reason.WITHDRAWN)
        self._withdrawn = withdrawn
        self._schedule_next_look(now)

    def _withdrawn_address(self, session: Session) -> tuple[str, str] | None:
        """The session's name and address, if the name no longer has the address."""
        if session.address is None or not isinstance(session.host, str):
            return None
        address = str(session.address[0])
        known = self._names.get(session.host)
        return None if known is None or address in known[0] else (session.host, address)

    def _schedule_next_look(self, now: float) -> None:
        periods = self._periods
        due = [since + periods.withdrawn_s for since in self._withdrawn.values()]
        # Once more after each change, for sessions that are connecting now.
        last_s = max(periods.withdrawn_s, periods.connect_s)
        due += [changed_at + last_s for _, changed_at in self._names.values()]
        # Removed destinations whose sessions have been ended are forgotten.
        self._removed = {
            origin: since
            for origin, since in self._removed.items()
            if since + periods.removed_s > now
        }
        due += [since + periods.removed_s for since in self._removed.values()]
        upcoming = [at for at in due if at > now]
        if upcoming:
            self._timer = self._loop.call_at(min(upcoming), self._look)
