"""What administrators write by mistake, with the whole message that each one gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.settings import read_settings
from egress_proxy.errors import ConfigurationError, quote
from egress_proxy.init.settings import read_settings as read_init_settings

if TYPE_CHECKING:
    from pathlib import Path

P = "EGRESS_DNS_PROXY_"
D = f"{P}DESTINATION"
_FOLDED = "in YAML write |- instead of >-, which joins lines"

LINES = [
    # YAML's folded style.
    (
        "80 198.51.100.11 100 example.com",
        f"'80 198.51.100.11 100 example.com': several destinations on one line; {_FOLDED}",
    ),
    (
        "80 198.51.100.11 8080 100 example.com",
        f"'80 198.51.100.11 8080 100 example.com': several destinations on one line; {_FOLDED}",
    ),
    # An escape that the shell or YAML left alone.
    (
        r"80 198.51.100.11\n100 example.com",
        (
            r"'80 198.51.100.11\\n100 example.com': \n is a backslash and a letter here; "
            "use real line breaks: in YAML write |-"
        ),
    ),
    # An env file keeps quotation marks.
    (
        '"80 198.51.100.11"',
        "'\"80 198.51.100.11\"': a quotation mark; remove the quotation marks",
    ),
    ("'80 198.51.100.11", '"\'80 198.51.100.11": a quotation mark; remove the quotation marks'),
    ("70000 a.example", "'70000': the listening port is out of range; use 1 to 65535"),
    ("0 a.example", "'0': the listening port is out of range; use 1 to 65535"),
    (
        "example.com 443",
        "'example.com 443': the host comes before the port; write 443 example.com",
    ),
    (
        "80 198.51.100.0/24",
        "'198.51.100.0/24': a network is not a host; write the address of one host",
    ),
    ("80 2001:db8::/32", "'2001:db8::/32': a network is not a host; write the address of one host"),
    (
        "80 a.example; 443 b.example",
        "'80 a.example; 443 b.example': a ';'; write one destination per line, without ';'",
    ),
    (
        "80\u00a0198.51.100.11",
        r"'80\xa0198.51.100.11': a no-break space (U+00A0); replace it with a space, or remove it",
    ),
    (
        "80 caf\udce9.example",
        r"'80 caf\udce9.example': octet 0xE9 is not UTF-8; save the text as UTF-8",
    ),
]


def told(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(environ)
    return str(caught.value)


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_line(line: str, message: str) -> None:
    assert told({D: line}) == f"{D} line 1: {message}"


def test_a_folded_text_that_starts_with_a_comment() -> None:
    assert told({D: "# the shop 80 198.51.100.11 100 example.com"}) == (
        f"{D}: no destination: the only line is a comment; {_FOLDED}"
    )


def test_a_destination_that_is_commented_out_is_no_mistake_of_yaml() -> None:
    assert told({D: "# 80 198.51.100.11"}).endswith(": <port> <host> [<remote port>]")


def test_a_denied_network() -> None:
    assert told({D: "80 198.51.100.11", f"{P}DENY": "198.51.100.0/24"}) == (
        f"{D} line 1: '198.51.100.11': an address of the denied network 198.51.100.0/24 is never "
        f"connected to; write the remote host's own address, or remove the network from {P}DENY"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_file_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "destinations"
    file.write_text("80 a.example", encoding)
    text = "80 a.example".encode("utf-16-le").decode()
    message = {
        "utf-16": f": {quote(str(file))}: the file is UTF-16; save it as UTF-8",
        "utf-16-le": (
            f" line 1: {text!r}: a NUL octet: UTF-16 or a binary file; save the file as UTF-8"
        ),
    }
    assert told({f"{D}_FILE": str(file)}) == f"{D}_FILE{message[encoding]}"


VARIABLES = [
    (f"{P}IDLE_TIMEOUT", "1d", "not a duration; write 24h"),
    (f"{P}IDLE_TIMEOUT", "5min", "not a duration; write 5m"),
    (f"{P}IDLE_TIMEOUT", "10S", "not a duration; write 10s"),
    (f"{P}IDLE_TIMEOUT", "1h30m", "not a duration; write 90m"),
    (f"{P}IDLE_TIMEOUT", "never", "not a duration; write 0 where that means never"),
    (
        f"{P}IDLE_TIMEOUT",
        "soon",
        "not a duration; write for example 500ms, 10s, 1m, 1h or plain seconds",
    ),
]


@pytest.mark.parametrize(("variable", "text", "message"), VARIABLES)
def test_a_variable(variable: str, text: str, message: str) -> None:
    assert told({D: "80 a.example", variable: text}) == f"{variable}: {text!r}: {message}"


INIT = [
    (
        "EGRESS_SOURCE",
        "[2001:db8::99]/64",
        "'[2001:db8::99]': brackets around the address; write 2001:db8::99",
    ),
    (
        "EGRESS_SOURCE",
        '"192.0.2.99/24"',
        "'\"192.0.2.99/24\"': quotation marks; remove them",
    ),
    (
        "EGRESS_GATEWAY",
        "192.0.2.1/24",
        "'192.0.2.1/24': a length after the address; write 192.0.2.1",
    ),
    ("EGRESS_GATEWAY", "'192.0.2.1'", "\"'192.0.2.1'\": quotation marks; remove them"),
]


@pytest.mark.parametrize(("variable", "text", "message"), INIT)
def test_a_variable_of_init(variable: str, text: str, message: str) -> None:
    environ = {"EGRESS_SOURCE": "192.0.2.99/24", "EGRESS_GATEWAY": "192.0.2.1", variable: text}
    with pytest.raises(ConfigurationError) as caught:
        read_init_settings(environ)
    assert str(caught.value) == f"{variable}: {message}"
