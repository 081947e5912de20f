"""The environment of `egress-proxy run` as one frozen value, or all of its problems together."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from egress_proxy.config import destinations, files, known_mistakes, variables
from egress_proxy.config import run_variables as environment
from egress_proxy.config.address_policy import AddressPolicy
from egress_proxy.config.run_variables import ADMIN_LISTEN, DESTINATION, DESTINATION_FILE
from egress_proxy.config.sources import SOURCE as RESERVED
from egress_proxy.errors import ConfigurationError, PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.run_variables import (
        AdminListen,
        DataPlaneName,
        LoggedConnections,
    )
    from egress_proxy.config.variables import LogFormat, Variable
    from egress_proxy.ip import Address, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `run` does. Durations are in seconds."""

    destinations: tuple[Destination, ...]
    # The name of the variable that they come from.
    destinations_from: str
    debug: bool
    log_connections: LoggedConnections
    log_format: LogFormat
    interface: str
    source: Literal["auto", "any"] | tuple[Address, ...]
    # The source address is there only while `hold` has it.
    shared: bool
    listen: Literal["auto"] | tuple[Address, ...]
    allow_clients: tuple[Network, ...]
    connect_timeout_s: float
    idle_timeout_s: float
    half_close_timeout_s: float
    drain_timeout_s: float
    removed_timeout_s: float
    max_connections: int | None
    nameservers: tuple[str, ...]
    stale_timeout_s: float
    deny: tuple[Network, ...]
    health_interval_s: float
    withdrawn_timeout_s: float
    dataplane: DataPlaneName
    admin_listen: AdminListen | None
    admin_sessions: bool
    # Names, for people; the node's is empty where the pod spec does not give it.
    pod: str
    node: str

    @property
    def max_relayed(self) -> int | None:
        """The maximum of the connections that take descriptors of the daemon; None: not given."""
        return self.max_connections if self.dataplane == "splice" else None

    @property
    def address_policy(self) -> AddressPolicy:
        """The administrator's part of the policy; the pod's addresses are not in it."""
        return AddressPolicy(loopback_allowed=self.source == "any", networks=self.deny)


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Everything `run` needs from `environ`, and from the file it may name.

    Raises `ConfigurationError` with all problems.
    """
    reader = variables.Reader(environ)
    shared = reader.read(variables.HA)
    source = _read_shared_source(reader) if shared else reader.read(environment.SOURCE)
    deny = reader.read(environment.DENY)
    admin_listen = reader.read(ADMIN_LISTEN)
    # A wrong DENY is a problem already; the other rules still apply to the destinations.
    policy = AddressPolicy(loopback_allowed=source == "any", networks=deny or ())
    try:
        found = read_destinations(environ, policy=policy, admin_listen=admin_listen)
    except ConfigurationError as error:
        reader.problems.extend(error.problems)
        found = ()
    settings = Settings(
        destinations=found,
        destinations_from=destinations_from(environ).name,
        debug=reader.read(environment.DEBUG),
        log_connections=reader.read(environment.LOG_CONNECTIONS),
        log_format=reader.read(variables.LOG_FORMAT),
        interface=reader.read(variables.INTERFACE),
        source=source,
        shared=shared,
        listen=reader.read(environment.LISTEN),
        allow_clients=reader.read(environment.ALLOW_CLIENTS),
        connect_timeout_s=reader.read(environment.CONNECT_TIMEOUT),
        idle_timeout_s=reader.read(environment.IDLE_TIMEOUT),
        half_close_timeout_s=reader.read(environment.HALF_CLOSE_TIMEOUT),
        drain_timeout_s=reader.read(environment.DRAIN_TIMEOUT),
        removed_timeout_s=reader.read(environment.REMOVED_TIMEOUT),
        max_connections=reader.read(environment.MAX_CONNECTIONS),
        nameservers=reader.read(environment.NAMESERVERS),
        stale_timeout_s=reader.read(environment.STALE_TIMEOUT),
        deny=deny,
        health_interval_s=reader.read(environment.HEALTH_INTERVAL),
        withdrawn_timeout_s=reader.read(environment.WITHDRAWN_TIMEOUT),
        dataplane=reader.read(environment.DATAPLANE),
        admin_listen=admin_listen,
        admin_sessions=reader.read(environment.ADMIN_SESSIONS),
        pod=_pod_name(environ),
        node=environ.get("NODE_NAME", ""),
    )
    reader.raise_problems()
    return settings


def _read_shared_source(reader: variables.Reader) -> Literal["auto"] | tuple[Address, ...]:
    """What `hold` takes, unless the administrator names addresses; "auto" where it is wrong."""
    source = reader.read(environment.SOURCE)
    if source == "any":
        reader.problems.append(
            Problem(
                variable=environment.SOURCE.name,
                value=source,
                reason=f"with {variables.HA.name} remote hosts have to see the reserved address",
                cure="remove it",
            )
        )
        return "auto"
    if source != "auto":
        return source
    reserved = reader.read_required(RESERVED)
    return tuple(address for address, _ in reserved or ())


def _pod_name(environ: Mapping[str, str]) -> str:
    """NAMESPACE/NAME by the downward API, or the host name, which is the pod's in Kubernetes."""
    namespace, name = environ.get("POD_NAMESPACE", ""), environ.get("POD_NAME", "")
    return f"{namespace}/{name}" if namespace and name else name or socket.gethostname()


