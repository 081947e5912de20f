"""An nftables table as a frozen value, with the texts that nft(8) knows for it.

`Table.listing` is what ``nft -f`` reads and what ``nft -s list table`` prints, in the same words,
so that what is in the kernel can be compared with what is wanted. `Table.commands` is the same, one
nft(8) command per line, for people. `Table.changes` leads from another table to this one.

Trust boundary: nothing here is quoted. The maker of a table puts in numbers, addresses and names of
its own, and an interface's name only after `quote_interface`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The family that sees IPv4 and IPv6; NAT in it takes Linux 5.2.
FAMILY = "inet"
NAME = "egress_proxy"
_TABLE = f"{FAMILY} {NAME}"

# nft reads a '*' at the end as "any name that begins so", and knows no way to quote a '"'.
_INTERFACE = re.compile(r"[A-Za-z0-9._@-]{1,15}", re.ASCII)


def quote_interface(name: str) -> str:
    """The interface's name as a word of nft. Raises ValueError where nft can't name it."""
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
    """A named object other than a chain: `kind` is map, set, counter or ct timeout.

    Those of a map or set have `elements`; what is before `` : `` is the key.
    """

    kind: str
    name: str
    body: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()

    @property
    def block(self) -> tuple[str, ...]:
        if not self.elements:
            return self.body
        return (*self.body, f"elements = {{ {', '.join(self.elements)} }}")


@dataclass(frozen=True, slots=True)
class Table:
    """Our table. The order is that of nft's listings, which name maps before chains."""

    declarations: tuple[Declaration, ...]
    chains: tuple[Chain, ...]

    def listing(self) -> str:
        lines = [f"table {_TABLE} {{"]
        for declaration in self.declarations:
            lines += _block(f"{declaration.kind} {declaration.name}", declaration.block)
        for chain in self.chains:
            lines += _block(f"chain {chain.name}", chain.block)
        return "\n".join([*lines, "}", ""])

    def transaction(self) -> str:
        """What replaces the table with this one, or makes it, for one ``nft -f``."""
        # Adding what is there changes nothing, and makes the deletion good in any case.
        return f"add table {_TABLE}\n{DELETION}{self.listing()}"

    def changes(self, before: Table) -> str:
        """What makes `before` this table, for one ``nft -f``; empty when they are the same.

        Counters go on counting. Only chains without a hook, counters and elements may differ.
        """
        return "".join(f"{line}\n" for line in _changes(before, self))

    def commands(self) -> Iterator[str]:
        """One command per line that makes the table where there is none."""
        yield f"nft add table {_TABLE}"
        # A map's elements name chains, and a chain's rules name maps.
        for chain in self.chains:
            hook = f" '{{ {chain.hook} }}'" if chain.hook else ""
            yield f"nft add chain {_TABLE} {chain.name}{hook}"
        for declaration in self.declarations:
            body = f" '{{ {'; '.join(declaration.block)}; }}'" if declaration.block else ""
            yield f"nft add {declaration.kind} {_TABLE} {declaration.name}{body}"
        for chain in self.chains:
            for rule in chain.rules:
                yield f"nft add rule {_TABLE} {chain.name} '{rule}'"


DELETION = f"delete table {_TABLE}\n"


_BLOCKS = re.compile(r"\t\S[^\n]*\{\n(?:\t\t[^\n]*\n)*\t\}")


def same(listing: str, other: str) -> bool:
    """Whether two listings describe the same table.

    The kernel keeps elements in an order of its own, and nft breaks lines between them. Chains and
    objects are in the order in which they were added. How nft prints the policy of a ct timeout
    differs from version to version.
    """
    return _normal(listing) == _normal(other)


def _normal(listing: str) -> list[str]:
    return sorted(map(_normal_block, _BLOCKS.findall(listing)))


def _normal_block(block: str) -> str:
    words = re.sub(r"policy = \{[^{}]*\}", "", " ".join(block.split()))
    return " ".join(re.sub(r"\{ ([^{}]*) \}", lambda found: _sorted(found[1]), words).split())


def _sorted(entries: str) -> str:
    return "{ " + ", ".join(sorted(entries.split(", "))) + " }"


def _block(title: str, body: tuple[str, ...]) -> Iterator[str]:
    yield f"\t{title} {{"
    yield from (f"\t\t{line}" for line in body)
    yield "\t}"


def _changes(before: Table, after: Table) -> Iterator[str]:
    """In an order in which nothing is used that is not there yet, or gone already."""
    old_chains = {chain.name: chain for chain in before.chains}
    new_chains = {chain.name: chain for chain in after.chains}
    old_objects = {entry.name: entry for entry in before.declarations}
    new_objects = {entry.name: entry for entry in after.declarations}
    for name in _added(old_objects, new_objects):
        yield f"add {new_objects[name].kind} {_TABLE} {name}"
    for name in _added(old_chains, new_chains):
        yield f"add chain {_TABLE} {name}"
    for name, chain in new_chains.items():
        if old_chains.get(name) != chain:
            yield f"flush chain {_TABLE} {name}"
            yield from (f"add rule {_TABLE} {name} {rule}" for rule in chain.rules)
    for name, entry in new_objects.items():
        known = old_objects.get(name)
        had = dict.fromkeys(known.elements if known else ())
        has = dict.fromkeys(entry.elements)
        yield from _elements("delete", name, (_key(each) for each in had if each not in has))
        yield from _elements("add", name, (each for each in has if each not in had))
    for name in _added(new_chains, old_chains):
        yield f"flush chain {_TABLE} {name}"
        yield f"delete chain {_TABLE} {name}"
    for name in _added(new_objects, old_objects):
        yield f"delete {old_objects[name].kind} {_TABLE} {name}"


def _added(before: Iterable[str], after: Iterable[str]) -> list[str]:
    known = set(before)
    return [name for name in after if name not in known]


def _elements(verb: str, name: str, entries: Iterable[str]) -> Iterator[str]:
    joined = ", ".join(entries)
    if joined:
        yield f"{verb} element {_TABLE} {name} {{ {joined} }}"


def _key(element: str) -> str:
    return element.partition(" : ")[0]
