"""One destination: listen, resolve, connect, splice, record.

A client's way through this room:

1. `Listener.accept` takes the client out of the backlog and hands it to `Forwarder.serve`;
2. a `Connection` owns it from here to its record: it asks `Upstreams` for the destination's
   addresses in the order of their rotation,
3. lets a `Race` connect to them, until one socket is connected,
4. starts a `Relay`, which moves octets until an ending is due,
5. and emits the one `ConnectionClosed`.

Names are resolved elsewhere (`dns`), which calls `Forwarder.set_addresses`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from egress_proxy.forwarding.connection import Connection, Origin
from egress_proxy.forwarding.upstreams import Upstreams
from egress_proxy.ip import family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.forwarding.connection import SessionLimits
    from egress_proxy.forwarding.data_plane import DataPlane
    from egress_proxy.forwarding.plane import Port
    from egress_proxy.ip import Address

_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})


class Forwarder:
    """Forwards the clients of `listener` to `destination`.

    `addresses` are the destination's. The port accepts clients while one of them is of a family
    that there is a source address for, and refuses them otherwise.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        limits: SessionLimits,
        destination: Destination,
        listener: Port,
        families: Container[int] = _FAMILIES,
    ) -> None:
        """Take `listener` over from an earlier forwarder of its port, if it had one.

        Its clients come here, those in the backlog included. It stays open or closed as it is
        until the first `set_addresses`.
        """
        self.destination = destination
        self.name = str(destination)
        self.listener = listener
        self.origin = Origin(
            data_plane=data_plane,
            destination=destination,
            name=self.name,
            limits=limits,
            upstreams=Upstreams(self.name, destination.remote_port, data_plane.observer),
            gate=listener,
        )
        self.addresses: tuple[Address, ...] = ()
        self._families = families
        listener.lead_to(self.origin, self.serve)

    @property
    def port(self) -> int:
        return self.destination.port

    @property
    def remote_port(self) -> int:
        return self.destination.remote_port

    @property
    def upstreams(self) -> Upstreams:
        return self.origin.upstreams

    @property
    def on_all_failed(self) -> Callable[[], None]:
        """Called when no address answered a client."""
        return self.origin.on_all_failed

    @on_all_failed.setter
    def on_all_failed(self, call: Callable[[], None]) -> None:
        self.origin.on_all_failed = call

    def serve(self, client: socket.SocketType, client_address: Sequence[object]) -> None:
        """Connect a client that was accepted, and relay."""
        Connection(self.origin, client, client_address).begin()

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Connect to `addresses` from now on; the first ones open the port."""
        self.addresses = tuple(addresses)
        self._adjust()

    def reach(self, families: Container[int]) -> None:
        """Connect only to addresses of `families`: those that there is a source address for."""
        self._families = families
        self._adjust()

    def _adjust(self) -> None:
        usable = [address for address in self.addresses if family_of(address) in self._families]
        self.upstreams.replace(usable)
        if usable:
            self.listener.open()
        else:
            self.listener.refuse()

    def close(self) -> None:
        """Close the port; established connections go on."""
        self.listener.close()
