"""resolv.conf and the process's own status, as init reads them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from egress_proxy.init.host_facts import (
    missing_capabilities,
    parse_missing,
    parse_name_servers,
    read_name_servers,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_name_servers() -> None:
    text = (
        "# nameserver 192.0.2.1\n"
        "search example.com\n"
        "nameserver 192.0.2.53\n"
        "nameserver\t2001:db8::53  # the other one\n"
        "nameserver\n"
        "nameserver fe80::1%eth0\n"
        "nameserver dns.example.com\n"
        "\n"
        "nameserver 192.0.2.53\n"
        "options ndots:5\n"
    )
    assert parse_name_servers(text) == (ip_address("192.0.2.53"), ip_address("2001:db8::53"))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    assert read_name_servers(path) == ()
    path.write_bytes(b"\xff\xfe\nnameserver 192.0.2.53\n")
    assert read_name_servers(path) == (ip_address("192.0.2.53"),)


@pytest.mark.parametrize(
    ("mask", "missing"),
    [
        ("0000000000003000", ()),
        ("0000000000001000", ("NET_RAW",)),
        ("0000000000002000", ("NET_ADMIN",)),
        ("0000000000000000", ("NET_ADMIN", "NET_RAW")),
        ("000001ffffffffff", ()),
    ],
)
def test_missing_capabilities(mask: str, missing: tuple[str, ...]) -> None:
    status = f"Name:\tegress-proxy\nCapPrm:\t0000000000000000\nCapEff:\t{mask}\nSeccomp:\t0\n"
    assert parse_missing(status) == missing


def test_the_process_has_a_status() -> None:
    assert set(missing_capabilities()) <= {"NET_ADMIN", "NET_RAW"}
