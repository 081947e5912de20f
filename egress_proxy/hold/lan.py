"""The LAN side of `hold`: probes for the addresses, announces them, and receives claims of them.

Trust boundary: any host on the LAN may send anything. The kernel lets only frames about the
reserved addresses and the gateways through (`filters`), `frames` accepts only well-formed ones, and
a batch is bounded, so that no host can block the event loop.
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from egress_proxy.hold.messages import Claimed, GatewayHeard
from egress_proxy.lan.filters import advertisement_filter, arp_filter, attach
from egress_proxy.lan.frames import (
    ETH_P_ARP,
    ETH_P_IPV6,
    announcements,
    parse,
    probe,
    question,
)
from egress_proxy.lan.packet_sockets import open_packet_socket

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from egress_proxy.config.sources import Source
    from egress_proxy.hold.messages import Input
    from egress_proxy.ip import Address
    from egress_proxy.lan.frames import Frame

T = TypeVar("T")

# linux/if_addr.h: IFA_F_TENTATIVE and IFA_F_DADFAILED.
_UNSETTLED = 0x40 | 0x08

# A packet that says anything about addresses is far shorter.
_LONGEST = 2048
# Frames that are read before the event loop has its turn again.
_BATCH = 64


class Lan:
    """The LAN that `interface` is on, whose own Ethernet address is `mac`.

    `hear` is called with each claim of a reserved address, and each frame of a gateway.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interface: str,
        mac: bytes,
        sources: Sequence[Source],
        hear: Callable[[Input], None],
    ) -> None:
        self._loop = loop
        self._interface = interface
        self._mac = mac
        self._sources = sources
        self._hear = hear
        self._addresses = frozenset(source.address for source in sources)
        self._gateways = frozenset(source.gateway for source in sources)
        self._sockets: dict[int, socket.socket] = {}
        self._open = ExitStack()

    def start(self) -> None:
        """Receive from now on. Raises OSError, for example without NET_RAW."""
        asked = self._addresses | self._gateways
        programs = {
            ETH_P_ARP: (IPv4Address, arp_filter(_only(IPv4Address, asked))),
            ETH_P_IPV6: (IPv6Address, advertisement_filter(_only(IPv6Address, asked))),
        }
        for ethertype, (kind, program) in programs.items():
            if not any(isinstance(address, kind) for address in self._addresses):
                continue
            sock = self._open.enter_context(open_packet_socket(self._interface, ethertype))
            attach(sock, program)
            self._sockets[ethertype] = sock
            self._loop.add_reader(sock.fileno(), self._readable, sock)

    def stop(self) -> None:
        for sock in self._sockets.values():
            self._loop.remove_reader(sock.fileno())
        self._sockets.clear()
        self._open.close()

    def probe(self) -> bool:
        """Ask for the addresses without claiming them; False: it could not be sent.

        A solicitation from the unspecified address (RFC 4862 section 5.4.2) is IPv6's probe.
        """
        sent = [self._send(probe(self._mac, source.address)) for source in self._sources]
        return all(sent)

    def announce(self) -> None:
        for source in self._sources:
            for frame in announcements(self._mac, source.address):
                self._send(frame)

    def ask_gateways(self, *, owner: bool) -> None:
        """Ask for the gateways; `owner`: in the name of the reserved addresses.

        An ARP request is a broadcast, so an owner's request also shows all other hosts who has the
        address. The IPv6 request goes only to the gateway, so without an IPv4 address an
        advertisement is sent too.
        """
        if owner and ETH_P_ARP not in self._sockets:
            self.announce()
        for source in self._sources:
            if owner:
                frame = question(self._mac, source.address, source.gateway)
            elif isinstance(source.gateway, IPv4Address):
                frame = probe(self._mac, source.gateway)
            else:
                frame = self._ask_as_neighbour(source.gateway)
            self._send(frame)

    def _ask_as_neighbour(self, gateway: IPv6Address) -> Frame:
        own = _link_local_address(self._interface)
        # Without a source address it is duplicate address detection, which an owner answers too.
        return probe(self._mac, gateway) if own is None else question(self._mac, own, gateway)

    def _send(self, frame: Frame) -> bool:
        destination = (self._interface, frame.ethertype, 0, 0, frame.destination)
        try:
            self._sockets[frame.ethertype].sendto(frame.payload, destination)
        except OSError:
            # The interface is down, or its queue is full: treated as a lost frame.
            return False
        return True

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                payload, (_, ethertype, _, _, sender) = sock.recvfrom(_LONGEST)
            except OSError:
                # There are no more frames, or the interface has just gone down (reported once).
                return
            claim = parse(ethertype, sender, payload)
            if claim is None or claim.has is None or claim.mac == self._mac:
                continue
            if claim.has in self._addresses:
                self._hear(Claimed(claim.has, claim.mac.hex(":")))
            elif claim.has in self._gateways:
                self._hear(GatewayHeard(claim.has))


def _only(kind: type[T], addresses: Iterable[Address]) -> list[T]:
    return [address for address in addresses if isinstance(address, kind)]


def _link_local_address(
    interface: str, table: Path = Path("/proc/net/if_inet6")
) -> IPv6Address | None:
    """The interface's own link-local address, if it has one that is settled."""
    try:
        lines = table.read_text("ascii").splitlines()
    except FileNotFoundError:
        return None
    for address, _, _, _, flags, name in map(str.split, lines):
        found = IPv6Address(int(address, 16))
        if name == interface and found.is_link_local and not int(flags, 16) & _UNSETTLED:
            return found
    return None
