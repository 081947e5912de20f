"""The grammar of destinations: what it accepts, and every message it refuses with."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.address_policy import DEFAULT_POLICY, AddressPolicy
from egress_proxy.config.destinations import (
    MAX_OCTETS,
    Destination,
    parse_destinations,
    parse_destinations_in_slices,
)
from egress_proxy.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

LABEL_63 = "a" * 63
NAME_253 = ".".join([LABEL_63, LABEL_63, LABEL_63, "a" * 61])

_BLANK = "a {} (U+{}); replace it with a space, or remove it"
_CONTROL = "control character"

# One line each: its text, and the host and remote port that come out of it.
VALID: list[tuple[str, str, int]] = [
    ("80 172.16.12.11", "172.16.12.11", 80),
    ("80 web.example.com", "web.example.com", 80),
    ("80 web.example.com 8080", "web.example.com", 8080),
    ("80 2001:db8::10 443", "2001:db8::10", 443),
    ("80 2001:DB8:0:0::10", "2001:db8::10", 80),
    ("80 web.example.com 1", "web.example.com", 1),
    ("80 web.example.com 65535", "web.example.com", 65535),
    # Blanks.
    ("  80   web.example.com   443  ", "web.example.com", 443),
    ("\t80\tweb.example.com\t \t443\t", "web.example.com", 443),
    ("80 web.example.com\r", "web.example.com", 80),
    ("\ufeff80 web.example.com", "web.example.com", 80),
    # Comments.
    ("80 web.example.com # the shop", "web.example.com", 80),
    ("80 web.example.com #443", "web.example.com", 80),
    ("80 web.example.com 443\t#", "web.example.com", 443),
    ("80 web.example.com # a \N{SNOWMAN}\0\udcff\u2028 in a comment", "web.example.com", 80),
    # Names.
    ("80 WEB.Example.COM", "web.example.com", 80),
    ("80 web.example.com.", "web.example.com.", 80),
    ("80 example.com", "example.com", 80),
    ("80 _ldap._tcp.example.com", "_ldap._tcp.example.com", 80),
    ("80 _.a_.example.com", "_.a_.example.com", 80),
    ("80 a--b.example.com", "a--b.example.com", 80),
    ("80 3com.0.example.com", "3com.0.example.com", 80),
    ("80 10.0.0.1.example.com", "10.0.0.1.example.com", 80),
    ("80 0xg.a0x1", "0xg.a0x1", 80),
    (f"80 {LABEL_63}.com", f"{LABEL_63}.com", 80),
    (f"80 {NAME_253}", NAME_253, 80),
    (f"80 {NAME_253}.", f"{NAME_253}.", 80),
    # Internationalised names.
    ("80 bücher.example", "xn--bcher-kva.example", 80),
    ("80 BÜCHER.example", "xn--bcher-kva.example", 80),
    ("80 bu\u0308cher.example", "xn--bcher-kva.example", 80),
    ("80 faß.example", "xn--fa-hia.example", 80),
    ("80 例え。テスト", "xn--r8jz45g.xn--zckzah", 80),
    ("80 \uff45\uff58ample\uff0ecom", "example.com", 80),
    ("80 xn--bcher-kva.example", "xn--bcher-kva.example", 80),
    # UTS 46 ignores what shows nothing, such as a zero-width space from a web page.
    ("80 web.example.com\u200b", "web.example.com", 80),
]

_FIELDS = (
    "a destination has two or three fields; "
    "write <port> <host> [<remote port>], separated by spaces or tabs"
)
_LISTENING = "the listening port is not a number; write it in decimal digits"
_LISTENING_RANGE = "the listening port is out of range; use 1 to 65535"
_REMOTE = "the remote port is not a number; write it in decimal digits"
_REMOTE_RANGE = "the remote port is out of range; use 1 to 65535"
_IPV4 = "a malformed IPv4 address; write four decimal numbers without leading zeros"
_IPV6 = "a malformed IPv6 address; write for example 2001:db8::10"
_URL = "a URL or path is not a host; write only the host"
_JOINED = "a port joined to the host; write the remote port as the third field"
_NUMBER = "the last label of the name is a number; correct the name"
_EMPTY_LABEL = "an empty label in the name; remove the extra dot"
_LABEL = (
    "label '{}' has other characters than letters, digits, '_' and '-', or a '-' at one end; "
    "correct the name"
)
_WILDCARD = "wildcards are not supported; write one line per host"
_COMMENT = "a '#' inside a field; put a space before a comment"

_BLANK = "a {} (U+{}); replace it with a space, or remove it"
_CONTROL = "control character"

# One line each: its text, the value that is blamed, the reason and the cure.
INVALID: list[tuple[str, str, str]] = [
    # Fields.
    ("80", "'80'", _FIELDS),
    ("web.example.com", "'web.example.com'", _FIELDS),
    ("80 # web.example.com", "'80 # web.example.com'", _FIELDS),
    ("80 web.example.com 443 tcp", "'80 web.example.com 443 tcp'", _FIELDS),
    ("  80,web.example.com\r", "'80,web.example.com'", _FIELDS),
    # Look-alikes of a blank: what the admin sees as a space is shown as what it is.
    (
        "80\u00a0web.example.com",
        r"'80\xa0web.example.com'",
        _BLANK.format("no-break space", "00A0"),
    ),
    (
        "80\u3000web.example.com",
        r"'80\u3000web.example.com'",
        _BLANK.format("ideographic space", "3000"),
    ),
    (
        "80\u2028web.example.com",
        r"'80\u2028web.example.com'",
        _BLANK.format("line separator", "2028"),
    ),
    ("80\x0bweb.example.com", r"'80\x0bweb.example.com'", _BLANK.format(_CONTROL, "000B")),
    ("80\rweb.example.com", r"'80\rweb.example.com'", _BLANK.format(_CONTROL, "000D")),
    ("\u00a0", r"'\xa0'", _BLANK.format("no-break space", "00A0")),
    ("\x0c", r"'\x0c'", _BLANK.format(_CONTROL, "000C")),
    ("\r\r", r"'\r'", _BLANK.format(_CONTROL, "000D")),
    (
        "80 web.example.com\u00a0",
        r"'80 web.example.com\xa0'",
        _BLANK.format("no-break space", "00A0"),
    ),
    # Listening ports.
    *(
        (f"{port} a.example", f"'{port}'", _LISTENING)
        for port in [
            "-80",
            "+80",
            "8_0",
            "80.0",
            "0x50",
            "http",
            "80/tcp",
            "80#",
            "٨٠",
            "²",
        ]
    ),
    *((f"{port} a.example", f"'{port}'", _LISTENING_RANGE) for port in ("0", "65536", "655350")),
    ("80-90 a.example", "'80-90'", _LISTENING),
    (
        "\ufeff80 \ufeffa.example\n\ufeff81 a.example",
        r"'\ufeff81 a.example'",
        _BLANK.format("zero width no-break space", "FEFF"),
    ),
    ("9" * 5000 + " a.example", "'" + "9" * 80 + "'… (5000 characters)", _LISTENING_RANGE),
    *(
        (
            f"{port} a.example",
            f"'{port}'",
            "the listening port has a leading zero; remove the zero",
        )
        for port in ("080", "00080")
    ),
    # Remote ports.
    *((f"80 a.example {port}", f"'{port}'", _REMOTE) for port in ("https", "-1")),
    *((f"80 a.example {port}", f"'{port}'", _REMOTE_RANGE) for port in ("0", "65536")),
    ("80 a.example 443#https", "'443#https'", _REMOTE),
    ("80 a.example 0443", "'0443'", "the remote port has a leading zero; remove the zero"),
    # Addresses.
    *(
        (f"80 {host}", f"'{host}'", _IPV4)
        for host in (
            "999.1.1.1",
            "010.1.1.1",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.4.",
            "127.1",
            "0x7f.0.0.1",
            "0x7f000001",
            "2130706433",
            "0",
            "1.2.3.0x4",
            "\uff11.2.3.4",
        )
    ),
    *(
        (f"80 {host}", f"'{host}'", _IPV6)
        for host in ("2001:db8:::10", "2001:db8::10::1", "2001:db8::g", "1:2:3:4:5:6:7:8:9", "::ü")
    ),
    (
        "80 fe80::1%eth0",
        "'fe80::1%eth0'",
        "an address with a scope; remove the % and what follows",
    ),
    (
        "80 [2001:db8::10]",
        "'[2001:db8::10]'",
        "brackets around the host; write the IPv6 address without brackets",
    ),
    (
        "80 [2001:db8::10]:443",
        "'[2001:db8::10]:443'",
        "brackets around the host; write the IPv6 address without brackets",
    ),
    # What is no host.
    ("80 https://web.example.com", "'https://web.example.com'", _URL),
    ("80 web.example.com/shop", "'web.example.com/shop'", _URL),
    ("80 192.0.2.0/24", "'192.0.2.0/24'", "a network is not a host; write the address of one host"),
    *(
        (f"80 {host}", f"'{host}'", _JOINED)
        for host in (
            "web.example.com:443",
            "192.0.2.1:443",
            "web.example.com:https",
            "web.example.com:",
            ":443",
        )
    ),
    ("80 *.example.com", "'*.example.com'", _WILDCARD),
    ("80 *", "'*'", _WILDCARD),
    ("80 web.example.com#shop", "'web.example.com#shop'", _COMMENT),
    # Names.
    *(
        (f"80 {host}", f"'{host}'", _NUMBER)
        for host in ("web.example.5", "web.example.0x5", "web.1.2.3", "web.example.5.")
    ),
    *(
        (f"80 {host}", f"'{host}'", _EMPTY_LABEL)
        for host in (".", "..", ".example.com", "web..example.com", "web.example.com..")
    ),
    (
        "80 localhost",
        "'localhost'",
        "a name of a single label; write it in full, for example localhost.example.com",
    ),
    (
        "80 Web.",
        "'Web.'",
        "a name of a single label; write it in full, for example Web.example.com",
    ),
    (
        "80 bücher",
        "'bücher'",
        "a name of a single label; write it in full, for example xn--bcher-kva.example.com",
    ),
    *(
        (
            f"80 {label}.example.com",
            f"'{label}.example.com'",
            _LABEL.format(label),
        )
        for label in ("-web", "web-", "-", "w!b", "w,b", "w@b", "w%b", "w$b", "(web)", "xn--")
    ),
    (
        f"80 {LABEL_63}a.com",
        f"'{LABEL_63}a.com'",
        "a label over 63 octets; shorten it",
    ),
    *(
        (
            f"80 {name}",
            f"'{name[:80]}'… ({len(name)} characters)",
            "a name over 253 octets; shorten it",
        )
        for name in (f"{NAME_253}a", f"{NAME_253}a.", "a." * 500, "ü" * 300)
    ),
    # 244 characters, but longer in ASCII.
    (
        "80 " + "ü." * 120 + "com",
        "'" + "ü." * 40 + "'… (243 characters)",
        "a name over 253 octets; shorten it",
    ),
]

# What the library says of these names is its own affair.
NO_NAMES: list[tuple[str, str]] = [
    ("\N{SNOWMAN}.example.com", "'\N{SNOWMAN}.example.com'"),
    ("\u0308.example.com", "'\u0308.example.com'"),
    ("xn--ü.example.com", "'xn--ü.example.com'"),
    ("\u05d0a.example.com", "'\u05d0a.example.com'"),
    ("ü" * 64 + ".example.com", "'" + "ü" * 64 + ".example.com'"),
]


def parse(text: str, policy: AddressPolicy = DEFAULT_POLICY) -> tuple[Destination, ...]:
    return parse_destinations(text, variable="DESTINATION", policy=policy)


def refusal(text: str, policy: AddressPolicy = DEFAULT_POLICY) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, policy)
    return str(caught.value)


@pytest.mark.parametrize(("line", "host", "remote_port"), VALID)
def test_accepted_lines(line: str, host: str, remote_port: int) -> None:
    [destination] = parse(line)
    assert (destination.port, str(destination.host), destination.remote_port, destination.line) == (
        80,
        host,
        remote_port,
        1,
    )


@pytest.mark.parametrize(("line", "value", "reason"), INVALID)
def test_refused_lines(line: str, value: str, reason: str) -> None:
    number = line.count("\n") + 1
    assert refusal(line) == f"DESTINATION line {number}: {value}: {reason}"


@pytest.mark.parametrize(("name", "value"), NO_NAMES)
def test_names_that_dns_can_not_carry(name: str, value: str) -> None:
    told = refusal(f"80 {name}")
    assert told.startswith(f"DESTINATION line 1: {value}: not an internationalised name: ")
    assert told.endswith("; correct it, or write its xn-- form")
    assert told.isprintable()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "a loopback address"),
        ("0:0:0:0:0:0:0:1", "a loopback address"),
        ("FEBF::1", "a link-local address"),
        ("64:ff9b::169.254.169.254", "a link-local address"),
        ("0::0.0.0.0", "an unspecified address"),
        ("0:0:0:0:0:ffff:192.0.2.1", "an IPv4 address in IPv6 form"),
    ],
)
def test_an_address_that_is_never_connected_to_is_refused(address: str, reason: str) -> None:
    assert refusal(f"80 {address}", AddressPolicy(networks=(ip_network("10.0.0.0/8"),))) == (
        f"DESTINATION line 1: '{address}': {reason} is never connected to; "
        "write the remote host's own address"
    )


@pytest.mark.parametrize("address", ["10.1.2.3", "2002:a01:203::"])
def test_an_address_of_a_denied_network_is_refused(address: str) -> None:
    assert refusal(f"80 {address}", AddressPolicy(networks=(ip_network("10.0.0.0/8"),))) == (
        f"DESTINATION line 1: '{address}': an address of the denied network 10.0.0.0/8 is never "
        "connected to; write the remote host's own address, or remove the network from "
        "EGRESS_DNS_PROXY_DENY"
    )


def test_what_is_not_denied_is_accepted() -> None:
    assert parse("80 127.0.0.1", AddressPolicy(loopback_allowed=True))


def test_the_text_of_a_pod_spec() -> None:
    text = (
        "# comments and blank lines are ignored\r\n"
        "\r\n"
        "80 172.16.12.11\r\n"
        "  \t# 81 nothing.example.com\r\n"
        "100 example.com\r\n"
        "8443 web.example.com 443"
    )
    assert parse(text) == (
        Destination(80, ip_address("172.16.12.11"), 80, 3),
        Destination(100, "example.com", 100, 5),
        Destination(8443, "web.example.com", 443, 6),
    )


@pytest.mark.parametrize(
    ("destination", "text"),
    [
        (Destination(80, ip_address("192.0.2.1"), 81, 1), "192.0.2.1:81"),
        (Destination(80, ip_address("2001:db8::1"), 81, 1), "[2001:db8::1]:81"),
        (Destination(80, "web.example.com", 81, 1), "web.example.com:81"),
        (Destination(80, "web.example.com.", 81, 1), "web.example.com:81"),
    ],
)
def test_a_destination_reads_as_host_and_port(destination: Destination, text: str) -> None:
    assert str(destination) == text


@pytest.mark.parametrize("text", ["", "\n\n", " \t\r\n", "# 80 web.example.com", "\ufeff"])
def test_a_text_without_a_destination(text: str) -> None:
    assert refusal(text) == (
        "DESTINATION: no destination; write one per line: <port> <host> [<remote port>]"
    )


def test_a_port_used_twice_names_both_lines() -> None:
    assert refusal("80 a.example\n\n80 b.example\n81 c.example\n80 a.example") == (
        "DESTINATION line 3: '80': line 1 already uses this listening port; "
        "use a listening port once\n"
        "DESTINATION line 5: '80': line 1 already uses this listening port; "
        "use a listening port once"
    )


def test_every_wrong_line_is_reported_and_no_right_one() -> None:
    assert refusal(
        "80 a.example\n\n0 b.example\n# c\n81 d.example\n82 localhost\n83"
    ).splitlines() == [
        f"DESTINATION line 3: '0': {_LISTENING_RANGE}",
        (
            "DESTINATION line 6: 'localhost': a name of a single label; "
            "write it in full, for example localhost.example.com"
        ),
        f"DESTINATION line 7: '83': {_FIELDS}",
    ]


def test_a_hundred_problems_are_reported_and_the_others_counted() -> None:
    *reported, more = refusal("80 a.example\n" + "81 localhost\n" * 524).splitlines()
    assert [line.split()[2] for line in reported] == [f"{number}:" for number in range(2, 102)]
    assert more == "DESTINATION: and 424 more problems"


@pytest.mark.asyncio
async def test_parsing_in_slices_lets_the_event_loop_run() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    text = "8 a\n" * 100_000
    with pytest.raises(ConfigurationError) as caught:
        await parse_destinations_in_slices(text, variable="DESTINATION")
    counting.cancel()
    assert str(caught.value) == refusal(text)
    # 100,000 lines take some 200 ms, and each slice one.
    assert turns >= 50


def test_every_port_can_be_used() -> None:
    text = "".join(f"{port} a.example\n" for port in range(1, 65536))
    destinations = parse(text)
    assert [destination.port for destination in destinations] == list(range(1, 65536))
    assert destinations[-1].line == 65535


_FILL = "80 a.example #"


@pytest.mark.parametrize("filling", ["x", "ü", "\udcff"])
def test_a_text_of_the_greatest_size_is_read(filling: str) -> None:
    octets = len(filling.encode(errors="surrogateescape"))
    room = MAX_OCTETS - len(_FILL)
    text = _FILL + filling * (room // octets) + "x" * (room % octets)
    assert parse(text) == (Destination(80, "a.example", 80, 1),)
    assert refusal(text + "x") == (
        "DESTINATION: longer than 1048576 octets; split the destinations over several pods"
    )


@pytest.mark.parametrize(
    ("unit", "head"),
    [
        pytest.param("8", "", id="digits"),
        pytest.param(" ", "", id="blanks"),
        pytest.param("\t#", "", id="comments"),
        pytest.param("8 ", "", id="fields"),
        pytest.param("a", "80 ", id="label"),
        pytest.param("a.", "80 ", id="labels"),
        pytest.param("1.", "80 ", id="numbers"),
        pytest.param(":", "80 ", id="colons"),
        pytest.param("ü", "80 ", id="letters"),
        pytest.param("\u0308", "80 a", id="marks"),
        pytest.param("\r", "", id="carriage returns"),
        pytest.param("8", "80 a.example ", id="remote port"),
        pytest.param("80 a.example\n", "", id="one port"),
        pytest.param("\n", "", id="empty lines"),
    ],
)
def test_the_work_is_linear_in_the_text(unit: str, head: str) -> None:
    """Eight times the text is eight times the work; quadratic work would be 64 times."""

    def work_s(octets: int) -> float:
        text = head + unit * ((octets - len(head)) // len(unit.encode()))
        taken = []
        for _ in range(3):
            begun = time.process_time()
            with pytest.raises(ConfigurationError):
                parse(text)
            taken.append(time.process_time() - begun)
        return min(taken)

    assert work_s(MAX_OCTETS // 4) < 24 * work_s(MAX_OCTETS // 32)


PORTS = st.integers(1, 65535)
ADDRESSES = st.ip_addresses().filter(lambda address: AddressPolicy().why_denied(address) is None)
LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?", fullmatch=True)
NAMES = st.builds(
    lambda labels, last: ".".join([*labels, last]),
    st.lists(LABELS, min_size=1, max_size=5),
    st.from_regex(r"[a-z]{2,10}", fullmatch=True),
)
BLANKS = st.text(" \t", min_size=1, max_size=3)
NOTHING = st.one_of(
    st.text(" \t", max_size=3),
    st.builds(
        "{}# {}".format, st.text(" \t", max_size=2), st.text(st.characters(exclude_characters="\n"))
    ),
)
LINE_ENDS = st.sampled_from(["\n", "\r\n"])


@given(
    ports=st.lists(PORTS, min_size=1, max_size=8, unique=True),
    bom=st.sampled_from(["", "\ufeff"]),
    data=st.data(),
)
def test_what_is_written_is_what_is_read(ports: list[int], bom: str, data: st.DataObject) -> None:
    text, number, expected = bom, 0, []
    for port in ports:
        for filler in data.draw(st.lists(NOTHING, max_size=2)):
            text += filler + data.draw(LINE_ENDS)
            number += 1
        host = data.draw(ADDRESSES | NAMES)
        remote_port = data.draw(st.none() | PORTS)
        number += 1
        fields = [str(port), str(host)] + ([] if remote_port is None else [str(remote_port)])
        text += data.draw(BLANKS).join(fields) + data.draw(LINE_ENDS)
        expected.append(Destination(port, host, remote_port or port, number))
    assert parse(text) == tuple(expected)


# Pieces that get far into the grammar, and anything at all.
# fmt: off
PIECE = (
    "80", "81", "0", " ", "\t", "\n", "\r\n", "#", ".", ":", "/", "*", "[", "]", "%", "-", "_",
    "a", "xn--", "ü", "ß", "\u0308", "\u05d0", "\u200d", "\ufeff", "\xa0", "\u3002", "\udcff", "\0",
    "example.com", "192.0.2.1", "2001:db8::1", "::ffff:", "127.0.0.1",
)
# fmt: on
PIECES = st.lists(st.sampled_from(PIECE) | st.characters(exclude_categories=()), max_size=30).map(
    "".join
)


@given(text=PIECES | PIECES.map("80 {}".format))
def test_any_text_gives_destinations_or_problems_on_its_lines(text: str) -> None:
    try:
        found: Sequence[Destination | Problem] = parse(text)
        assert found
    except ConfigurationError as error:
        found = error.problems
    assert all(str(each).isprintable() for each in found)
    if [each.line for each in found] == [None]:
        assert "no destination" in str(found[0])
        return
    lines = text.removeprefix("\ufeff").split("\n")
    numbers = [each.line or 0 for each in found]
    assert numbers == sorted(set(numbers))
    for each in found:
        line = lines[(each.line or 0) - 1].lstrip(" \t")
        if isinstance(each, Destination):
            assert line.startswith(str(each.port))
            assert isinstance(each.host, str) or AddressPolicy().why_denied(each.host) is None
        else:
            assert each.value
            assert each.value in line


@given(host=st.text(st.characters(exclude_categories=()), min_size=1, max_size=70))
def test_an_accepted_name_is_one_that_dns_can_carry(host: str) -> None:
    try:
        [destination, *_] = parse(f"80 {host}.example.com")
    except ConfigurationError:
        return
    name = destination.host
    assert isinstance(name, str)
    assert name.isascii()
    assert name == name.lower()
    assert len(name) <= 253
    assert all(0 < len(label) <= 63 for label in name.split("."))
    # An accepted name is accepted as it is.
    assert parse(f"80 {name}")[0].host == name
