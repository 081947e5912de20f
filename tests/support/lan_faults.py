"""What goes wrong on the LAN of `two_nodes`: a foreign owner, a gateway that dies, a split."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from egress_proxy.lan.frames import ETH_P_ARP, probe
from tests.support.network import Namespace
from tests.support.two_nodes import GATEWAY, RESERVED, TwoNodes

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_BROADCAST = b"\xff" * 6


def put_reserved(namespace: Namespace, interface: str) -> None:
    """Give the interface the reserved IPv4 address."""
    index = namespace.index(interface)

    def put(ip: IPRoute) -> None:
        ip.addr("add", index=index, address=RESERVED.v4, prefixlen=25)

    namespace.netlink(put)


class Stranger(ExitStack):
    """A host on the LAN that knows nothing of the pods."""

    def __init__(self, nodes: TwoNodes) -> None:
        super().__init__()
        self._namespace = Namespace("stranger")
        self.callback(self._namespace.close)
        nodes._plug(nodes.switch, "stranger", self._namespace, "lan0")
        self._namespace.configure("lan0")
        self._sock = self.enter_context(
            self._namespace.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        )
        self._sock.bind(("lan0", ETH_P_ARP))
        self._mac: bytes = self._sock.getsockname()[4]

    @property
    def mac(self) -> str:
        return self._mac.hex(":")

    def take(self) -> None:
        """Have the reserved IPv4 address; nothing is announced."""
        put_reserved(self._namespace, "lan0")

    def claim(self) -> None:
        """Announce it, as a kernel does with a new address (RFC 5227 section 2.3)."""
        frame = probe(bytes(6), RESERVED.interface4.ip)
        payload = frame.payload[:8] + self._mac + RESERVED.interface4.ip.packed
        self._send(payload + frame.payload[18:], _BROADCAST)

    def probe(self) -> None:
        """Ask for it without claiming it."""
        frame = probe(self._mac, RESERVED.interface4.ip)
        self._send(frame.payload, frame.destination)

    def give_up(self) -> None:
        """Have it no longer."""
        index = self._namespace.index("lan0")
        self._namespace.netlink(
            lambda ip: ip.addr("del", index=index, address=RESERVED.v4, prefixlen=25)
        )

    def _send(self, payload: bytes, destination: bytes) -> None:
        self._sock.sendto(payload, ("lan0", ETH_P_ARP, 0, 0, destination))


def set_gateway(nodes: TwoNodes, *, up: bool) -> None:
    state = "up" if up else "down"
    nodes.gateway.netlink(lambda ip: ip.link("set", ifname="lan0", state=state))


class OtherSide:
    """A second LAN with a gateway of its own, to which a node's cable can be moved."""

    def __init__(self, nodes: TwoNodes) -> None:
        self._switch = nodes.switch
        gateway = Namespace("gateway of the other side")
        nodes.callback(gateway.close)
        nodes._bridge(nodes.switch, "br1", "02:00:00:00:00:fc")
        nodes.switch.join("gateway2", gateway, "lan0")
        self._move("gateway2", "br1")
        gateway.configure("lan0", GATEWAY)

    def split(self, name: str) -> None:
        """Move the node of the pod `name` to the other side."""
        self._move(f"node-{name}", "br1")

    def heal(self, name: str) -> None:
        """Move it back."""
        self._move(f"node-{name}", "br0")

    def _move(self, port: str, bridge: str) -> None:
        index, master = self._switch.index(port), self._switch.index(bridge)
        self._switch.netlink(lambda ip: ip.link("set", index=index, master=master, state="up"))
