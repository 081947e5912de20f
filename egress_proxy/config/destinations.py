"""The destinations' grammar: text from the admin becomes `Destination` values, or problems.

One destination a line, ``<port> <host> [<remote port>]``; without the third field the remote port
is the listening port. Fields are separated by spaces or tabs. ``#`` at the start of a line or
after a blank opens a comment. Lines end with LF or CRLF.

Deliberately not here: wildcards, port ranges, URLs, and names of one label, which the original
egress router refused too. Nothing is resolved. Every line is judged on its own and all problems
are told in one go; the work is linear in the text, which may have `MAX_OCTETS`.

An address that is never connected to (`policy`) is refused where the admin wrote it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from egress_proxy.config.address_policy import DEFAULT_POLICY, AddressPolicy
from egress_proxy.config.variables import RefusedError
from egress_proxy.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from egress_proxy.ip import Address

MAX_OCTETS = 1 << 20

# RFC 1035 section 2.3.4; a name's 253 characters are its 255 octets on the wire.
_MAX_LABEL = 63
_MAX_NAME = 253
# RFC 1123 section 2.1, and underscores, which service names in real zones have.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?", re.ASCII | re.IGNORECASE)
# What inet_aton(3) reads as a number: as a last label it would make the name an address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Destination:
    """One forwarded port.

    `port` is listened on; `host` is an address, or a DNS name in ASCII without its trailing dot;
    `remote_port` is connected to; `line` is where the admin wrote it, counted from 1.
    """

    port: int
    host: Address | str
    remote_port: int
    line: int

    def __str__(self) -> str:
        if isinstance(self.host, ipaddress.IPv6Address):
            return f"[{self.host}]:{self.remote_port}"
        return f"{self.host}:{self.remote_port}"


def parse_destinations(
    text: str, *, variable: str, policy: AddressPolicy = DEFAULT_POLICY
) -> tuple[Destination, ...]:
    """The destinations in `text`, at least one, in their order.

    Raises `ConfigurationError` with a problem for each wrong line; `variable` is the environment
    variable to blame.
    """
    # Octets that are no UTF-8 stand in the text as one lone surrogate each (PEP 383).
    if len(text.encode(errors="replace")) > MAX_OCTETS:
        raise ConfigurationError(
            Problem(
                variable=variable,
                reason=f"more than {MAX_OCTETS} octets, and no more are read",
                cure="split the destinations over several pods",
            )
        )
    problems = []
    by_port: dict[int, Destination] = {}
    # Windows editors begin a file with a byte order mark.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        try:
            destination = _parse_line(line.removesuffix("\r"), number, policy)
            if destination is None:
                continue
            _claim_port(destination, by_port)
        except RefusedError as error:
            problems.append(error.problem(variable, line=number))
    if not by_port and not problems:
        problems.append(
            Problem(
                variable=variable,
                reason="no destination",
                cure="write one a line: <port> <host> [<remote port>]",
            )
        )
    if problems:
        raise ConfigurationError(*problems)
    return tuple(by_port.values())


def _parse_line(line: str, number: int, policy: AddressPolicy) -> Destination | None:
    fields = _split_fields(line)
    if not fields:
        return None
    if not 2 <= len(fields) <= 3:  # noqa: PLR2004 - the grammar has two or three fields
        raise RefusedError(
            "a destination has two or three fields",
            "write <port> <host> [<remote port>], separated by spaces or tabs",
            # No more than this: what only looks like a blank is to be seen.
            line.strip(" \t"),
        )
    port = _parse_port(fields[0], "the listening port")
    host = _parse_host(fields[1])
    if not isinstance(host, str):
        reason = policy.why_denied(host)
        if reason:
            raise RefusedError(
                f"{reason} is never connected to", "write the remote host's own address", fields[1]
            )
    remote_port = _parse_port(fields[2], "the remote port") if len(fields) > 2 else port  # noqa: PLR2004 - said above
    return Destination(port, host, remote_port, number)


def _claim_port(destination: Destination, by_port: dict[int, Destination]) -> None:
    first = by_port.setdefault(destination.port, destination)
    if first is not destination:
        raise RefusedError(
            f"this listening port is used on line {first.line} already",
            "give each line a listening port of its own",
            str(destination.port),
        )


def _split_fields(line: str) -> list[str]:
    """The fields before a comment; only space and tab separate, whatever Unicode calls a blank."""
    fields = []
    for field in line.replace("\t", " ").split(" "):
        if field.startswith("#"):
            break
        if field:
            fields.append(field)
    return fields


def _parse_port(field: str, what: str) -> int:
    digits = field.isascii() and field.isdigit()
    if digits and len(field) > 1 and field.startswith("0"):
        raise RefusedError(f"{what} begins with a zero", "write it without", field)
    # Six digits are enough to judge a port, and keep int() linear in the text.
    if not digits or not 1 <= int(field[:6]) <= 65535:  # noqa: PLR2004 - the last port
        raise RefusedError(f"{what} is not a number from 1 to 65535", "write it in digits", field)
    return int(field)


def _parse_host(field: str) -> Address | str:
    _refuse_lookalikes(field)
    try:
        address = ipaddress.ip_address(field)
    except ValueError:
        return _parse_name(field)
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise RefusedError("an address with a scope", "leave out the % and what follows", field)
    return address


def _refuse_lookalikes(field: str) -> None:
    """Refuse what is no host at all, each with the cure for that mistake."""
    if "://" in field or "/" in field:
        raise RefusedError("a URL or path is not a host", "write the host alone", field)
    if "*" in field:
        raise RefusedError(
            "wildcards can't be forwarded to", "write a line of its own for each host", field
        )
    if field.startswith("["):
        raise RefusedError("brackets around the host", "write the IPv6 address without", field)
    if "#" in field:
        raise RefusedError("a '#' inside a field", "put a blank before a comment", field)
    if field.count(":") == 1:
        raise RefusedError(
            "a port joined to the host", "write the remote port as a third field", field
        )


def _parse_name(field: str) -> str:
    # Judged first: nothing below needs to be quick on long text.
    if len(field) > _MAX_NAME + 1:
        raise RefusedError(f"a name over {_MAX_NAME} octets", "shorten it", field)
    if ":" in field:
        raise RefusedError("a malformed IPv6 address", "write for example 2001:db8::10", field)
    name = _to_ascii(field).removesuffix(".")
    labels = name.split(".")
    if all(map(_NUMBER.fullmatch, labels)):
        raise RefusedError(
            "a malformed IPv4 address", "write four decimal numbers without leading zeros", field
        )
    if _NUMBER.fullmatch(labels[-1]):
        raise RefusedError("the last label of the name is a number", "correct the name", field)
    for label in labels:
        _refuse_label(label, field)
    if len(name) > _MAX_NAME:
        raise RefusedError(f"a name over {_MAX_NAME} octets", "shorten it", field)
    if len(labels) == 1:
        raise RefusedError(
            "a name of a single label", f"write it in full, for example {name}.example.com", field
        )
    return name.lower()


def _refuse_label(label: str, field: str) -> None:
    if not label:
        raise RefusedError("an empty label in the name", "remove the extra dot", field)
    if len(label) > _MAX_LABEL:
        raise RefusedError(f"a label over {_MAX_LABEL} octets", "shorten it", field)
    if not _LABEL.fullmatch(label):
        raise RefusedError(
            f"label {label!r} is not letters, digits, '-' and '_' with no '-' at its ends",
            "correct the name",
            field,
        )


def _to_ascii(field: str) -> str:
    """An internationalised name in its ASCII form (RFC 5891, with the mapping of UTS 46)."""
    if field.isascii():
        return field
    # Tables of 1 MB, for the rare text that needs them.
    import idna  # noqa: PLC0415 - see above

    try:
        labels = idna.uts46_remap(field, std3_rules=False).split(".")
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels
        )
    except UnicodeError as error:
        raise RefusedError(
            f"not an internationalised name: {error}", "correct it, or write its xn-- form", field
        ) from None
