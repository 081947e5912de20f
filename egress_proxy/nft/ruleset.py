"""Destinations and addresses become a table. Pure.

Three base chains. `prerouting` translates the destination of new flows to the pod's own addresses,
unless they come in over the egress interface. `postrouting` translates their source. `forward` lets
through what the first has translated, towards the egress interface and back, and drops everything
else: the pod is no router, whatever is routed to it and whatever its sysctls say. One transaction
puts all three in place, so that nothing leaves with a client's address.

A flow keeps the translation that its first packet got (conntrack), so flows outlive a change of the
table. What `prerouting` does not translate arrives at the pod itself, where nothing listens: TCP
clients get a RST, others an ICMP error. So a port without an address, a client that is not allowed
and one beyond the maximum need no rule that refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from egress_proxy.nft.conntrack import PROTOCOLS
from egress_proxy.nft.session_rules import (
    NFT_FAMILY,
    accounting,
    listening,
    timeouts,
)
from egress_proxy.nft.table import Chain, Declaration, Table, quote_interface

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.config.redirects import Protocol
    from egress_proxy.ip import Address, Network
    from egress_proxy.nft.conntrack import Flow
    from egress_proxy.nft.session_rules import SessionRules

# The names of counters begin so; the port and the mark follow.
_PACKETS_UP, _PACKETS_DOWN, _NEW = "up", "down", "new"


@dataclass(frozen=True, slots=True)
class Translation:
    """New flows of `protocol` to `port` go to `addresses` in turn, all at `remote_port`.

    A flow goes to an address of its own family only; without `addresses` new ones are refused. For
    the daemon it gets `mark`, and if it is `watched`, the kernel also tells when an upstream has
    answered.
    """

    protocol: Protocol
    port: int
    addresses: tuple[Address, ...]
    remote_port: int
    mark: int = 0
    watched: bool = False

    @property
    def chain(self) -> str:
        return f"{self.protocol}_{self.port}"

    def counter(self, kind: str) -> str:
        """The name of one of its counters; `kind` is what it begins with."""
        return f"{kind}_{self.port}_{self.mark:08x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """What the kernel is to do.

    `sources` are what remotes see, one for each family at most; `fallback` is where everything goes
    that no translation names. With `sessions` each translation has three counters: of new sessions,
    and of the packets towards its upstreams and back.
    """

    egress: str
    sources: tuple[Address, ...]
    translations: tuple[Translation, ...]
    fallback: Address | None = None
    sessions: SessionRules | None = None

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions that something is translated in."""
        targets = [address for entry in self.translations for address in entry.addresses]
        if self.fallback is not None:
            targets.append(self.fallback)
        return frozenset(address.version for address in targets)

    def table(self) -> Table:
        """Raises ValueError where nft can't name the egress interface."""
        egress = quote_interface(self.egress)
        return Table(
            declarations=tuple(self._declarations()),
            chains=(
                *(
                    Chain(entry.chain, tuple(self._rules(entry)))
                    for entry in self.translations
                    if entry.addresses
                ),
                *([Chain("admitted", tuple(self._admitted()))] if self._some_clients else []),
                Chain(
                    "prerouting",
                    tuple(self._prerouting(egress)),
                    "type nat hook prerouting priority dstnat; policy accept;",
                ),
                Chain(
                    "forward",
                    tuple(self._forward(egress)),
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
        return self.fallback is not None or (flow.protocol, flow.target.port) in ports

    @property
    def _protocols(self) -> tuple[Protocol, ...]:
        if self.sessions is not None:
            # The map is there before the first port is.
            return ("tcp",)
        return tuple(dict.fromkeys(entry.protocol for entry in self.translations))

    def _declarations(self) -> Iterator[Declaration]:
        if self.sessions is not None:
            for kind in (_PACKETS_DOWN, _NEW, _PACKETS_UP):
                for entry in self.translations:
                    yield Declaration("counter", entry.counter(kind))
            for version, family in NFT_FAMILY.items():
                yield timeouts(f"sessions{version}", family, self.sessions)
        for protocol in self._protocols:
            # A map for each, because nft reads the names of protocols in maps from /etc/protocols.
            yield Declaration(
                "map",
                f"{protocol}_ports",
                ("type inet_service : verdict",),
                tuple(
                    f"{entry.port} : goto {entry.chain}"
                    for entry in self.translations
                    if entry.protocol == protocol and entry.addresses
                ),
            )
        if self.sessions is not None:
            for direction in (_PACKETS_DOWN, _PACKETS_UP):
                yield Declaration(
                    "map",
                    direction,
                    ("type mark : counter",),
                    tuple(
                        f'{_mark(entry)} : "{entry.counter(direction)}"'
                        for entry in self.translations
                    ),
                )

    def _rules(self, entry: Translation) -> Iterator[str]:
        if self.sessions is not None:
            events = "destroy,assured" if entry.watched else "destroy"
            if self.sessions.recorded:
                events = "new,destroy,protoinfo"
            counter = f'counter name "{entry.counter(_NEW)}"'
            yield f"{counter} ct mark set {_mark(entry)} ct event set {events}"
        match = f"{entry.protocol} dport {entry.port} dnat"
        for version, family in NFT_FAMILY.items():
            addresses = [address for address in entry.addresses if address.version == version]
            if len(addresses) == 1:
                yield f"{match} {_to(addresses[0], entry.remote_port)}"
            elif addresses:
                numbered = ", ".join(
                    f"{number} : {address} . {entry.remote_port}"
                    for number, address in enumerate(addresses)
                )
                yield f"{match} {family} to numgen inc mod {len(addresses)} map {{ {numbered} }}"

    def _prerouting(self, egress: str) -> Iterator[str]:
        yield f"iifname {egress} return"
        # The address must be that of the interface: anything else would be routed, not for us.
        yield "fib daddr . iif type != local return"
        if self.sessions is not None:
            yield "meta l4proto != tcp return"
            yield from listening(self.sessions.listen)
        if self._some_clients:
            # A rule for each: nft would list a set of them as it likes, with neighbours merged.
            yield from (
                f"{_family(each)} saddr {_network(each)} goto admitted"
                for each in self._some_clients
            )
        else:
            yield from self._admitted()

    @property
    def _some_clients(self) -> tuple[Network, ...]:
        return () if self.sessions is None else self.sessions.clients

    def _admitted(self) -> Iterator[str]:
        """What happens to a new flow that may pass."""
        if self.sessions is not None:
            yield from accounting(self.sessions)
        for protocol in self._protocols:
            # One look-up, however many ports there are.
            yield f"{protocol} dport vmap @{protocol}_ports"
        if self.fallback is not None:
            yield f"dnat {_to(self.fallback)}"

    def _forward(self, egress: str) -> Iterator[str]:
        directions = (("original", "oifname", _PACKETS_UP), ("reply", "iifname", _PACKETS_DOWN))
        for direction, side, counters in directions:
            match = f"ct status dnat ct direction {direction} {side} {egress}"
            if self.sessions is not None:
                # One rule for nearly all packets; those of a removed destination are not counted.
                yield f"{match} counter name ct mark map @{counters} accept"
            yield f"{match} accept"
        # As a rule too: when a table is replaced, rules change at one instant, but for a moment no
        # policy is in force (nf_tables_commit).
        yield "drop"


def _network(network: Network) -> str:
    """As nft lists it: without a length where that is all bits."""
    alone = network.prefixlen == network.max_prefixlen
    return str(network.network_address if alone else network)


def _family(entry: Address | Network) -> str:
    return NFT_FAMILY[entry.version]


def _mark(entry: Translation) -> str:
    """As nft lists it."""
    return f"0x{entry.mark:08x}"


def _to(address: Address, port: int | None = None) -> str:
    family = _family(address)
    if port is None:
        return f"{family} to {address}"
    bracketed = f"[{address}]" if family == "ip6" else str(address)
    return f"{family} to {bracketed}:{port}"
