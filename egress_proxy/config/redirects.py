"""The grammar of redirect mode: text from the admin becomes a `RedirectTable`, or problems.

One rule per line, ``<port> tcp|udp|sctp <address> [<remote port>]``; without the fourth field the
remote port is the local port. The last line may be ``<address>`` alone: the fallback, for all other
ports and protocols. Fields, comments and line ends are those of `destinations`, and so are the
addresses that are refused.

Deliberately not here: names, because nothing resolves them again once init has exited. Each line is
parsed on its own, and all problems are reported together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from egress_proxy.config.address_policy import DEFAULT_POLICY
from egress_proxy.config.destinations import (
    numbered_lines,
    parse_literal,
    parse_port,
    refuse_long,
    split_fields,
)
from egress_proxy.config.variables import RefusedError
from egress_proxy.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from egress_proxy.ip import Address

Protocol = Literal["tcp", "udp", "sctp"]

_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
_GRAMMAR = "<port> tcp|udp|sctp <address> [<remote port>]"
_RULE_FIELDS = (3, 4)


@dataclass(frozen=True, slots=True)
class Redirect:
    """What arrives on `port` is forwarded to `address` and `remote_port`; `line` counts from 1."""

    protocol: Protocol
    port: int
    address: Address
    remote_port: int
    line: int


@dataclass(frozen=True, slots=True)
class Fallback:
    """Everything that matches no `Redirect` is forwarded to `address`, to the same port."""

    address: Address
    line: int


@dataclass(frozen=True, slots=True)
class RedirectTable:
    """The rules in their order: at least one, or a fallback."""

    redirects: tuple[Redirect, ...]
    fallback: Fallback | None = None

    @property
    def entries(self) -> tuple[Redirect | Fallback, ...]:
        return self.redirects + (() if self.fallback is None else (self.fallback,))


def parse_redirects(text: str, *, variable: str) -> RedirectTable:
    """The rules in `text`.

    Raises `ConfigurationError` with a problem for each wrong line; `variable` is the environment
    variable to blame.
    """
    refuse_long(text, variable)
    problems: list[Problem] = []
    by_port: dict[tuple[Protocol, int], Redirect] = {}
    fallback: Fallback | None = None
    for number, line in numbered_lines(text):
        fields = split_fields(line)
        if not fields:
            continue
        try:
            entry = _parse_fields(fields, line, number)
            _refuse_after(fallback, line)
            if isinstance(entry, Fallback):
                fallback = entry
            else:
                _claim_port(entry, by_port)
        except RefusedError as error:
            problems.append(error.problem(variable, line=number))
    if not (by_port or fallback or problems):
        problems.append(
            Problem(
                variable=variable,
                reason="no rule",
                cure=f"write one per line: {_GRAMMAR}; or an address alone, for everything",
            )
        )
    if problems:
        raise ConfigurationError(*problems)
    return RedirectTable(tuple(by_port.values()), fallback)


def _parse_fields(fields: list[str], line: str, number: int) -> Redirect | Fallback:
    if len(fields) == 1:
        return Fallback(_parse_address(fields[0]), number)
    if len(fields) not in _RULE_FIELDS:
        raise RefusedError(
            "a rule has three or four fields, and a fallback is an address alone",
            f"write {_GRAMMAR}",
            line.strip(" \t"),
        )
    port = parse_port(fields[0], "the local port")
    protocol = _PROTOCOLS.get(fields[1].lower())
    if protocol is None:
        raise RefusedError("not a protocol", "write tcp, udp or sctp", fields[1])
    address = _parse_address(fields[2])
    remote_port = parse_port(fields[3], "the remote port") if fields[3:] else port
    return Redirect(protocol, port, address, remote_port, number)


def _parse_address(field: str) -> Address:
    address = parse_literal(field, DEFAULT_POLICY)
    if address is None:
        raise RefusedError(
            "not an address, and redirect mode takes no names",
            "write for example 192.0.2.10, or use the mode dns-proxy",
            field,
        )
    return address


def _refuse_after(fallback: Fallback | None, line: str) -> None:
    if fallback is not None:
        raise RefusedError(
            f"a line after the fallback on line {fallback.line}",
            "move the fallback to the end",
            line.strip(" \t"),
        )


def _claim_port(redirect: Redirect, by_port: dict[tuple[Protocol, int], Redirect]) -> None:
    first = by_port.setdefault((redirect.protocol, redirect.port), redirect)
    if first is not redirect:
        raise RefusedError(
            f"this {redirect.protocol} port is used on line {first.line} already",
            "give each line a port of its own",
            str(redirect.port),
        )
