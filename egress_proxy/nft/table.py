"""An nftables table as a frozen value, and its two text forms for nft(8).

`Table.listing` is what ``nft -f`` reads and what ``nft -s list table`` prints, in the same words,
so that what is in the kernel can be compared with what is wanted. `Table.commands` is the same, one
nft(8) command per line, for people.

Trust boundary: nothing here is quoted. A table must be built only from numbers, addresses and
constant names; the name of an interface must pass `quote_interface` first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# The family that sees IPv4 and IPv6; NAT in it takes Linux 5.2.
FAMILY = "inet"
NAME = "egress_proxy"

# nft reads a '*' at the end as a wildcard, and can't quote a '"'.
_INTERFACE = re.compile(r"[A-Za-z0-9._@-]{1,15}", re.ASCII)


def quote_interface(name: str) -> str:
    """The interface's name, quoted for nft. Raises ValueError if nft can't express it."""
    if not _INTERFACE.fullmatch(name):
        raise ValueError(name)
    return f'"{name}"'


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in their order; `hook` says where a base chain is called, in nft's words."""

    name: str
    rules: tuple[str, ...]
    hook: str = ""

    @property
    def block(self) -> tuple[str, ...]:
        return ((self.hook,) if self.hook else ()) + self.rules


@dataclass(frozen=True, slots=True)
class Declaration:
    """A named object other than a chain: `kind` is map, set, counter or ct timeout."""

    kind: str
    name: str
    block: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Our table. The order is that of nft's listings, which name maps before chains."""

    declarations: tuple[Declaration, ...]
    chains: tuple[Chain, ...]

    def listing(self) -> str:
        lines = [f"table {FAMILY} {NAME} {{"]
        for declaration in self.declarations:
            lines += _block(f"{declaration.kind} {declaration.name}", declaration.block)
        for chain in self.chains:
            lines += _block(f"chain {chain.name}", chain.block)
        return "\n".join([*lines, "}", ""])

    def transaction(self) -> str:
        """The text for one ``nft -f`` that replaces the table, or creates it."""
        # Adding a table that exists changes nothing; it makes the deletion succeed in any case.
        return f"add table {FAMILY} {NAME}\n{DELETION}{self.listing()}"

    def commands(self) -> Iterator[str]:
        """One command per line; together they create the table."""
        yield f"nft add table {FAMILY} {NAME}"
        # A map's elements name chains, and a chain's rules name maps.
        for chain in self.chains:
            hook = f" '{{ {chain.hook} }}'" if chain.hook else ""
            yield f"nft add chain {FAMILY} {NAME} {chain.name}{hook}"
        for declaration in self.declarations:
            body = "; ".join(declaration.block)
            yield f"nft add {declaration.kind} {FAMILY} {NAME} {declaration.name} '{{ {body}; }}'"
        for chain in self.chains:
            for rule in chain.rules:
                yield f"nft add rule {FAMILY} {NAME} {chain.name} '{rule}'"


DELETION = f"delete table {FAMILY} {NAME}\n"


def elements(entries: Iterator[str]) -> tuple[str, ...]:
    """The line with the elements of a map or set; none at all when there is no element."""
    joined = ", ".join(entries)
    return (f"elements = {{ {joined} }}",) if joined else ()


def same(listing: str, other: str) -> bool:
    """Whether two listings describe the same table.

    The kernel keeps elements in an order of its own, and nft breaks lines between them.
    """
    return _normal(listing) == _normal(other)


def _normal(listing: str) -> str:
    words = " ".join(listing.split())
    return re.sub(r"\{ ([^{}]*) \}", lambda found: _sorted(found[1]), words)


def _sorted(entries: str) -> str:
    return "{ " + ", ".join(sorted(entries.split(", "))) + " }"


def _block(title: str, body: tuple[str, ...]) -> Iterator[str]:
    yield f"\t{title} {{"
    yield from (f"\t\t{line}" for line in body)
    yield "\t}"
