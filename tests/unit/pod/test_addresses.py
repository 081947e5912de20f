"""Which addresses of the pod are listened on, and which one remotes see."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from egress_proxy.errors import PlatformError
from egress_proxy.ip import family_of
from egress_proxy.pod.addresses import (
    ListenPoint,
    listen_points,
    pod_network_addresses,
    read_autoconfigured_addresses,
    read_interfaces,
    source_addresses,
)

if TYPE_CHECKING:
    from pathlib import Path

    from egress_proxy.ip import Address


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(map(ip_address, texts))


POD = {
    "macvlan0": addresses("fe80::99", "192.0.2.99", "192.0.2.98", "2001:db8::99", "2001:db8::98"),
    "lo": addresses("127.0.0.1", "::1"),
    "eth0": addresses("10.128.2.17", "fd01::17", "fe80::17"),
    "dummy0": (),
    "half0": addresses("fe80::5", "2001:db8::5"),
    "local0": addresses("fe80::6", "169.254.3.4"),
}


@pytest.mark.parametrize(
    ("present", "found"),
    [
        (POD, ("10.128.2.17", "fd01::17")),
        ({**POD, "eth0": ()}, ("2001:db8::5",)),
        ({"lo": POD["lo"], "macvlan0": POD["macvlan0"]}, ()),
        ({"lo": POD["lo"], "eth0": POD["eth0"]}, ()),
    ],
    ids=["eth0 first", "another interface", "no other interface", "no egress interface"],
)
def test_the_pods_address_on_the_clusters_network(
    present: dict[str, tuple[Address, ...]], found: tuple[str, ...]
) -> None:
    assert pod_network_addresses(present, "macvlan0") == addresses(*found)


@pytest.mark.parametrize(
    ("address", "family"), [("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6)]
)
def test_the_family_of_an_address(address: str, family: socket.AddressFamily) -> None:
    assert family_of(ip_address(address)) is family


def test_interfaces_are_read_with_all_their_addresses() -> None:
    def ask() -> dict[str, list[SimpleNamespace]]:
        def entry(family: int, address: str) -> SimpleNamespace:
            return SimpleNamespace(family=family, address=address)

        return {
            "eth0": [
                entry(socket.AF_INET, "10.128.2.17"),
                entry(socket.AF_INET6, "fe80::17%eth0"),
                entry(socket.AF_PACKET, "0a:58:0a:80:02:11"),
            ],
            "dummy0": [entry(socket.AF_PACKET, "aa:bb:cc:dd:ee:ff")],
        }

    assert read_interfaces(ask) == {"eth0": addresses("10.128.2.17", "fe80::17"), "dummy0": ()}


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        ("macvlan0", addresses("192.0.2.99", "2001:db8::99")),
        ("half0", addresses("2001:db8::5")),
    ],
)
def test_the_source_is_the_first_global_address_of_each_family(
    interface: str, expected: tuple[Address, ...]
) -> None:
    assert source_addresses(POD, interface, "SOURCE") == expected


_CURE = "check that init has run, or set SOURCE to an address, or to any for a trial"


@pytest.mark.parametrize(
    ("interface", "reason"),
    [
        (
            "net1",
            "no such interface (there are dummy0, eth0, half0, lo, local0, macvlan0)",
        ),
        ("dummy0", "the interface has no address to send from"),
        ("local0", "the interface has no address to send from"),
    ],
)
def test_a_pod_without_a_source(interface: str, reason: str) -> None:
    with pytest.raises(PlatformError) as caught:
        source_addresses(POD, interface, "SOURCE")
    assert str(caught.value) == f"EGRESS_INTERFACE: '{interface}': {reason}; {_CURE}"


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        (
            "macvlan0",
            addresses("10.128.2.17", "fd01::17", "2001:db8::5", "127.0.0.1", "::1"),
        ),
        (
            "eth0",
            addresses(
                "2001:db8::5",
                *("127.0.0.1", "::1"),
                *("192.0.2.99", "192.0.2.98", "2001:db8::99", "2001:db8::98"),
            ),
        ),
    ],
)
def test_every_address_but_the_egress_interfaces_is_listened_on(
    interface: str, expected: tuple[Address, ...]
) -> None:
    assert listen_points(POD, interface, by_device=False) == tuple(
        ListenPoint(address, "") for address in expected
    )


def test_an_address_is_listened_on_for_its_own_interface_and_for_the_pod_itself() -> None:
    (address,) = shared = addresses("10.128.2.17")
    assert listen_points({"eth0": shared}, "macvlan0", by_device=True) == (
        ListenPoint(address, "eth0"),
        ListenPoint(address, "lo"),
    )


def test_loopback_is_listened_on_once() -> None:
    (address,) = loopback = addresses("127.0.0.1")
    points = listen_points({"lo": loopback}, "macvlan0", by_device=True)
    assert points == (ListenPoint(address, "lo"),)


def test_an_address_that_two_interfaces_share_is_listened_on_once() -> None:
    (address,) = shared = addresses("10.128.2.17")
    pod = {"eth0": shared, "eth1": shared}
    assert listen_points(pod, "macvlan0", by_device=False) == (ListenPoint(address, ""),)


def test_an_address_that_the_egress_interface_shares_is_not_listened_on() -> None:
    pod = {"eth0": addresses("10.128.2.17", "192.0.2.99"), "macvlan0": addresses("192.0.2.99")}
    (address,) = addresses("10.128.2.17")
    assert listen_points(pod, "macvlan0", by_device=False) == (ListenPoint(address, ""),)


def test_an_autoconfigured_address_is_no_source(tmp_path: Path) -> None:
    """As a kernel writes them: one made from an advertisement, one that was configured."""
    table = tmp_path / "if_inet6"
    table.write_text(
        "20010db8000000000000000000000051 02 40 00 00 macvlan0\n"
        "20010db8000000000000000000000099 02 40 00 80 macvlan0\n"
    )
    passing = read_autoconfigured_addresses(table)
    assert passing == set(addresses("2001:db8::51"))
    pod = {"macvlan0": addresses("2001:db8::51", "2001:db8::99", "192.0.2.99")}
    assert source_addresses(pod, "macvlan0", "SOURCE", passing) == addresses(
        "2001:db8::99", "192.0.2.99"
    )


def test_without_ipv6_no_address_is_autoconfigured(tmp_path: Path) -> None:
    assert read_autoconfigured_addresses(tmp_path / "if_inet6") == frozenset()
