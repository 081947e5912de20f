"""The grammar of the destinations: text becomes `Destination` values, or problems.

One destination per line, ``<port> <host> [<remote port>]``; without the third field the remote
port is the listening port. Fields are separated by spaces or tabs. ``#`` at the start of a line or
after a blank starts a comment. Lines end with LF or CRLF.

Deliberately left out: wildcards, port ranges, URLs, and names of one label, which the original
egress router refused too. Nothing is resolved. Each line is parsed on its own and all problems are
reported together, `MAX_PROBLEMS` of them in full. The work is linear in the text, which may have
`MAX_OCTETS`; `parse_destinations_in_slices` lets the event loop run in between.

An address that `policy` denies is refused where the administrator wrote it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from egress_proxy.config import known_mistakes
from egress_proxy.config.address_policy import DEFAULT_POLICY, AddressPolicy, cure_for
from egress_proxy.config.host_names import parse_name
from egress_proxy.config.run_variables import ADMIN_LISTEN
from egress_proxy.config.variables import RefusedError
from egress_proxy.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.ip import Address

MAX_OCTETS = 1 << 20
FORM = "<port> <host> [<remote port>]"
# How many problems are reported in full: more do not help, and they must fit into a log line.
MAX_PROBLEMS = 100
# The event loop gets its turn after this time; the clock is read once per this many lines, because
# most lines take 2 microseconds and an internationalised name may take 200.
_SLICE_S = 0.001
_LINES_PER_LOOK = 16


@dataclass(frozen=True, slots=True)
class Destination:
    """One forwarded port.

    `port` is listened on; `host` is an address, or a DNS name in ASCII; `remote_port` is connected
    to; `line` is where the administrator wrote it, counted from 1. A name keeps its trailing dot,
    because it is then never looked up below a search domain; the text of a destination leaves it
    out.
    """

    port: int
    host: Address | str
    remote_port: int
    line: int

    def __str__(self) -> str:
        if isinstance(self.host, ipaddress.IPv6Address):
            return f"[{self.host}]:{self.remote_port}"
        host = self.host.removesuffix(".") if isinstance(self.host, str) else self.host
        return f"{host}:{self.remote_port}"


def parse_destinations(
    text: str,
    *,
    variable: str,
    policy: AddressPolicy = DEFAULT_POLICY,
    admin_port: int | None = None,
) -> tuple[Destination, ...]:
    """The destinations in `text`, at least one, in their order.

    Raises `ConfigurationError` with a problem for each wrong line; `variable` is the environment
    variable that the problems name. `admin_port` is taken, and no destination may use it.
    """
    parsing = _Parsing(text, variable, policy, admin_port)
    for number, line in numbered_lines(text):
        parsing.take(number, line)
    return parsing.result()


async def parse_destinations_in_slices(
    text: str,
    *,
    variable: str,
    policy: AddressPolicy = DEFAULT_POLICY,
    admin_port: int | None = None,
) -> tuple[Destination, ...]:
    """`parse_destinations` for a running event loop, which is never blocked for long."""
    parsing = _Parsing(text, variable, policy, admin_port)
    began = perf_counter()
    for number, line in numbered_lines(text):
        if number % _LINES_PER_LOOK == 0 and perf_counter() - began > _SLICE_S:
            await asyncio.sleep(0)
            began = perf_counter()
        parsing.take(number, line)
    return parsing.result()


class _Parsing:
    """The destinations and the problems of the lines so far. Raises as `parse_destinations`."""

    def __init__(
        self, text: str, variable: str, policy: AddressPolicy, admin_port: int | None
    ) -> None:
        refuse_long(text, variable)
        self._text = text
        self._variable = variable
        self._policy = policy
        self._admin_port = admin_port
        self._by_port: dict[int, Destination] = {}
        self._problems: list[Problem] = []
        self._more = 0

    def take(self, number: int, line: str) -> None:
        try:
            destination = _parse_line(line, number, self._policy)
            if destination is not None:
                self._claim_port(destination)
        except RefusedError as error:
            if len(self._problems) == MAX_PROBLEMS:
                self._more += 1
                return
            better = known_mistakes.in_line(line) or error
            self._problems.append(better.problem(self._variable, line=number))

    def _claim_port(self, destination: Destination) -> None:
        if destination.port == self._admin_port:
            raise RefusedError(
                "health and metrics are on this port",
                f"use another port, or set {ADMIN_LISTEN.name}",
                str(destination.port),
            )
        first = self._by_port.setdefault(destination.port, destination)
        if first is not destination:
            raise RefusedError(
                f"line {first.line} already uses this listening port",
                "use a listening port once",
                str(destination.port),
            )

    def result(self) -> tuple[Destination, ...]:
        if not self._by_port and not self._problems:
            better = known_mistakes.in_text_without_destination(self._text)
            error = better or RefusedError("no destination", f"write one per line: {FORM}")
            self._problems.append(error.problem(self._variable))
        if self._more:
            self._problems.append(
                Problem(variable=self._variable, reason=f"and {self._more} more problems")
            )
        if self._problems:
            raise ConfigurationError(*self._problems)
        return tuple(self._by_port.values())


def refuse_long(text: str, variable: str) -> None:
    """Raise `ConfigurationError` when `text` has more than `MAX_OCTETS`."""
    # Octets that are no UTF-8 stand in the text as one lone surrogate each (PEP 383).
    if len(text.encode(errors="replace")) > MAX_OCTETS:
        raise ConfigurationError(
            Problem(
                variable=variable,
                reason=f"longer than {MAX_OCTETS} octets",
                cure="split the destinations over several pods",
            )
        )


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of `text` without their ends, counted from 1."""
    # Windows editors begin a file with a byte order mark.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _parse_line(line: str, number: int, policy: AddressPolicy) -> Destination | None:
    fields = split_fields(line)
    if not fields:
        return None
    if not 2 <= len(fields) <= 3:  # noqa: PLR2004 - the grammar has two or three fields
        raise RefusedError(
            "a destination has two or three fields",
            f"write {FORM}, separated by spaces or tabs",
            # Only these two: a character that looks like a blank must stay visible.
            line.strip(" \t"),
        )
    port = parse_port(fields[0], "the listening port")
    host = _parse_host(fields[1], policy)
    remote_port = parse_port(fields[2], "the remote port") if len(fields) > 2 else port  # noqa: PLR2004 - said above
    return Destination(port, host, remote_port, number)


