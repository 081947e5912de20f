"""What is read of the pod, and what is said when it can't be."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from egress_proxy.errors import PlatformError
from egress_proxy.pod import facts
from egress_proxy.pod.addresses import InterfaceState, read_reserved_addresses


def entry(family: int, address: str, netmask: str | None) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=address, netmask=netmask)


def test_the_network_and_broadcast_addresses_of_the_pods_networks() -> None:
    def ask() -> dict[str, list[SimpleNamespace]]:
        return {
            "eth0": [
                entry(socket.AF_INET, "192.0.2.10", "255.255.255.0"),
                entry(socket.AF_INET6, "2001:db8::10", "ffff:ffff:ffff:ffff::"),
                entry(socket.AF_INET6, "fe80::10%eth0", "ffff:ffff:ffff:ffff::"),
                entry(socket.AF_PACKET, "02:00:00:00:00:01", None),
            ],
            "net1": [
                entry(socket.AF_INET, "198.51.100.99", "255.255.255.255"),
                entry(socket.AF_INET, "203.0.113.2", "255.255.255.254"),
            ],
        }

    assert read_reserved_addresses(ask) == frozenset(
        map(ip_address, ("192.0.2.0", "192.0.2.255", "2001:db8::", "fe80::"))
    )


def test_a_hidden_proc_is_one_line() -> None:
    def read() -> InterfaceState:
        raise FileNotFoundError(2, "No such file or directory", "/proc/net/dev")

    with pytest.raises(PlatformError) as caught:
        facts.read_pod(read)
    assert str(caught.value) == (
        "can't read the pod's interfaces: /proc/net/dev: No such file or directory; "
        "mount /proc in the container"
    )
