"""How the text of one variable becomes a value, and what is said when it can't."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from egress_proxy.config import variables
from egress_proxy.config.variables import Reader, RefusedError, Variable
from egress_proxy.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

VALID: list[tuple[Callable[[str], object], str, object]] = [
    *((variables.parse_flag, text, False) for text in ("", "0", "false", "No", "OFF")),
    *((variables.parse_flag, text, True) for text in ("1", "true", "yes", "on", "2", "debug")),
    (variables.parse_duration, "0", 0.0),
    (variables.parse_duration, "90", 90.0),
    (variables.parse_duration, "500ms", 0.5),
    (variables.parse_duration, "10s", 10.0),
    (variables.parse_duration, "1.5m", 90.0),
    (variables.parse_duration, "1h", 3600.0),
    (variables.parse_duration, "168h", 604800.0),
    (variables.parse_positive_duration, "1ms", 0.001),
    (variables.parse_name, "macvlan0", "macvlan0"),
    (variables.parse_name, "x" * 15, "x" * 15),
    (variables.parse_name, "büro", "büro"),
    (variables.parse_address, "192.0.2.1", ip_address("192.0.2.1")),
    (variables.parse_address, "2001:DB8::0:1", ip_address("2001:db8::1")),
    (variables.parse_addresses, "192.0.2.1", (ip_address("192.0.2.1"),)),
    (
        variables.parse_addresses,
        "192.0.2.1 , 2001:db8::1,",
        (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
    ),
    (variables.parse_networks, "", ()),
    (
        variables.parse_networks,
        "10.128.0.0/14, 192.0.2.7,2001:db8::/32",
        (ip_network("10.128.0.0/14"), ip_network("192.0.2.7/32"), ip_network("2001:db8::/32")),
    ),
    *((variables.parse_log_format, text, text) for text in ("", "json", "console")),
]

_DURATION_CURE = "write for example 500ms, 10s, 1m, 1h or plain seconds"
_NAME_CURE = "write for example net1"
_ADDRESS_CURE = "write for example 192.0.2.10"
_NETWORK_CURE = "write for example 192.0.2.0/24"

INVALID: list[tuple[Callable[[str], object], str, RefusedError]] = [
    *(
        (variables.parse_duration, text, RefusedError("not a duration", _DURATION_CURE))
        for text in ("", "s", "10 s", "-1", "+1", "1e3", ".5s", "5.", "1y", "1m 1s")
    ),
    *(
        (variables.parse_duration, text, RefusedError("not a duration", f"write {better}"))
        for text, better in (
            ("10S", "10s"),
            ("1h30m", "90m"),
            ("1m30s", "90s"),
            ("1d", "24h"),
            ("2days12hours", "60h"),
            ("90min", "90m"),
            ("inf", "0 where that means never"),
        )
    ),
    *(
        # Arabic-Indic digits are digits for \d and float() alike.
        (variables.parse_duration, text, RefusedError("not a duration", _DURATION_CURE))
        for text in ("\u0661\u0660s", "10s\n")
    ),
    *(
        (
            variables.parse_duration,
            text,
            RefusedError("longer than a week", "write at most 168h, or 0 where that means never"),
        )
        for text in ("169h", "604800.001", "9" * 1000)
    ),
    *(
        (
            variables.parse_positive_duration,
            text,
            RefusedError("zero is not allowed here", "write for example 10s"),
        )
        for text in ("0", "0.0ms")
    ),
    *(
        (
            variables.parse_name,
            text,
            RefusedError("not an interface name: 1 to 15 octets", _NAME_CURE),
        )
        for text in ("", "x" * 16, "ü" * 8)
    ),
    *(
        (
            variables.parse_name,
            text,
            RefusedError("not an interface name: no blank, '/' or ':'", _NAME_CURE),
        )
        for text in (".", "..", "a b", "a\tb", "a/b", "eth0:1")
    ),
    *(
        (variables.parse_address, text, RefusedError("not an IP address", _ADDRESS_CURE, text))
        for text in ("", "auto", "192.0.2.256", "192.0.02.1", "example.com")
    ),
    (
        variables.parse_address,
        "192.0.2.1/24",
        RefusedError("a length after the address", "write 192.0.2.1", "192.0.2.1/24"),
    ),
    (
        variables.parse_address,
        "[2001:DB8::1]",
        RefusedError("brackets around the address", "write 2001:db8::1", "[2001:DB8::1]"),
    ),
    (
        variables.parse_address,
        "'192.0.2.1'",
        RefusedError("quotation marks", "remove them", "'192.0.2.1'"),
    ),
    (
        variables.parse_address,
        "fe80::1%eth0",
        RefusedError("an address with a scope", "remove the % and what follows", "fe80::1%eth0"),
    ),
    (
        variables.parse_addresses,
        "192.0.2.1, router",
        RefusedError("not an IP address", _ADDRESS_CURE, "router"),
    ),
    *(
        (parse, text, RefusedError("an empty entry between commas", "remove the extra comma"))
        for parse in (variables.parse_addresses, variables.parse_networks)
        for text in (",", "192.0.2.1,,192.0.2.2", ",192.0.2.1")
    ),
    *(
        (variables.parse_networks, text, RefusedError("not a network", _NETWORK_CURE, text))
        for text in ("10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "cluster", "2001:db8::/129")
    ),
    (
        variables.parse_networks,
        "192.0.2.0/24, 10.1.2.3/8",
        RefusedError("a network with host bits set", "write 10.0.0.0/8", "10.1.2.3/8"),
    ),
    *(
        (
            variables.parse_log_format,
            text,
            RefusedError("not a log format", "write json or console"),
        )
        for text in ("JSON", "xml")
    ),
]


@pytest.mark.parametrize(("parse", "text", "value"), VALID)
def test_accepted_text(parse: Callable[[str], object], text: str, value: object) -> None:
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(("parse", "text", "refusal"), INVALID)
def test_refused_text(parse: Callable[[str], object], text: str, refusal: RefusedError) -> None:
    with pytest.raises(RefusedError) as caught:
        parse(text)
    assert vars(caught.value) == vars(refusal)


@example(text="\ud800")
@given(text=st.text(st.characters(exclude_categories=())))
@pytest.mark.parametrize(
    "parse",
    [
        variables.parse_flag,
        variables.parse_positive_duration,
        variables.parse_name,
        variables.parse_addresses,
        variables.parse_networks,
        variables.parse_log_format,
    ],
)
def test_a_parser_refuses_and_never_fails(parse: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(RefusedError):
        parse(text)


WAIT = Variable("WAIT", "10s", variables.parse_duration, "how long to wait")
PEERS = Variable("PEERS", None, variables.parse_addresses, "whom to ask")


@pytest.mark.parametrize(
    ("environ", "text"),
    [({}, "10s"), ({"WAIT": ""}, "10s"), ({"WAIT": " \n"}, "10s"), ({"WAIT": " 5s\n"}, "5s")],
)
def test_a_blank_variable_is_an_unset_one(environ: dict[str, str], text: str) -> None:
    assert Reader(environ).text(WAIT) == text


def test_a_variable_without_a_default_reads_as_empty() -> None:
    assert Reader({}).text(PEERS) == ""


def _refuse_twice(_text: str) -> Any:  # noqa: ANN401 - never returns
    raise ConfigurationError(Problem(reason="first"), Problem(reason="second"))


def test_the_reader_continues_after_a_problem_and_reports_all() -> None:
    reader = Reader({"WAIT": "soon", "PEERS": "192.0.2.1,nobody"})
    reader.raise_problems()
    for variable in (WAIT, PEERS, Variable("BOTH", "", _refuse_twice, "")):
        reader.read(variable)
    with pytest.raises(ConfigurationError) as caught:
        reader.raise_problems()
    assert str(caught.value).splitlines() == [
        f"WAIT: 'soon': not a duration; {_DURATION_CURE}",
        f"PEERS: 'nobody': not an IP address; {_ADDRESS_CURE}",
        "first",
        "second",
    ]


KNOWN = (
    "EGRESS_DNS_PROXY_DEBUG",
    "EGRESS_DNS_PROXY_DESTINATION",
    "EGRESS_DNS_PROXY_LISTEN",
    "EGRESS_DNS_PROXY_SOURCE",
    "EGRESS_GATEWAY",
    "EGRESS_GATEWAY_REQUIRED",
    "EGRESS_INTERFACE",
    "EGRESS_ROUTER_DEBUG",
    "EGRESS_SOURCE",
)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("EGRESS_DNS_PROXY_DESTINATIONS", "did you mean EGRESS_DNS_PROXY_DESTINATION?"),
        ("EGRESS_DNS_PROXY_DEST", "did you mean EGRESS_DNS_PROXY_DESTINATION?"),
        ("EGRESS_DNS_PROXY_LISTENER", "did you mean EGRESS_DNS_PROXY_LISTEN?"),
        ("EGRESS_DNS_PROXY_debug", "did you mean EGRESS_DNS_PROXY_DEBUG?"),
        ("EGRESS_DNS_PROXY_ZZZ", "see --help for known ones"),
        ("EGRESS_INTERFCE", "did you mean EGRESS_INTERFACE?"),
        ("EGRESS_GATEWAY_REQUIERD", "did you mean EGRESS_GATEWAY_REQUIRED?"),
        ("EGRESS_SOURCES", "did you mean EGRESS_SOURCE?"),
        ("EGRESS_DNSPROXY_DEBUG", "did you mean EGRESS_DNS_PROXY_DEBUG?"),
        ("EGRESS_DNS_PROXY_INTERFACE", "did you mean EGRESS_INTERFACE?"),
        ("EGRESS_LISTEN", "did you mean EGRESS_DNS_PROXY_LISTEN?"),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest_known_one(name: str, hint: str) -> None:
    [warning] = variables.unknown_names({name: "1"}, KNOWN)
    assert str(warning) == f"{name}: unknown variable, ignored; {hint}"


def test_warnings_come_in_order_and_only_for_our_names() -> None:
    names = ("EGRESS_DNS_PROXY_Z", "EGRESS_DNS_PROXY_A", "EGRESS_SORCE", "PATH", *KNOWN)
    told = variables.unknown_names(dict.fromkeys(names, "1"), KNOWN)
    assert [warning.variable for warning in told] == [
        "EGRESS_DNS_PROXY_A",
        "EGRESS_DNS_PROXY_Z",
        "EGRESS_SORCE",
    ]


def test_the_variables_of_kubernetes_for_a_service_are_no_mistakes() -> None:
    names = (
        "EGRESS_ROUTER_SERVICE_HOST",
        "EGRESS_ROUTER_SERVICE_PORT",
        "EGRESS_ROUTER_SERVICE_PORT_SHOP",
        "EGRESS_ROUTER_PORT",
        "EGRESS_ROUTER_PORT_80_TCP",
        "EGRESS_ROUTER_PORT_80_TCP_PROTO",
        "EGRESS_ROUTER_PORT_80_TCP_ADDR",
        "EGRESS_DNS_PROXY_SERVICE_PORT",
    )
    assert variables.unknown_names(dict.fromkeys(names, "1"), KNOWN) == ()
