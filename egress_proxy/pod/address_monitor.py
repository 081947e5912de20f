"""Watches the pod's addresses, in particular the source addresses.

Every upstream socket is bound to the reserved address, so that nothing is ever sent from another
one. When that address or its interface goes away or comes back, rtnetlink(7) wakes
`AddressMonitor`, which then reads all addresses itself.

The pod may get more addresses while it runs (another attachment, IPv6 by advertisement).
`on_addresses_changed` reports them, because a destination must not lead back to the pod.
"""

from __future__ import annotations

import socket
from itertools import chain
from typing import TYPE_CHECKING

from egress_proxy.config.run_variables import SOURCE
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.events import Observer, SourceLost, SourceRestored
from egress_proxy.ip import family_of
from egress_proxy.pod import addresses
from egress_proxy.telemetry.status import Source

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from egress_proxy.config.settings import Settings
    from egress_proxy.ip import Address
    from egress_proxy.pod.addresses import Interfaces, InterfaceState, ListenPoint
    from egress_proxy.pod.facts import Pod

    ReadState = Callable[[], InterfaceState]
    ReadDeprecated = Callable[[], frozenset[Address]]

# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
_GROUPS = 0x1 | 0x10 | 0x100
# Only the fact that a message came is used; a longer one is cut.
_MESSAGE = 4096
# The pause before the state is read again after a failure.
_RETRY_S = 1.0


class AddressMonitor:
    """Watches `sources` (by family; empty: the kernel chooses).

    `read_deprecated` is given if the sources come and go (high availability). Then `families` has
    the family of every source, present or not, and `usable` says whether all sources are there; a
    deprecated source is about to be removed and does not count.

    `on_change` is called when a source becomes usable or unusable; `on_addresses_changed` with all
    addresses of the pod, at the start and whenever they or `reserved` change.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sources: dict[int, str],
        observer: Observer,
        read_interface_state: ReadState = addresses.read_interface_state,
        read_deprecated: ReadDeprecated | None = None,
    ) -> None:
        self._loop = loop
        self._sources = sources
        self._observer = observer
        self._read = read_interface_state
        self._read_deprecated = read_deprecated
        self._problems = dict.fromkeys(
            sources.values(), "" if read_deprecated is None else "not looked for yet"
        )
        self._own: frozenset[Address] = frozenset()
        # The network and broadcast addresses of the pod's networks.
        self.reserved: frozenset[Address] = frozenset()
        self._events: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self.on_change: Callable[[], None] | None = None
        self.on_addresses_changed: Callable[[frozenset[Address]], None] | None = None

    @property
    def families(self) -> frozenset[int]:
        """The address families that have a usable source address now."""
        if not self._sources:
            return frozenset({socket.AF_INET, socket.AF_INET6})
        if self._read_deprecated is not None:
            return frozenset(self._sources)
        return frozenset(
            family for family, address in self._sources.items() if not self._problems[address]
        )

    @property
    def usable(self) -> bool:
        """Whether every source is there."""
        return not any(self._problems.values())

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(
            Source(address=address, problem=problem) for address, problem in self._problems.items()
        )

    def start(self) -> None:
        """Start to watch; a change since the sources were chosen is reported at once."""
        self._events = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._events.bind((0, _GROUPS))
        self._loop.add_reader(self._events.fileno(), self._changed, self._events)
        self.refresh()

    def stop(self) -> None:
        if self._events is not None:
            self._loop.remove_reader(self._events.fileno())
            self._events.close()
            self._events = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _changed(self, events: socket.socket) -> None:
        try:
            while True:
                events.recv(_MESSAGE)
        except BlockingIOError:
            pass
        except OSError:
            # ENOBUFS: messages were lost. Reading the state makes up for them.
            pass
        self._refresh_or_retry()

    def _refresh_or_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        try:
            self.refresh()
        except OSError:
            # Out of descriptors, for example. There may be no further message, so a timer tries
            # again.
            self._retry = self._loop.call_later(_RETRY_S, self._refresh_or_retry)

    def refresh(self) -> None:
        """Read the state and report what has changed. Raises `OSError` when reading fails."""
        interfaces, down, reserved = self._read()
        own = frozenset(chain.from_iterable(interfaces.values()))
        # Another netmask changes only `reserved`.
        if (own, reserved) != (self._own, self.reserved):
            self._own, self.reserved = own, reserved
            if self.on_addresses_changed is not None:
                self.on_addresses_changed(own)
        before = self._problems
        deprecated = frozenset() if self._read_deprecated is None else self._read_deprecated()
        going = frozenset(map(str, deprecated))
        self._problems = {
            address: _problem(address, interfaces, down, going)
            for address in self._sources.values()
        }
        if self._problems == before:
            return
        for address, problem in self._problems.items():
            if problem and not before[address]:
                self._observer.observe(SourceLost(address=address, error=problem))
            elif before[address] and not problem:
                self._observer.observe(SourceRestored(address=address))
        if self.on_change is not None:
            self.on_change()


def _problem(
    address: str, interfaces: Interfaces, down: frozenset[str], going: frozenset[str]
) -> str:
    """Why `address` can't be used as a source; empty when it can."""
    holders = [name for name, held in interfaces.items() if address in map(str, held)]
    if not holders:
        return "no interface has it"
    if down.issuperset(holders):
        return f"interface {holders[0]} is down"
    if address in going:
        return "it is being given to another pod"
    return ""


def choose_sources(settings: Settings, pod: Pod) -> dict[int, str]:
    """The source address of each family; empty when the kernel chooses.

    Raises `PlatformError` when a configured address is not on the pod.
    """
    if settings.source == "any":
        return {}
    if settings.source == "auto":
        chosen = addresses.source_addresses(
            pod.interfaces, settings.interface, SOURCE.name, pod.autoconfigured
        )
    elif settings.shared:
        chosen = settings.source
    else:
        chosen = settings.source
        present = {address for entries in pod.interfaces.values() for address in entries}
        missing = [address for address in chosen if address not in present]
        if missing:
            raise PlatformError(
                *(
                    Problem(
                        variable=SOURCE.name,
                        value=str(address),
                        reason="no interface of the pod has this address",
                        cure="check that init has run, or correct the address",
                    )
                    for address in missing
                )
            )
    return {family_of(address): str(address) for address in chosen}


def choose_listen_points(
    settings: Settings, inside: tuple[ListenPoint, ...]
) -> tuple[ListenPoint, ...]:
    """Where to listen for clients: `inside`, the pod network, unless LISTEN names addresses."""
    if settings.listen == "auto":
        return inside
    return tuple(addresses.ListenPoint(address, "") for address in settings.listen)


def families_to_ask_for(sources: Mapping[int, str], interfaces: Interfaces) -> set[int]:
    """The address families to look up: those that have a source address."""
    if sources:
        return set(sources)
    # The kernel chooses the source; it has an IPv6 one if any interface has.
    versions = {
        address.version
        for entries in interfaces.values()
        for address in entries
        if not (address.is_loopback or address.is_link_local)
    }
    return {socket.AF_INET} | ({socket.AF_INET6} if 6 in versions else set())  # noqa: PLR2004 - IPv6
