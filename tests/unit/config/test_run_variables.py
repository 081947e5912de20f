"""The variables of run: every message that one refuses its text with."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from egress_proxy.config.run_variables import VARIABLES, AdminListen
from egress_proxy.config.variables import PREFIX as P
from egress_proxy.config.variables import Reader
from egress_proxy.errors import ConfigurationError

BY_NAME = {variable.name: variable for variable in VARIABLES}


def read(name: str, text: str) -> object:
    """The value of the variable `name` that holds `text`. Raises `ConfigurationError`."""
    reader = Reader({name: text})
    value: object = reader.read(BY_NAME[name])
    reader.raise_problems()
    return value


def test_help_can_list_each_variable_once() -> None:
    assert len(BY_NAME) == len(VARIABLES)


_DURATION = "not a duration; write for example 500ms, 10s, 1m, 1h or plain seconds"
_ADDRESS = "not an IP address; write for example 192.0.2.10"
_NAMESERVER_PORT = "not a port of a name server; write a number from 1 to 65535"
_MAXIMUM = "not a number above zero; write for example 10000, or leave it out"

INVALID: list[tuple[str, str, str]] = [
    (f"{P}LOG_FORMAT", "xml", "'xml': not a log format; write json or console"),
    (
        "EGRESS_INTERFACE",
        "a/b",
        "'a/b': not an interface name: no blank, '/' or ':'; write for example net1",
    ),
    (
        f"{P}SOURCE",
        "Any",
        "'Any': not an IP address; write auto, any, or for example 192.0.2.10",
    ),
    (
        f"{P}SOURCE",
        "192.0.2.99/24",
        "'192.0.2.99/24': a length after the address; write 192.0.2.99",
    ),
    (
        f"{P}SOURCE",
        "192.0.2.98,192.0.2.99",
        ("'192.0.2.98,192.0.2.99': two addresses of one family; write one IPv4, one IPv6, or both"),
    ),
    *(
        (f"{P}SOURCE", text, f"'{text}': not a source address; write the reserved address")
        for text in ("0.0.0.0", "::", "224.0.0.1", "ff02::1")
    ),
    (
        f"{P}LISTEN",
        "eth0",
        "'eth0': not an IP address; write auto, or for example 192.0.2.10",
    ),
    (
        f"{P}LISTEN",
        "192.0.2.1,192.0.2.1",
        "'192.0.2.1': the address occurs twice; write it once",
    ),
    *(
        (
            f"{P}LISTEN",
            text,
            f"'{every}': this means all addresses of its family; remove the others of that family",
        )
        for text, every in (("192.0.2.1,0.0.0.0", "0.0.0.0"), ("::,2001:db8::1", "::"))
    ),
    (
        f"{P}ALLOW_CLIENTS",
        "10.1.2.3/8",
        "'10.1.2.3/8': a network with host bits set; write 10.0.0.0/8",
    ),
    (
        f"{P}DENY",
        "10.1.2.3/8",
        "'10.1.2.3/8': a network with host bits set; write 10.0.0.0/8",
    ),
    (
        f"{P}HEALTH_INTERVAL",
        "500ms",
        "'500ms': the checks would come too often; write 1s or longer, or off",
    ),
    (f"{P}CONNECT_TIMEOUT", "0", "'0': zero is not allowed here; write for example 10s"),
    *(
        (f"{P}{name}_TIMEOUT", "soon", f"'soon': {_DURATION}")
        for name in ("CONNECT", "IDLE", "HALF_CLOSE", "DRAIN", "WITHDRAWN")
    ),
    *(
        (f"{P}MAX_CONNECTIONS", text, f"'{text}': {_MAXIMUM}")
        for text in ("0", "-1", "1e3", "many", "1000000000", "\u0661")
    ),
    (
        f"{P}MAX_CONNECTIONS",
        "9" * 5000,
        "'" + "9" * 80 + f"'… (5000 characters): {_MAXIMUM}",
    ),
    *(
        (f"{P}NAMESERVERS", text, f"'{text}': {_ADDRESS}")
        for text in ("dns.example.com", "dns.example.com:53", ":53", "[]:53", "192.0.2.53#53")
    ),
    *(
        (f"{P}NAMESERVERS", text, f"'{text}': {_NAMESERVER_PORT}")
        for text in ("192.0.2.53:0", "192.0.2.53:65536", "192.0.2.53:dns", "[::1]:\u0661")
    ),
    *(
        (
            f"{P}NAMESERVERS",
            text,
            f"'{text}': not a name server; write for example [2001:db8::53]:53",
        )
        for text in ("[2001:db8::53", "[2001:db8::53]53")
    ),
    (
        f"{P}NAMESERVERS",
        "192.0.2.53,,192.0.2.54",
        "'192.0.2.53,,192.0.2.54': an empty entry between commas; remove the extra comma",
    ),
]


@pytest.mark.parametrize(("name", "text", "told"), INVALID)
def test_refused_values(name: str, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(name, text)
    assert str(caught.value) == f"{name}: {told}"


ADMIN_CURE = "write :9153, an address and a port such as 127.0.0.1:9153, or off"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", None),
        (":9100", AdminListen(None, 9100)),
        ("127.0.0.1:9100", AdminListen(ip_address("127.0.0.1"), 9100)),
        ("[2001:db8::1]:9100", AdminListen(ip_address("2001:db8::1"), 9100)),
    ],
)
def test_where_the_admin_port_may_be(text: str, value: AdminListen | None) -> None:
    assert read(f"{P}ADMIN_LISTEN", text) == value


@pytest.mark.parametrize("text", ["9153", ":0", ":65536", "127.0.0.1", "::1:9153", ":٣", "on"])
def test_where_it_may_not_be(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(f"{P}ADMIN_LISTEN", text)
    assert str(caught.value) == (
        f"{P}ADMIN_LISTEN: {text!r}: not an address and a port; {ADMIN_CURE}"
    )
