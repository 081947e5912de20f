"""What init can change: each change is one message to the kernel, and another one undoes it.

The text of a change is the command of ip(8) or sysctl(8) that would do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from egress_proxy.init.state import IPV6
from egress_proxy.nft.table import DELETION

if TYPE_CHECKING:
    from egress_proxy.init.state import InterfaceAddress, Route, Rule
    from egress_proxy.nft.table import Table


@dataclass(frozen=True, slots=True)
class SetLink:
    interface: str
    up: bool

    def __str__(self) -> str:
        return f"ip link set {self.interface} {'up' if self.up else 'down'}"


@dataclass(frozen=True, slots=True)
class PutAddress:
    assigned: InterfaceAddress

    def __str__(self) -> str:
        return f"ip address add {self.assigned}"


@dataclass(frozen=True, slots=True)
class DropAddress:
    assigned: InterfaceAddress

    def __str__(self) -> str:
        return f"ip address del {self.assigned}"


@dataclass(frozen=True, slots=True)
class PutRoute:
    """Put a route in its slot; it replaces the one that was there in the same instant."""

    route: Route

    def __str__(self) -> str:
        return f"{_ip(self.route.version)} route replace {self.route}"


@dataclass(frozen=True, slots=True)
class DropRoute:
    route: Route

    def __str__(self) -> str:
        return f"{_ip(self.route.version)} route del {self.route}"


@dataclass(frozen=True, slots=True)
class PutRule:
    rule: Rule

    def __str__(self) -> str:
        return f"{_ip(self.rule.version)} rule add {self.rule}"


@dataclass(frozen=True, slots=True)
class DropRule:
    rule: Rule

    def __str__(self) -> str:
        return f"{_ip(self.rule.version)} rule del {self.rule}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """A setting of one interface; `tree` is its folder in /proc/sys/net, such as ``ipv6/conf``."""

    tree: str
    interface: str
    name: str
    value: int

    def __str__(self) -> str:
        key = f"{self.tree}/{self.interface}/{self.name}"
        # sysctl(8) takes slashes too, for the sake of interfaces with a dot in their name.
        key = key if "." in self.interface else key.replace("/", ".")
        return f"sysctl -w net{'/' if '/' in key else '.'}{key}={self.value}"


@dataclass(frozen=True, slots=True)
class PutTable:
    """Put our nftables table in its place, in one transaction; its text has a line per command."""

    table: Table
    replaces: bool

    @property
    def transaction(self) -> str:
        return self.table.transaction()

    def __str__(self) -> str:
        removal = [f"nft {DELETION.rstrip()}"] if self.replaces else []
        return "\n".join([*removal, *self.table.commands()])


@dataclass(frozen=True, slots=True)
class RestoreTable:
    """Put back the table of that listing; with an empty one, there was none."""

    listing: str

    @property
    def transaction(self) -> str:
        return DELETION + self.listing

    def __str__(self) -> str:
        return f"nft {DELETION.rstrip()}" + (" and restore what was there" if self.listing else "")


Change: TypeAlias = (
    SetLink
    | PutAddress
    | DropAddress
    | PutRoute
    | DropRoute
    | PutRule
    | DropRule
    | SetSysctl
    | PutTable
    | RestoreTable
)


@dataclass(frozen=True, slots=True)
class Step:
    """A change, and the one that restores what was there before."""

    change: Change
    undo: Change

    def __str__(self) -> str:
        return str(self.change)


def sysctl_steps(
    tree: str, interface: str, name: str, *, before: int, wanted: int
) -> tuple[Step, ...]:
    """The step from `before` to `wanted`, if they differ."""
    if before == wanted:
        return ()
    return (
        Step(SetSysctl(tree, interface, name, wanted), SetSysctl(tree, interface, name, before)),
    )


def _ip(version: int) -> str:
    return "ip -6" if version == IPV6 else "ip"
