"""One client's session that the kernel forwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from egress_proxy.events import Reason
from egress_proxy.nft.conntrack import TcpState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.forwarding.upstreams import Endpoint
    from egress_proxy.ip import Address
    from egress_proxy.nft.conntrack import End, Flow
    from egress_proxy.nft.marks import Marked


class Aborter(Protocol):
    """What ends sessions."""

    def abort(self, session: FlowSession, reason: Reason) -> None: ...


class FlowSession:
    """One client's flow. `began_at` and `touched` are monotonic seconds, None where not known."""

    __slots__ = ("_table", "began_at", "connected_at", "entry", "flow", "state", "touched")

    def __init__(self, table: Aborter, entry: Marked, flow: Flow, now: float | None) -> None:
        self._table = table
        self.entry = entry
        self.flow = flow
        self.began_at = now
        self.touched: float | None = None
        self.connected_at: float | None = None
        self.state = TcpState.NONE

    @property
    def origin(self) -> Origin:
        return self.entry.origin

    @property
    def host(self) -> Address | str:
        return self.origin.destination.host

    @property
    def address(self) -> Sequence[object]:
        return sockaddr(self.flow.upstream)

    @property
    def endpoint(self) -> Endpoint | None:
        """The upstream, if it is still one of the destination's."""
        return endpoint_of(self.origin, self.flow)

    @property
    def client_address(self) -> Sequence[object]:
        return sockaddr(self.flow.source)

    @property
    def accepted_at(self) -> float | None:
        return self.began_at

    @property
    def relayed(self) -> tuple[int, int]:
        return self.flow.sent or 0, self.flow.received or 0

    @property
    def closed(self) -> bool:
        """The list of flows has only open ones."""
        return False

    def lose_source(self) -> None:
        self.abort(Reason.SOURCE_LOST)

    def abort(self, reason: Reason) -> None:
        """Make the kernel forget the flow, soon: what follows is reset by the pod itself."""
        self._table.abort(self, reason)


def endpoint_of(origin: Origin, flow: Flow) -> Endpoint | None:
    """The upstream of `flow`, if it is one of the destination's."""
    address = flow.upstream.address
    return next((entry for entry in origin.upstreams.endpoints if entry.address == address), None)


def sockaddr(end: End) -> tuple[str, int]:
    """As the socket module would say it."""
    return str(end.address), end.port or 0
