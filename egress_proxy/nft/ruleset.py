"""Destinations and addresses become a table. Pure.

Three base chains. `prerouting` translates the destination of new flows to the pod's own addresses,
unless they come in over the egress interface. `postrouting` translates their source. `forward` lets
through what the first has translated, towards the egress interface and back, and drops everything
else: the pod never acts as a router, even if other packets are routed to it and its sysctls allow
forwarding. One transaction puts all three in place, so that nothing leaves with a client's address.

A flow keeps the translation that its first packet got (conntrack), so flows outlive a change of the
table. What `prerouting` does not translate arrives at the pod itself, where nothing listens: TCP
clients get a RST, others an ICMP error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from egress_proxy.nft.conntrack import PROTOCOLS
from egress_proxy.nft.table import Chain, Declaration, Table, elements, quote_interface

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.config.redirects import Protocol
    from egress_proxy.ip import Address
    from egress_proxy.nft.conntrack import Flow

# How nft names the families.
_NFT_FAMILY = {4: "ip", 6: "ip6"}


@dataclass(frozen=True, slots=True)
class Translation:
    """New flows of `protocol` to `port` go to `addresses` in turn, all at `remote_port`.

    A flow goes to an address of its own family only.
    """

    protocol: Protocol
    port: int
    addresses: tuple[Address, ...]
    remote_port: int

    @property
    def chain(self) -> str:
        return f"{self.protocol}_{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """What the kernel translates and forwards.

    `sources` are what remotes see, one for each family at most; `fallback` is where everything goes
    that no translation names.
    """

    egress: str
    sources: tuple[Address, ...]
    translations: tuple[Translation, ...]
    fallback: Address | None = None

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions of all translations."""
        targets = [address for entry in self.translations for address in entry.addresses]
        if self.fallback is not None:
            targets.append(self.fallback)
        return frozenset(address.version for address in targets)

    def table(self) -> Table:
        """Raises ValueError where nft can't name the egress interface."""
        egress = quote_interface(self.egress)
        return Table(
            declarations=tuple(
                Declaration(
                    "map",
                    _map(protocol),
                    (
                        "type inet_service : verdict",
                        *elements(
                            f"{entry.port} : goto {entry.chain}"
                            for entry in self.translations
                            if entry.protocol == protocol
                        ),
                    ),
                )
                for protocol in self._protocols
            ),
            chains=(
                *(Chain(entry.chain, tuple(_rules(entry))) for entry in self.translations),
                Chain(
                    "prerouting",
                    tuple(self._prerouting(egress)),
                    "type nat hook prerouting priority dstnat; policy accept;",
                ),
                Chain(
                    "forward",
                    (
                        f"ct status dnat ct direction original oifname {egress} accept",
                        f"ct status dnat ct direction reply iifname {egress} accept",
                        # A rule in addition to the policy: when a table is replaced, all rules
                        # change at one instant, but for a moment no policy is in force
                        # (nf_tables_commit).
                        "drop",
                    ),
                    "type filter hook forward priority filter; policy drop;",
                ),
                Chain(
                    "postrouting",
                    tuple(
                        f"oifname {egress} ct status dnat snat {_to(source)}"
                        for source in self.sources
                    ),
                    "type nat hook postrouting priority srcnat; policy accept;",
                ),
            ),
        )

    def misses(self, flow: Flow) -> bool:
        """Whether the rules would translate `flow`, a new one, and have not."""
        if flow.translated:
            return False
        ports = {(PROTOCOLS[entry.protocol], entry.port) for entry in self.translations}
        return self.fallback is not None or (flow.protocol, flow.port) in ports

    @property
    def _protocols(self) -> tuple[Protocol, ...]:
        return tuple(dict.fromkeys(entry.protocol for entry in self.translations))

    def _prerouting(self, egress: str) -> Iterator[str]:
        yield f"iifname {egress} return"
        # Only packets to an address of the interface; all others would be routed through the pod.
        yield "fib daddr . iif type != local return"
        for protocol in self._protocols:
            # One look-up for any number of ports.
            yield f"{protocol} dport vmap @{_map(protocol)}"
        if self.fallback is not None:
            yield f"dnat {_to(self.fallback)}"


def _map(protocol: Protocol) -> str:
    # A map for each, because nft reads the names of protocols in maps from /etc/protocols.
    return f"{protocol}_ports"


def _rules(entry: Translation) -> Iterator[str]:
    match = f"{entry.protocol} dport {entry.port} dnat"
    for version, family in _NFT_FAMILY.items():
        addresses = [address for address in entry.addresses if address.version == version]
        if len(addresses) == 1:
            yield f"{match} {_to(addresses[0], entry.remote_port)}"
        elif addresses:
            numbered = ", ".join(
                f"{number} : {address} . {entry.remote_port}"
                for number, address in enumerate(addresses)
            )
            yield f"{match} {family} to numgen inc mod {len(addresses)} map {{ {numbered} }}"


def _to(address: Address, port: int | None = None) -> str:
    family = _NFT_FAMILY[address.version]
    if port is None:
        return f"{family} to {address}"
    bracketed = f"[{address}]" if family == "ip6" else str(address)
    return f"{family} to {bracketed}:{port}"
