"""What stands in the way of a destination or of a port, told so that an admin can mend it; pure.

What the text alone shows is the grammar's to refuse; this is about the pod that it meets: the
addresses that it has, and what the kernel says.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from egress_proxy.config.run_variables import LISTEN, SOURCE
from egress_proxy.errors import Problem
from egress_proxy.ip import family_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from egress_proxy.config.address_policy import AddressPolicy
    from egress_proxy.config.destinations import Destination
    from egress_proxy.ip import Address

_BIND_CURES = {
    errno.EADDRINUSE: "another process of the pod listens there: use another port",
    errno.EADDRNOTAVAIL: f"the pod has no such address: correct {LISTEN.name}",
    errno.EACCES: (
        "let the pod's securityContext set the sysctl net.ipv4.ip_unprivileged_port_start to 0, "
        "or use a port from 1024"
    ),
}


def destination_problems(
    variable: str, destination: Destination, sources: Collection[int], policy: AddressPolicy
) -> list[Problem]:
    """Why nothing can connect to `destination`, which `variable` asks for.

    `sources` are the families that there is a source address of; with none the kernel chooses.
    What a name leads to is judged later, whenever it is asked for.
    """
    host = destination.host
    if isinstance(host, str):
        return []
    problems = []
    if sources and family_of(host) not in sources:
        problems.append(
            Problem(
                variable=variable,
                line=destination.line,
                value=str(host),
                reason=f"there is no IPv{host.version} source address to reach it from",
                cure=f"give the egress interface one, or set {SOURCE.name}",
            )
        )
    reason = policy.why_denied(host, (destination.remote_port,))
    if reason is not None:
        problems.append(
            Problem(
                variable=variable,
                line=destination.line,
                value=str(destination),
                reason=f"{reason} is never connected to",
                cure="write the remote host's own address",
            )
        )
    return problems


def bind_problem(
    variable: str, port: int, address: Address, error: OSError, *, line: int | None = None
) -> Problem:
    """Why `port`, which `variable` asks for, can't be had at `address`."""
    return Problem(
        variable=variable,
        line=line,
        value=str(port),
        reason=f"can't listen on {address}: {error.strerror}",
        cure=_BIND_CURES.get(error.errno or 0, "see the reason"),
    )
