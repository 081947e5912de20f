"""Switches forwarding on, for the data plane that is the kernel, and off again.

Clients' packets come in over the pod network and leave over the egress interface. What must be let
through, and nothing else, is up to the rules that are there before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egress_proxy.pod import devconf

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

# RFC 3704 section 2.4: accept a packet whose source is reachable over any interface. The strict
# filter would expect what a client sends on the egress interface. The kernel applies the higher of
# this and net.ipv4.conf.all.rp_filter, and 2 is the highest.
_LOOSE = 2


class Forwarding:
    """Forwarding of some IP versions between all interfaces, the loopback one left out."""

    def __init__(self, interfaces: Iterable[str], egress: str, versions: Collection[int]) -> None:
        self._interfaces = [name for name in interfaces if name != "lo"]
        self._egress = egress
        self._versions = versions
        self._undo: list[Callable[[], None]] = []

    @property
    def stuck(self) -> bool:
        """Whether IPv6 does not forward, and can't be made to: /proc/sys is read-only."""
        return self._ipv6_is_off and not devconf.ipv6_forwarding_writable()

    @property
    def _ipv6_is_off(self) -> bool:
        return 6 in self._versions and not devconf.read(6, "all", "forwarding")  # noqa: PLR2004 - IPv6

    def switch_on(self) -> None:
        """Raises OSError, and `switch_off` is due then."""
        if 4 in self._versions:  # noqa: PLR2004 - IPv4
            for name in self._interfaces:
                self._set_ipv4(name, "forwarding", 1)
                if name != self._egress:
                    self._set_ipv4(name, "rp_filter", _LOOSE)
        if self._ipv6_is_off:
            devconf.set_ipv6_forwarding(1)
            self._undo.append(lambda: devconf.set_ipv6_forwarding(0))

    def switch_off(self) -> None:
        """Undo what `switch_on` changed, last first. Raises OSError."""
        while self._undo:
            self._undo.pop()()

    def _set_ipv4(self, interface: str, name: str, value: int) -> None:
        before = devconf.read(4, interface, name)
        if before != value:
            devconf.set_ipv4(interface, name, value)
            self._undo.append(lambda: devconf.set_ipv4(interface, name, before))
