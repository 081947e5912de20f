"""When the address is not taken; `tests/netns` has the kernel's part."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from egress_proxy.config.sources import Source
from egress_proxy.hold.address import ReservedAddresses, refused

SOURCE = Source(ip_address("203.0.113.99"), 25, ip_address("203.0.113.1"))


def test_8_nothing_is_done_after_the_deadline() -> None:
    # An interface that there is none of: a request to the kernel would raise.
    address = ReservedAddresses("nowhere", [SOURCE], 2, lambda: 10.0)
    assert not address.keep(9.99)


def test_an_interface_that_is_gone_has_no_address_to_drop() -> None:
    ReservedAddresses("nowhere", [SOURCE], 2, lambda: 10.0).drop()


def test_a_refusal_says_what_to_do() -> None:
    assert str(refused(PermissionError(errno.EPERM, "no"), SOURCE)) == (
        "EGRESS_SOURCE: '203.0.113.99/25': the kernel refuses the address or its route: Operation "
        "not permitted; add NET_ADMIN to securityContext.capabilities of egress-hold, and "
        "runAsUser: 0"
    )
