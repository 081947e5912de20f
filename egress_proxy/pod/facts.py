"""What the pod is like when a command starts: read once, then passed on as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem
from egress_proxy.pod import addresses, descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from egress_proxy.ip import Address
    from egress_proxy.pod.addresses import Interfaces, InterfaceState, ListenPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod's interfaces, and the limits of this process in it.

    `autoconfigured` are addresses from router advertisements; `reserved` are the network and
    broadcast addresses of the pod's networks; `listens_by_device` says whether a socket may be
    bound to an interface; `descriptors` is the limit of open files.
    """

    interfaces: Interfaces
    autoconfigured: frozenset[Address]
    reserved: frozenset[Address]
    listens_by_device: bool
    descriptors: int

    def inside(self, egress_interface: str) -> tuple[ListenPoint, ...]:
        """Where the cluster reaches the pod, and the LAN does not."""
        return addresses.listen_points(
            self.interfaces, egress_interface, by_device=self.listens_by_device
        )


def read_pod(
    read_interface_state: Callable[[], InterfaceState] = addresses.read_interface_state,
) -> Pod:
    """The pod as it is now; raises the limit of open files. Raises `PlatformError`."""
    try:
        state = read_interface_state()
        return Pod(
            interfaces=state.interfaces,
            autoconfigured=addresses.read_autoconfigured_addresses(),
            reserved=state.reserved,
            listens_by_device=addresses.can_listen_by_device(),
            descriptors=descriptors.raise_descriptor_limit(),
        )
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        hidden = error.filename and isinstance(error, FileNotFoundError | PermissionError)
        raise PlatformError(
            Problem(
                reason=f"can't read the pod's interfaces: {what}",
                cure="mount /proc in the container" if hidden else "",
            )
        ) from None
