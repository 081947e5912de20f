"""What keeps `egress-proxy run` from working in this pod, with the cure of each problem.

`preconditions` is pure, and `run` and `check` both call it: `check` never accepts what `run`
refuses. The grammar refuses what is wrong in the text alone; this is about the pod: its addresses,
its limits, and what the kernel says about a port.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.config.address_policy import cure_for
from egress_proxy.config.run_variables import ADMIN_LISTEN, LISTEN, SOURCE
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.ip import family_of
from egress_proxy.pod.address_monitor import choose_listen_points, choose_sources
from egress_proxy.pod.addresses import ListenPoint
from egress_proxy.pod.descriptors import share_descriptors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from egress_proxy.config.address_policy import AddressPolicy
    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.ip import Address
    from egress_proxy.pod.facts import Pod

_BIND_CURES = {
    errno.EADDRINUSE: "another process of the pod listens there: use another port",
    errno.EACCES: (
        "set the sysctl net.ipv4.ip_unprivileged_port_start to 0 in the pod's securityContext, "
        "or use a port from 1024 on"
    ),
}


def preconditions(settings: Settings, pod: Pod) -> list[Problem]:
    """Everything in `pod` that keeps `run` from starting, except ports that can't be bound."""
    problems: list[Problem] = []
    sources: Collection[int] = ()
    try:
        sources = choose_sources(settings, pod)
    except PlatformError as error:
        problems += error.problems
    policy = policy_in(settings, pod)
    for destination in settings.destinations:
        problems += destination_problems(settings.destinations_from, destination, sources, policy)
    points = choose_listen_points(settings, pod.inside(settings.interface))
    listeners = len(settings.destinations) * len(points)
    try:
        share_descriptors(pod.descriptors, listeners, settings.max_relayed)
    except PlatformError as error:
        problems += error.problems
    return problems


def policy_in(settings: Settings, pod: Pod) -> AddressPolicy:
    """The administrator's policy, and what the pod itself adds."""
    ports = {destination.port for destination in settings.destinations}
    if settings.admin_listen is not None:
        ports.add(settings.admin_listen.port)
    own = frozenset(address for entries in pod.interfaces.values() for address in entries)
    return replace(
        settings.address_policy, own=own, reserved=pod.reserved, listening=frozenset(ports)
    )


def destination_problems(
    variable: str, destination: Destination, sources: Collection[int], policy: AddressPolicy
) -> list[Problem]:
    """Why nothing can connect to `destination`, which `variable` asks for.

    `sources` are the families that have a source address; without any, the kernel chooses. The
    addresses of a name are checked later, with every answer.
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
                cure=cure_for(reason),
            )
        )
    return problems


class Listener:
    """A port that is asked for: by which variable, on which line, and where."""

    def __init__(
        self, variable: str, value: str, port: int, point: ListenPoint, line: int | None = None
    ) -> None:
        self.variable = variable
        self.value = value
        self.port = port
        self.point = point
        self.line = line

    def try_to_bind(self) -> OSError | None:
        """Why the port can't be bound now; it is closed again at once."""
        try:
            self.point.bind(self.port).close()
        except OSError as error:
            return error
        return None

    def problem(self, error: OSError) -> Problem:
        return bind_problem(self.variable, self.value, self.point.address, error, line=self.line)


def listeners(settings: Settings, pod: Pod) -> Iterator[Listener]:
    """Every port that `run` binds: the admin port, and those of the destinations."""
    inside = pod.inside(settings.interface)
    if settings.admin_listen is not None:
        address, port = settings.admin_listen
        for point in inside if address is None else (ListenPoint(address, ""),):
            yield Listener(ADMIN_LISTEN.name, str(settings.admin_listen), port, point)
    for destination in settings.destinations:
        for point in choose_listen_points(settings, inside):
            yield Listener(
                settings.destinations_from,
                str(destination.port),
                destination.port,
                point,
                destination.line,
            )


def find_problems(settings: Settings, pod: Pod) -> list[Problem]:
    """All that keeps `run` from starting, reported together.

    Ports are tried only when something else is wrong: `run` binds them next, and reports them.
    """
    problems = preconditions(settings, pod)
    if problems:
        for listener in listeners(settings, pod):
            error = listener.try_to_bind()
            if error is not None:
                problems.append(listener.problem(error))
    return problems


def bind_problem(
    variable: str, value: str, address: Address, error: OSError, *, line: int | None = None
) -> Problem:
    """Why the port in `value`, which `variable` asks for, can't be bound at `address`."""
    cure = _BIND_CURES.get(error.errno or 0, "")
    if error.errno == errno.EADDRNOTAVAIL:
        # Only an address that the administrator wrote can be missing.
        cure = f"the pod has no such address: correct {_written_in(variable)}"
    return Problem(
        variable=variable,
        line=line,
        value=value,
        reason=f"can't listen on {address}: {error.strerror}",
        cure=cure,
    )


def _written_in(variable: str) -> str:
    return variable if variable == ADMIN_LISTEN.name else LISTEN.name