def destinations_from(environ: Mapping[str, str]) -> Variable[str]:
    """The variable that the destinations come from."""
    return DESTINATION_FILE if environ.get(DESTINATION_FILE.name, "").strip() else DESTINATION


def read_destinations(
    environ: Mapping[str, str], *, policy: AddressPolicy, admin_listen: AdminListen | None
) -> tuple[Destination, ...]:
    """The destinations, from the variable or the file. Raises `ConfigurationError`."""
    source = _Source(environ)
    text = source.text
    if source.path:
        try:
            text = source.decode(files.in_time(source.read))
        except OSError as error:
            raise source.unreadable(error) from None
    return destinations.parse_destinations(
        text, variable=source.variable.name, policy=policy, admin_port=_port(admin_listen)
    )


async def reread_destinations(
    environ: Mapping[str, str],
    off_loop: files.OffLoop,
    *,
    policy: AddressPolicy,
    admin_listen: AdminListen | None,
) -> tuple[Destination, ...]:
    """`read_destinations` for a running event loop, which is never blocked for long.

    Raises `ConfigurationError`, and `PlatformError` when the file can't be read.
    """
    source = _Source(environ)
    text = source.text
    if source.path:
        try:
            text = source.decode(await off_loop.call(source.read))
        except OSError as error:
            # The text may be correct: it is read again.
            raise PlatformError(*source.unreadable(error).problems) from None
    return await destinations.parse_destinations_in_slices(
        text, variable=source.variable.name, policy=policy, admin_port=_port(admin_listen)
    )


def _port(admin_listen: AdminListen | None) -> int | None:
    return None if admin_listen is None else admin_listen.port


class _Source:
    """Where the destinations come from. Raises `ConfigurationError` when both variables are set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.variable = destinations_from(environ)
        self.text = environ.get(DESTINATION.name, "")
        self.path = environ.get(DESTINATION_FILE.name, "").strip()
        if self.path and self.text.strip():
            raise self._problem(f"{DESTINATION.name} is set too", "unset one of the two")

    def read(self) -> bytes:
        """The file's octets. Raises `OSError`; blocks as long as the file system does."""
        # One octet more than is allowed is enough to refuse the file.
        return files.read_file(self.path, destinations.MAX_OCTETS + 1)

    def decode(self, found: bytes) -> str:
        mistake = known_mistakes.in_file(found)
        if mistake is not None:
            raise self._problem(mistake.reason, mistake.cure)
        return found.decode("utf-8", "surrogateescape")

    def unreadable(self, error: OSError) -> ConfigurationError:
        # Out of descriptors or threads: nothing is wrong with the file.
        exhausted = error.errno in {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
        cure = "" if exhausted else "check the volume's mount"
        return self._problem(f"can't read the file: {error.strerror}", cure)

    def _problem(self, reason: str, cure: str) -> ConfigurationError:
        return ConfigurationError(
            Problem(variable=self.variable.name, value=self.path, reason=reason, cure=cure)
        )
