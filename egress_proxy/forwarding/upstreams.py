"""The addresses of one destination: their rotation, and which of them failed recently.

Failures are detected passively, by clients' own connection attempts; active checks are optional
(`health_checks`). An address that refuses, stays silent, or has not answered when one that was
tried later answers, moves to the end of the rotation. When its penalty is over, one client tries it
first, and the other clients wait for the result.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from egress_proxy.events import Observer, UpstreamFailed, UpstreamRecovered
from egress_proxy.ip import family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from egress_proxy.ip import Address

# How long a refused or unreachable address stays at the end of the rotation.
PENALTY_S = 10.0


class Endpoint:
    """One remote address and port.

    It is last in the rotation until `failed_until` (monotonic seconds), which is 0 after a
    successful attempt.
    """

    __slots__ = ("_upstreams", "address", "failed_until", "family", "sockaddr")

    def __init__(self, address: Address, port: int, upstreams: Upstreams) -> None:
        self.address = address
        self.family = family_of(address)
        self.sockaddr = (str(address), port)
        self.failed_until = 0.0
        self._upstreams = upstreams

    def mark_failed(self, now: float, error: str, penalty_s: float = PENALTY_S) -> None:
        """Move to the end of the rotation for `penalty_s`; reported unless it is there already."""
        healthy_before = not self.failed_until
        self.failed_until = now + penalty_s
        if healthy_before:
            self._upstreams.health_changed()
            self._upstreams.observer.observe(
                UpstreamFailed(
                    destination=self._upstreams.destination,
                    address=str(self.address),
                    error=error,
                    retry_s=penalty_s,
                )
            )
        self._upstreams.on_health_change()

    def mark_healthy(self) -> None:
        if self.failed_until:
            self.failed_until = 0.0
            self._upstreams.health_changed()
            self._upstreams.on_health_change()
            self._upstreams.observer.observe(
                UpstreamRecovered(
                    destination=self._upstreams.destination, address=str(self.address)
                )
            )

    def begin_trial(self, now: float) -> None:
        """When the penalty is over, let one client try this endpoint, and the others wait."""
        if self.failed_until:
            self.failed_until = now + PENALTY_S


class Upstreams:
    """The endpoints of one destination, handed out in rotation.

    `destination` is its name in records, `port` the remote one. `on_health_change` is called when
    an endpoint has failed, also again, or has recovered.
    """

    def __init__(self, destination: str, port: int, observer: Observer) -> None:
        self.destination = destination
        self.observer = observer
        self.endpoints: list[Endpoint] = []
        # Whether there are addresses, and none has answered since it failed.
        self.all_failed = False
        self.on_health_change: Callable[[], None] = _do_nothing
        self._port = port
        self._turn = 0

    def health(self) -> list[tuple[str, bool]]:
        """Each address, and whether it is healthy: it has not failed since it last answered."""
        return [(entry.sockaddr[0], not entry.failed_until) for entry in self.endpoints]

    def health_changed(self) -> None:
        """An endpoint failed or recovered. Readiness is asked more often than this happens."""
        self.all_failed = bool(self.endpoints) and all(
            entry.failed_until for entry in self.endpoints
        )

    def replace(self, addresses: Iterable[Address]) -> None:
        """Use `addresses` from now on; the state of those that stay is kept.

        The families alternate (RFC 8305 section 4), so that a broken family costs one attempt.
        """
        known = {endpoint.address: endpoint for endpoint in self.endpoints}
        by_family: dict[int, list[Endpoint]] = {}
        for address in addresses:
            endpoint = known.get(address) or Endpoint(address, self._port, self)
            by_family.setdefault(endpoint.family, []).append(endpoint)
        rows = zip_longest(*by_family.values())
        self.endpoints = [endpoint for endpoint in chain.from_iterable(rows) if endpoint]
        self.health_changed()

    def in_order(self, now: float) -> Sequence[Endpoint]:
        """All endpoints for one more client: the next in turn first, those that failed last."""
        endpoints = self.endpoints
        if len(endpoints) < 2:  # noqa: PLR2004 - there is no order of one
            return endpoints
        healthy = [endpoint for endpoint in endpoints if endpoint.failed_until <= now]
        # The rotation leaves failed endpoints out: otherwise the one after each of them would get
        # its turns too.
        ring = healthy or endpoints
        self._turn = (self._turn + 1) % len(ring)
        order = ring[self._turn :] + ring[: self._turn]
        if len(order) < len(endpoints):
            order += [endpoint for endpoint in endpoints if endpoint.failed_until > now]
        order[0].begin_trial(now)
        return order


def _do_nothing() -> None:
    """Clients ask for the order of the endpoints when they come."""