def split_fields(line: str) -> list[str]:
    """The fields before a comment; only space and tab separate them, no other blank of Unicode."""
    fields = []
    for field in line.replace("\t", " ").split(" "):
        if field.startswith("#"):
            break
        if field:
            fields.append(field)
    return fields


def parse_port(field: str, what: str) -> int:
    """The port number in `field`; `what` names the field in the reason of a `RefusedError`."""
    if not (field.isascii() and field.isdigit()):
        raise RefusedError(f"{what} is not a number", "write it in decimal digits", field)
    # Six digits are enough to judge a port, and keep int() linear in the text.
    if not 1 <= int(field[:6]) <= 65535:  # noqa: PLR2004 - the last port
        raise RefusedError(f"{what} is out of range", "use 1 to 65535", field)
    if field.startswith("0"):
        raise RefusedError(f"{what} has a leading zero", "remove the zero", field)
    return int(field)


def _parse_host(field: str, policy: AddressPolicy) -> Address | str:
    address = parse_literal(field, policy)
    return parse_name(field) if address is None else address


def parse_literal(field: str, policy: AddressPolicy) -> Address | None:
    """The address in `field`, or None when it holds none. Raises `RefusedError` if it is denied."""
    _refuse_lookalikes(field)
    try:
        address = ipaddress.ip_address(field)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise RefusedError("an address with a scope", "remove the % and what follows", field)
    reason = policy.why_denied(address)
    if reason:
        raise RefusedError(f"{reason} is never connected to", cure_for(reason), field)
    return address


def _refuse_lookalikes(field: str) -> None:
    """Refuse what is not a host, each with the cure for that mistake."""
    if known_mistakes.NETWORK.fullmatch(field):
        raise RefusedError("a network is not a host", "write the address of one host", field)
    if "/" in field:
        raise RefusedError("a URL or path is not a host", "write only the host", field)
    if "*" in field:
        raise RefusedError("wildcards are not supported", "write one line per host", field)
    if field.startswith("["):
        raise RefusedError(
            "brackets around the host", "write the IPv6 address without brackets", field
        )
    if "#" in field:
        raise RefusedError("a '#' inside a field", "put a space before a comment", field)
    if field.count(":") == 1:
        raise RefusedError(
            "a port joined to the host", "write the remote port as the third field", field
        )
