"""The health of a destination as a whole."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from egress_proxy.forwarding.upstreams import Upstreams

if TYPE_CHECKING:
    from egress_proxy.events import Event


class Log:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        self.events.append(event)


def test_a_destination_has_failed_when_all_its_addresses_have() -> None:
    upstreams = Upstreams("a.example:80", 80, Log())
    seen = [upstreams.all_failed]
    upstreams.replace([ip_address("192.0.2.1"), ip_address("192.0.2.2")])
    first, second = upstreams.endpoints
    seen.append(upstreams.all_failed)
    first.mark_failed(1.0, "Connection refused")
    seen.append(upstreams.all_failed)
    second.mark_failed(1.0, "Connection refused")
    seen.append(upstreams.all_failed)
    # One that answers is enough.
    second.mark_healthy()
    seen.append(upstreams.all_failed)
    assert seen == [False, False, False, True, False]
