"""What resolv.conf says: its valid lines, and those that are skipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.dns.resolv_conf import ResolvConf, parse_resolv_conf


@pytest.mark.parametrize(
    ("text", "conf"),
    [
        ("", ResolvConf(name_servers=("127.0.0.1:53",))),
        ("nameserver\nnameserver nobody\nsearch\noptions", ResolvConf()),
        (
            (
                "nameserver 192.0.2.53\n nameserver\t2001:db8::53 # the second\n"
                "nameserver fe80::1%eth0\nnameserver 192.0.2.53\n"
            ),
            ResolvConf(name_servers=("192.0.2.53:53", "[2001:db8::53]:53", "[fe80::1%eth0]:53")),
        ),
        ("# nameserver 192.0.2.53\n;nameserver 192.0.2.53\r\n", ResolvConf()),
        (
            "search a.example b.example.\ndomain c.example\nsearch d.example . .e.example\n",
            ResolvConf(search=("d.example", "e.example")),
        ),
        (
            "options ndots:5 timeout:1\noptions attempts:2 rotate edns0",
            ResolvConf(timeout_s=1, attempts=2, rotate=True),
        ),
        ("options timeout:1000 attempts:1000", ResolvConf(timeout_s=30, attempts=5)),
        ("options timeout:0 attempts:0 timeout: attempts:x", ResolvConf()),
    ],
)
def test_values_in_a_file(text: str, conf: ResolvConf) -> None:
    assert parse_resolv_conf(text) == conf


@given(text=st.text())
def test_no_text_fails(text: str) -> None:
    assert parse_resolv_conf(text).name_servers
