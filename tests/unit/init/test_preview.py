"""What check prints of init, for people and for machines."""

from __future__ import annotations

from egress_proxy.errors import Problem
from egress_proxy.init.preview import Preview
from tests.unit.init.iproute import settings, state

PREVIEW = Preview(
    settings=settings("203.0.113.99/25", "203.0.113.1"),
    state=state(
        """
        address 192.0.2.10/24 dev eth0
        192.0.2.0/24 dev eth0 src 192.0.2.10
        default via 192.0.2.1 dev eth0 mtu 1400
        """,
        name_servers="198.51.100.53",
    ),
    steps=("ip link set macvlan0 up",),
    problems=(Problem(reason="reported with those of run"),),
    warnings=(),
)


def test_for_people() -> None:
    assert str(PREVIEW).splitlines() == [
        "init: 203.0.113.99/25 on macvlan0, over 203.0.113.1",
        "interfaces:",
        "  lo: up",
        "  eth0: up",
        "  macvlan0: down",
        "addresses:",
        "  192.0.2.10/24 dev eth0",
        "routes:",
        "  192.0.2.0/24 dev eth0 src 192.0.2.10",
        "  default via 192.0.2.1 dev eth0 mtu 1400",
        "rules to the reply table:",
        "  none",
        "name servers:",
        "  198.51.100.53",
        "steps:",
        "  ip link set macvlan0 up",
    ]
