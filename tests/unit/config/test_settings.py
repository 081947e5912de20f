"""The environment of run: what it accepts, and what several variables say together."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.address_policy import DEFAULT_POLICY
from egress_proxy.config.destinations import MAX_OCTETS, Destination
from egress_proxy.config.files import OffLoop
from egress_proxy.config.run_variables import VARIABLES, AdminListen
from egress_proxy.config.settings import Settings, read_settings, reread_destinations
from egress_proxy.errors import ConfigurationError, PlatformError

if TYPE_CHECKING:
    from pathlib import Path

P = "EGRESS_DNS_PROXY_"
GOOD = {f"{P}DESTINATION": "80 192.0.2.1"}
DEFAULTS = Settings(
    shared=False,
    destinations=(Destination(80, ip_address("192.0.2.1"), 80, 1),),
    destinations_from=f"{P}DESTINATION",
    debug=False,
    log_connections="off",
    log_format="",
    interface="macvlan0",
    source="auto",
    listen="auto",
    allow_clients=(),
    connect_timeout_s=10.0,
    idle_timeout_s=3600.0,
    half_close_timeout_s=300.0,
    drain_timeout_s=25.0,
    removed_timeout_s=0.0,
    max_connections=None,
    nameservers=(),
    stale_timeout_s=86400.0,
    deny=(),
    health_interval_s=0.0,
    withdrawn_timeout_s=0.0,
    dataplane="splice",
    pod=socket.gethostname(),
    node="",
    admin_listen=AdminListen(None, 9153),
    admin_sessions=False,
)


def test_destinations_are_enough() -> None:
    assert read_settings(GOOD) == DEFAULTS


def test_blank_variables_are_unset_ones() -> None:
    blanks = {variable.name: " \n" for variable in VARIABLES}
    assert read_settings({**blanks, **GOOD}) == DEFAULTS


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({f"{P}DEBUG": "1"}, "debug", True),
        ({f"{P}DEBUG": "off"}, "debug", False),
        ({f"{P}LOG_FORMAT": "json"}, "log_format", "json"),
        ({"EGRESS_INTERFACE": "net1"}, "interface", "net1"),
        ({f"{P}SOURCE": "auto"}, "source", "auto"),
        ({f"{P}SOURCE": "any"}, "source", "any"),
        ({f"{P}SOURCE": "192.0.2.99"}, "source", (ip_address("192.0.2.99"),)),
        (
            {f"{P}SOURCE": "192.0.2.99, 2001:db8::99"},
            "source",
            (ip_address("192.0.2.99"), ip_address("2001:db8::99")),
        ),
        ({f"{P}LISTEN": "auto"}, "listen", "auto"),
        (
            {f"{P}LISTEN": "0.0.0.0, ::"},
            "listen",
            (ip_address("0.0.0.0"), ip_address("::")),
        ),
        (
            {f"{P}LISTEN": "192.0.2.1,192.0.2.2"},
            "listen",
            (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
        ),
        ({f"{P}ALLOW_CLIENTS": "10.0.0.0/8"}, "allow_clients", (ip_network("10.0.0.0/8"),)),
        ({f"{P}CONNECT_TIMEOUT": "500ms"}, "connect_timeout_s", 0.5),
        ({f"{P}IDLE_TIMEOUT": "0"}, "idle_timeout_s", 0.0),
        ({f"{P}HALF_CLOSE_TIMEOUT": "90"}, "half_close_timeout_s", 90.0),
        ({f"{P}DRAIN_TIMEOUT": "1h"}, "drain_timeout_s", 3600.0),
        ({f"{P}MAX_CONNECTIONS": "10000"}, "max_connections", 10000),
        (
            {f"{P}DENY": "10.0.0.0/8, 2001:db8::/32"},
            "deny",
            (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
        ),
        ({f"{P}HEALTH_INTERVAL": "30s"}, "health_interval_s", 30.0),
        ({f"{P}HEALTH_INTERVAL": "off"}, "health_interval_s", 0.0),
        ({f"{P}WITHDRAWN_TIMEOUT": "10m"}, "withdrawn_timeout_s", 600.0),
        ({f"{P}STALE_TIMEOUT": "0"}, "stale_timeout_s", 0.0),
        ({f"{P}WITHDRAWN_TIMEOUT": "0"}, "withdrawn_timeout_s", 0.0),
        (
            {f"{P}NAMESERVERS": "192.0.2.53, 192.0.2.54:5353,192.0.2.55:"},
            "nameservers",
            ("192.0.2.53:53", "192.0.2.54:5353", "192.0.2.55:53"),
        ),
        (
            {f"{P}NAMESERVERS": "2001:db8::53,[2001:DB8::54],[2001:db8::55]:5353"},
            "nameservers",
            ("[2001:db8::53]:53", "[2001:db8::54]:53", "[2001:db8::55]:5353"),
        ),
    ],
)
def test_accepted_values(changes: dict[str, str], field: str, value: object) -> None:
    expected: dict[str, Any] = {field: value}
    assert read_settings({**GOOD, **changes}) == replace(DEFAULTS, **expected)


def test_destinations_are_missing() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({})
    assert str(caught.value) == (
        f"{P}DESTINATION: no destination; write one per line: <port> <host> [<remote port>]"
    )


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(
            {
                f"{P}DESTINATION": "0 a.example\n80 localhost",
                f"{P}SOURCE": "here",
                f"{P}LISTEN": "there",
                f"{P}IDLE_TIMEOUT": "never",
                f"{P}MAX_CONNECTIONS": "all",
                "EGRESS_INTERFACE": "an interface",
            }
        )
    assert sorted((each.variable, each.line) for each in caught.value.problems if each.line) == [
        (f"{P}DESTINATION", 1),
        (f"{P}DESTINATION", 2),
    ]
    assert sorted(each.variable for each in caught.value.problems if not each.line) == [
        f"{P}IDLE_TIMEOUT",
        f"{P}LISTEN",
        f"{P}MAX_CONNECTIONS",
        f"{P}SOURCE",
        "EGRESS_INTERFACE",
    ]


@pytest.mark.parametrize(("source", "accepted"), [("any", True), ("auto", False)])
def test_a_source_of_any_lifts_the_loopback_rule(source: str, accepted: bool) -> None:
    environ = {f"{P}DESTINATION": "80 127.0.0.1", f"{P}SOURCE": source}
    if accepted:
        assert read_settings(environ).destinations[0].host == ip_address("127.0.0.1")
    else:
        with pytest.raises(ConfigurationError, match=r"'127\.0\.0\.1': a loopback address"):
            read_settings(environ)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "destinations"


@pytest.mark.parametrize(
    ("octets", "line"),
    [
        (b"80 192.0.2.1\n", 1),
        (b"\xef\xbb\xbf80 192.0.2.1\r\n", 1),
        (b"# caf\xe9, in Latin-1\n80 192.0.2.1", 2),
        (b"80 192.0.2.1 #".ljust(MAX_OCTETS, b"\xff"), 1),
    ],
)
def test_destinations_from_a_file(file: Path, octets: bytes, line: int) -> None:
    file.write_bytes(octets)
    settings = read_settings({f"{P}DESTINATION": " ", f"{P}DESTINATION_FILE": f" {file}\n"})
    assert settings.destinations == (Destination(80, ip_address("192.0.2.1"), 80, line),)


def test_a_reload_reads_the_same_as_the_start(file: Path) -> None:
    file.write_text("80 192.0.2.1")

    def reread(environ: dict[str, str]) -> tuple[Destination, ...]:
        return asyncio.run(
            reread_destinations(environ, OffLoop(), policy=DEFAULT_POLICY, admin_listen=None)
        )

    found = (Destination(80, ip_address("192.0.2.1"), 80, 1),)
    assert reread(GOOD) == found
    assert reread({f"{P}DESTINATION": " ", f"{P}DESTINATION_FILE": str(file)}) == found
    with pytest.raises(ConfigurationError, match="no destination"):
        reread({})
    # It may come back, and is then read again.
    with pytest.raises(PlatformError, match="No such file or directory"):
        reread({f"{P}DESTINATION_FILE": f"{file}.missing"})


@pytest.mark.parametrize(
    ("octets", "told"),
    [
        (b"", ": no destination; write one per line: <port> <host> [<remote port>]"),
        (
            b"80 caf\xe9.example",
            r" line 1: '80 caf\udce9.example': octet 0xE9 is not UTF-8; save the text as UTF-8",
        ),
        (
            b"#".ljust(MAX_OCTETS + 1, b"\xff"),
            ": longer than 1048576 octets; split the destinations over several pods",
        ),
    ],
)
def test_a_wrong_file_is_blamed_by_its_variable(file: Path, octets: bytes, told: str) -> None:
    file.write_bytes(octets)
    with pytest.raises(ConfigurationError) as caught:
        read_settings({f"{P}DESTINATION_FILE": str(file)})
    assert str(caught.value).startswith(f"{P}DESTINATION_FILE{told}")


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({f"{P}DESTINATION_FILE": str(file)})
    [problem] = caught.value.problems
    assert (problem.variable, problem.value) == (f"{P}DESTINATION_FILE", str(file))
    assert problem.reason == "can't read the file: No such file or directory"
    assert problem.cure == "check the volume's mount"


def test_a_directory_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't read the file: Is a directory; check"):
        read_settings({f"{P}DESTINATION_FILE": str(tmp_path)})


def test_destinations_in_both_places_are_refused(file: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({**GOOD, f"{P}DESTINATION_FILE": "/etc/egress"})
    assert str(caught.value) == (
        f"{P}DESTINATION_FILE: '/etc/egress': {P}DESTINATION is set too; unset one of the two"
    )
    assert not file.exists()


@given(
    environ=st.dictionaries(
        st.sampled_from([each.name for each in VARIABLES if "FILE" not in each.name]),
        st.text(st.characters(exclude_categories=()), max_size=20),
    )
)
def test_any_environment_gives_settings_or_problems(environ: dict[str, str]) -> None:
    try:
        read_settings(environ)
    except ConfigurationError as error:
        found = error.problems
    else:
        found = ()
    assert all(str(problem).isprintable() for problem in found)
    assert all(problem.variable and problem.reason and problem.cure for problem in found)


def test_a_destination_is_not_on_the_admin_port() -> None:
    text = {f"{P}DESTINATION": "80 192.0.2.1\n9153 192.0.2.1\n"}
    with pytest.raises(ConfigurationError) as caught:
        read_settings(text)
    assert str(caught.value) == (
        f"{P}DESTINATION line 2: '9153': health and metrics are on this port; "
        f"use another port, or set {P}ADMIN_LISTEN"
    )
    assert len(read_settings({**text, f"{P}ADMIN_LISTEN": "off"}).destinations) == 2


def test_the_admin_port_is_reported_together_with_the_other_lines() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({f"{P}DESTINATION": "9153 192.0.2.1\nabc\n9153 192.0.2.2\n"})
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]


@pytest.mark.parametrize(
    ("environ", "pod", "node"),
    [
        ({"POD_NAME": "router-1"}, "router-1", ""),
        (
            {"POD_NAME": "router-1", "POD_NAMESPACE": "egress", "NODE_NAME": "worker-3"},
            "egress/router-1",
            "worker-3",
        ),
        ({"POD_NAMESPACE": "egress"}, socket.gethostname(), ""),
    ],
)
def test_values_of_the_downward_api(environ: dict[str, str], pod: str, node: str) -> None:
    settings = read_settings({"EGRESS_DNS_PROXY_DESTINATION": "80 192.0.2.1", **environ})
    assert (settings.pod, settings.node) == (pod, node)
