"""Sessions to addresses that their name no longer has, and their end after a time.

Only for an admin who asks for it (EGRESS_DNS_PROXY_WITHDRAWN_TIMEOUT): by default no change of DNS
touches a session. A connection costs nothing here: sessions are looked through when a name has
changed and when a timeout is over, and what is remembered is what they still connect to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from egress_proxy.ip import Address
    from egress_proxy.relay.timer_wheel import Timer, Timers


class Session(Protocol):
    """A client's connection; `address` is the upstream's socket address, once there is one."""

    @property
    def host(self) -> Address | str: ...

    @property
    def address(self) -> Sequence[object] | None: ...

    def abort(self, reason: Reason) -> None: ...


class StaleSessions:
    """Ends sessions of `name` with a reset, `timeout_s` after their address was withdrawn.

    An address that comes back in time is as if it had never been away.
    """

    def __init__(
        self,
        name: str,
        sessions: Callable[[], Iterable[Session]],
        timeout_s: float,
        loop: Timers,
    ) -> None:
        self._name = name
        self._sessions = sessions
        self._timeout_s = timeout_s
        self._loop = loop
        self._current: frozenset[str] = frozenset()
        self._changed_at = 0.0
        self._since: dict[str, float] = {}
        self._timer: Timer | None = None

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """`addresses` are the name's from now on."""
        self._current = frozenset(map(str, addresses))
        self._changed_at = self._loop.time()
        self._look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self.stop()
        now = self._loop.time()
        withdrawn: dict[str, list[Session]] = {}
        for session in self._sessions():
            if session.host == self._name and session.address is not None:
                address = str(session.address[0])
                if address not in self._current:
                    withdrawn.setdefault(address, []).append(session)
        # One that is seen for the first time was still connecting when the last change came.
        self._since = {address: self._since.get(address, self._changed_at) for address in withdrawn}
        for address, since in list(self._since.items()):
            if now >= since + self._timeout_s:
                del self._since[address]
                for session in withdrawn[address]:
                    session.abort(Reason.WITHDRAWN)
        # After each change once more, for those that are connecting now.
        due = min(self._since.values(), default=self._changed_at) + self._timeout_s
        if due > now:
            self._timer = self._loop.call_at(due, self._look)
