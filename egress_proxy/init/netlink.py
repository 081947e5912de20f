"""The kernel's side of init: observe, make one change, wait for events. Only this uses pyroute2.

The high-level objects of pyroute2 (NDB) are not used: they keep a copy of the kernel's state that
can differ from it. Each change is exactly one message, so that init can only be interrupted between
the steps of a plan.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from egress_proxy.init import devconf
from egress_proxy.init.messages import (
    FAMILIES,
    SCOPE_NOWHERE,
    address_fields,
    is_wanted,
    read_address,
    read_link,
    read_route,
    read_rules,
    route_fields,
    rule_fields,
)
from egress_proxy.init.state import State
from egress_proxy.init.steps import (
    DropAddress,
    DropRoute,
    DropRule,
    PutAddress,
    PutRoute,
    PutRule,
    PutTable,
    RestoreTable,
    SetLink,
    SetSysctl,
)
from egress_proxy.nft import command

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from egress_proxy.init.steps import Change

T = TypeVar("T")

# RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR: changes of links and addresses.
_NEWS = 0x1 | 0x10 | 0x100

# How often a dump is repeated that the kernel marks as inconsistent.
_DUMPS = 5


class Netlink:
    """A netlink socket of the network namespace that this process is in."""

    def __init__(self) -> None:
        # For clear errors: the kernel's own text, and no field is silently ignored.
        self._ip = IPRoute(ext_ack=True, strict_check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ip.close()

    def observe(self) -> State:
        """Links, addresses, routes and rules as they are now. Raises OSError."""
        for _ in range(_DUMPS):
            try:
                return self._observe()
            except NetlinkDumpInterrupted:
                continue
            except NetlinkError as error:
                raise OSError(error.code, _text(error)) from None
        raise InterruptedError("the network changes faster than it can be read")

    def _observe(self) -> State:
        links = tuple(map(read_link, self._ip.get_links()))
        names = {link.index: link.name for link in links}
        families = FAMILIES.values()
        return State(
            links=links,
            addresses=tuple(read_address(message, names) for message in self._ip.get_addr()),
            routes=tuple(
                read_route(message, names)
                for family in families
                for message in self._ip.get_routes(family=family)
                if is_wanted(message)
            ),
            rules=tuple(
                rule
                for family in families
                for message in self._ip.get_rules(family=family)
                for rule in read_rules(message)
            ),
        )

    def apply(self, change: Change) -> None:
        """Make one change, with one message. Raises OSError with the kernel's reason."""
        try:
            self._apply(change)
        except NetlinkError as error:
            raise OSError(error.code, _text(error)) from None

    def _apply(self, change: Change) -> None:
        match change:
            case SetLink(interface, up):
                self._ip.link(
                    "set", index=socket.if_nametoindex(interface), state="up" if up else "down"
                )
            case PutAddress(assigned):
                # Not replace: an address that another program has added is not ours to remove.
                self._ip.addr("add", **address_fields(assigned))
            case DropAddress(assigned):
                self._ip.addr("del", **address_fields(assigned))
            case PutRoute(route):
                self._ip.route("replace", **route_fields(route))
            case DropRoute(route):
                self._ip.route("del", **route_fields(route) | {"scope": SCOPE_NOWHERE})
            case PutRule(rule):
                self._ip.rule("add", **rule_fields(rule))
            case DropRule(rule):
                self._ip.rule("del", **rule_fields(rule))
            case SetSysctl():
                devconf.set_sysctl(change)
            case PutTable() | RestoreTable():
                command.commit(change.transaction)

    def wait(self, check: Callable[[State], T | None], timeout_s: float) -> T | None:
        """The first result of `check` that is not None, as links and addresses change.

        None when `timeout_s` have passed. Raises OSError.
        """
        deadline = time.monotonic() + timeout_s
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as news:
            # Before the first look, so that nothing is missed between the two.
            news.bind((0, _NEWS))
            while True:
                result = check(self.observe())
                left_s = deadline - time.monotonic()
                if result is not None or left_s <= 0:
                    return result
                if select.select([news], [], [], left_s)[0]:
                    # `observe` reads what has changed, also after an overrun (ENOBUFS).
                    with suppress(OSError):
                        news.recv(1 << 16)


def _text(error: NetlinkError) -> str:
    return str(error.args[1])
