"""The grammar of redirect mode: what it accepts, and every message it refuses with."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.redirects import Fallback, Redirect, RedirectTable, parse_redirects
from egress_proxy.errors import ConfigurationError, Problem

FALLBACK = "10.1.2.3"
# The table that the original's documentation has, and what its parser never took.
VALID: list[tuple[str, list[tuple[str, int, str, int]], str | None]] = [
    (FALLBACK, [], FALLBACK),
    ("80 tcp 10.4.5.6", [("tcp", 80, "10.4.5.6", 80)], None),
    ("8080 tcp 10.7.8.9 80", [("tcp", 8080, "10.7.8.9", 80)], None),
    (
        f"80 tcp 10.4.5.6\n8080 tcp 10.7.8.9 80\n{FALLBACK}\n",
        [("tcp", 80, "10.4.5.6", 80), ("tcp", 8080, "10.7.8.9", 80)],
        FALLBACK,
    ),
    ("# the shop\n\n80 tcp 10.4.5.6\n  # and\n\n", [("tcp", 80, "10.4.5.6", 80)], None),
    ("80\ttcp\t10.4.5.6\t 81", [("tcp", 80, "10.4.5.6", 81)], None),
    (f"80 tcp 10.4.5.6\r\n{FALLBACK}\r\n", [("tcp", 80, "10.4.5.6", 80)], FALLBACK),
    ("80 TCP 10.4.5.6", [("tcp", 80, "10.4.5.6", 80)], None),
    ("80 tcp 10.4.5.6 # web\n10.1.2.3 # rest", [("tcp", 80, "10.4.5.6", 80)], FALLBACK),
    (
        "53 tcp 10.4.5.6\n53 udp 10.4.5.7\n53 sctp 10.4.5.8",
        [("tcp", 53, "10.4.5.6", 53), ("udp", 53, "10.4.5.7", 53), ("sctp", 53, "10.4.5.8", 53)],
        None,
    ),
    ("80 tcp 2001:DB8::1 81\n2001:db8::2", [("tcp", 80, "2001:db8::1", 81)], "2001:db8::2"),
]
FIELDS = (
    "a rule has three or four fields, and a fallback is an address alone; "
    "write <port> tcp|udp|sctp <address> [<remote port>]"
)
NO_ADDRESS = (
    "not an address, and redirect mode takes no names; "
    "write for example 192.0.2.10, or use the mode dns-proxy"
)
NO_RULE = (
    "D: no rule; write one per line: <port> tcp|udp|sctp <address> [<remote port>]; "
    "or an address alone, for everything"
)
INVALID: list[tuple[str, list[str]]] = [
    *(
        (
            text,
            [NO_RULE],
        )
        for text in ("", "\n \t\r\n", "# 80 tcp 10.4.5.6")
    ),
    ("web.example.com", [f"D line 1: 'web.example.com': {NO_ADDRESS}"]),
    ("80 tcp web", [f"D line 1: 'web': {NO_ADDRESS}"]),
    ("80 tcp 10.4.5", [f"D line 1: '10.4.5': {NO_ADDRESS}"]),
    ("999.1.2.3", [f"D line 1: '999.1.2.3': {NO_ADDRESS}"]),
    ("010.1.2.3", [f"D line 1: '010.1.2.3': {NO_ADDRESS}"]),
    ("80 10.4.5.6", [f"D line 1: '80 10.4.5.6': {FIELDS}"]),
    ("80 tcp 10.4.5.6 81 82", [f"D line 1: '80 tcp 10.4.5.6 81 82': {FIELDS}"]),
    ("80 icmp 10.4.5.6", ["D line 1: 'icmp': not a protocol; write tcp, udp or sctp"]),
    (
        "65536 tcp 10.4.5.6",
        ["D line 1: '65536': the local port is out of range; use 1 to 65535"],
    ),
    (
        "80 tcp 10.4.5.6 99999",
        ["D line 1: '99999': the remote port is out of range; use 1 to 65535"],
    ),
    (
        "80 tcp 10.4.5.6\n80 tcp 10.4.5.7",
        [
            (
                "D line 2: '80': this tcp port is used on line 1 already; "
                "give each line a port of its own"
            )
        ],
    ),
    (
        "80 tcp 127.0.0.1",
        [
            (
                "D line 1: '127.0.0.1': a loopback address is never connected to; "
                "write the remote host's own address"
            )
        ],
    ),
    (
        f"{FALLBACK}\n80 tcp 10.4.5.6\n10.1.2.4",
        [
            f"D line {line}: '{text}': a line after the fallback on line 1; "
            "move the fallback to the end"
            for line, text in ((2, "80 tcp 10.4.5.6"), (3, "10.1.2.4"))
        ],
    ),
    (
        "80 icmp 10.4.5.6\n\n0 tcp 10.4.5.6\nweb",
        [
            "D line 1: 'icmp': not a protocol; write tcp, udp or sctp",
            "D line 3: '0': the local port is out of range; use 1 to 65535",
            f"D line 4: 'web': {NO_ADDRESS}",
        ],
    ),
]


@pytest.mark.parametrize(("text", "redirects", "fallback"), VALID)
def test_accepted(
    text: str, redirects: list[tuple[str, int, str, int]], fallback: str | None
) -> None:
    table = parse_redirects(text, variable="D")
    assert [
        (entry.protocol, entry.port, str(entry.address), entry.remote_port)
        for entry in table.redirects
    ] == redirects
    assert (None if table.fallback is None else str(table.fallback.address)) == fallback


@pytest.mark.parametrize(("text", "messages"), INVALID)
def test_refused(text: str, messages: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_redirects(text, variable="D")
    assert str(caught.value).splitlines() == messages


def test_lines_are_counted_from_one() -> None:
    table = parse_redirects("# first\n80 tcp 10.4.5.6\n\n10.1.2.3", variable="D")
    assert table == RedirectTable(
        (Redirect("tcp", 80, ip_address("10.4.5.6"), 80, 2),),
        Fallback(ip_address(FALLBACK), 4),
    )
    assert [entry.line for entry in table.entries] == [2, 4]


@given(st.text(alphabet="180 \t\n\r#.:tcpudp", max_size=60))
def test_any_text_is_a_table_or_a_problem_with_its_line(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        assert parse_redirects(text, variable="D").entries
    except ConfigurationError as error:
        problems = error.problems
    assert all(problem.line or "no rule" in problem.reason for problem in problems)
