"""The environment variables of `egress-proxy run`: each one's name, default, parser and meaning.

`settings` checks what depends on several of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from egress_proxy.config import variables
from egress_proxy.config.variables import RefusedError, Variable

if TYPE_CHECKING:
    from egress_proxy.ip import Address

DataPlaneName = Literal["splice", "kernel"]

_DATAPLANES: dict[str, DataPlaneName] = {"splice": "splice", "kernel": "kernel"}
_ENDPOINT = re.compile(r"(?:\[(?P<six>[^]]+)\]|(?P<four>[^:]*)):(?P<port>[0-9]{1,5})", re.ASCII)


LoggedConnections: TypeAlias = Literal["off", "failed", "all"]
_LOGGED_CONNECTIONS: dict[str, LoggedConnections] = {"off": "off", "failed": "failed", "all": "all"}


class AdminListen(NamedTuple):
    """Where health, metrics and status are served; without an address, on the pod network."""

    address: Address | None
    port: int

    def __str__(self) -> str:
        host = "" if self.address is None else str(self.address)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def _parse_text(text: str) -> str:
    return text


def _parse_source(text: str) -> Literal["auto", "any"] | tuple[Address, ...]:
    if text == "auto":
        return "auto"
    if text == "any":
        return "any"
    addresses = variables.parse_addresses(text, cure="write auto, any, or for example 192.0.2.10")
    if len({address.version for address in addresses}) != len(addresses):
        raise RefusedError("two addresses of one family", "write one IPv4, one IPv6, or both")
    for address in addresses:
        if address.is_unspecified or address.is_multicast:
            raise RefusedError("not a source address", "write the reserved address", str(address))
    return addresses


def _parse_listen(text: str) -> Literal["auto"] | tuple[Address, ...]:
    if text == "auto":
        return "auto"
    addresses = variables.parse_addresses(text, cure="write auto, or for example 192.0.2.10")
    for address in addresses:
        if addresses.count(address) > 1:
            raise RefusedError("the address occurs twice", "write it once", str(address))
        if address.is_unspecified and any(
            other.version == address.version and other != address for other in addresses
        ):
            raise RefusedError(
                "this means all addresses of its family",
                "remove the others of that family",
                str(address),
            )
    return addresses


def _parse_maximum(text: str) -> int | None:
    if text == "":
        return None
    # Nine digits: more connections than any kernel has descriptors for.
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 10**9):
        raise RefusedError("not a number above zero", "write for example 10000, or leave it out")
    return int(text)


def _parse_log_connections(text: str) -> LoggedConnections:
    if text not in _LOGGED_CONNECTIONS:
        raise RefusedError("not a choice of connections", "write off, failed or all")
    return _LOGGED_CONNECTIONS[text]


def _parse_dataplane(text: str) -> DataPlaneName:
    if text not in _DATAPLANES:
        raise RefusedError("not a data plane", "write splice or kernel")
    return _DATAPLANES[text]


def _parse_health_interval(text: str) -> float:
    interval_s = _parse_duration_or_off(text)
    if 0 < interval_s < 1:
        raise RefusedError("the checks would come too often", "write 1s or longer, or off")
    return interval_s


def _parse_duration_or_off(text: str) -> float:
    return 0.0 if text == "off" else variables.parse_duration(text)


def _parse_nameservers(text: str) -> tuple[str, ...]:
    return tuple(map(_parse_nameserver, variables.split_list(text))) if text else ()


def _parse_nameserver(entry: str) -> str:
    """``address``, ``address:port`` or ``[address]:port``, in the form that c-ares takes."""
    host, port = entry, ""
    if entry.startswith("["):
        host, closed, port = entry[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            raise RefusedError("not a name server", "write for example [2001:db8::53]:53", entry)
        port = port.removeprefix(":")
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    try:
        address = variables.parse_address(host)
    except RefusedError as error:
        raise RefusedError(error.reason, error.cure, entry) from None
    if not port:
        port = "53"
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):  # noqa: PLR2004 - ports
        raise RefusedError("not a port of a name server", "write a number from 1 to 65535", entry)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"  # noqa: PLR2004 - IPv6


def parse_admin_listen(text: str, port: int = 9153) -> AdminListen | None:
    """``off``, ``:port``, ``address:port`` or ``[address]:port``; `port` is for the cure."""
    if text == "off":
        return None
    cure = f"write :{port}, an address and a port such as 127.0.0.1:{port}, or off"
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:  # noqa: PLR2004 - ports
        raise RefusedError("not an address and a port", cure)
    host = match["six"] or match["four"]
    return AdminListen(
        variables.parse_address(host, cure=cure) if host else None, int(match["port"])
    )


DESTINATION = Variable(
    "EGRESS_DNS_PROXY_DESTINATION",
    None,
    _parse_text,
    "the destinations, one per line: <port> <host> [<remote port>]",
)
DESTINATION_FILE = Variable(
    "EGRESS_DNS_PROXY_DESTINATION_FILE",
    None,
    _parse_text,
    "a file with the destinations instead, reloaded when it changes",
)
DEBUG = Variable(
    "EGRESS_DNS_PROXY_DEBUG",
    "",
    variables.parse_flag,
    "on: a log record per connection and per DNS answer; off for empty, 0, false, no, off",
)
LOG_CONNECTIONS = Variable(
    "EGRESS_DNS_PROXY_LOG_CONNECTIONS",
    "off",
    _parse_log_connections,
    "off, failed or all: a log record per connection that fails, or per connection, without the "
    "other records of DEBUG, which means all",
)
SOURCE = Variable(
    "EGRESS_DNS_PROXY_SOURCE",
    "auto",
    _parse_source,
    "the address that remotes see: auto (the egress interface's), one IPv4 and/or one IPv6 "
    "address, or any (the kernel chooses: no reserved address, for a trial)",
)
LISTEN = Variable(
    "EGRESS_DNS_PROXY_LISTEN",
    "auto",
    _parse_listen,
    "addresses to listen on, comma list; auto: all of the pod's except the egress interface's, so "
    "that the LAN cannot use the pod as a relay",
)
ALLOW_CLIENTS = Variable(
    "EGRESS_DNS_PROXY_ALLOW_CLIENTS",
    "",
    variables.parse_networks,
    "networks of clients that may connect, comma list in CIDR form; empty: all",
)
CONNECT_TIMEOUT = Variable(
    "EGRESS_DNS_PROXY_CONNECT_TIMEOUT",
    "10s",
    variables.parse_positive_duration,
    "how long connecting for one client may take, all attempts together",
)
IDLE_TIMEOUT = Variable(
    "EGRESS_DNS_PROXY_IDLE_TIMEOUT",
    "1h",
    variables.parse_duration,
    "how long a connection may be without a byte in either direction; 0: no limit",
)
HALF_CLOSE_TIMEOUT = Variable(
    "EGRESS_DNS_PROXY_HALF_CLOSE_TIMEOUT",
    "5m",
    variables.parse_duration,
    "how long a connection may be without a byte once one side has finished; 0: no limit",
)
DRAIN_TIMEOUT = Variable(
    "EGRESS_DNS_PROXY_DRAIN_TIMEOUT",
    "25s",
    variables.parse_duration,
    "how long sessions may go on after SIGTERM; set terminationGracePeriodSeconds to 5 s more",
)
REMOVED_TIMEOUT = Variable(
    "EGRESS_DNS_PROXY_REMOVED_TIMEOUT",
    "0",
    variables.parse_duration,
    "how long sessions of a destination may go on once a reload has removed or changed it; "
    "0: no limit",
)
MAX_CONNECTIONS = Variable(
    "EGRESS_DNS_PROXY_MAX_CONNECTIONS",
    "",
    _parse_maximum,
    "the most client connections at a time; empty: as many as RLIMIT_NOFILE allows",
)
NAMESERVERS = Variable(
    "EGRESS_DNS_PROXY_NAMESERVERS",
    "",
    _parse_nameservers,
    "name servers, ip[:port] in a comma list, reached where the routes lead; empty: those of "
    "resolv.conf, reached over the pod network",
)
STALE_TIMEOUT = Variable(
    "EGRESS_DNS_PROXY_STALE_TIMEOUT",
    "24h",
    variables.parse_duration,
    "how long the last good addresses of a name are used while its look-ups fail; 0: no limit",
)
DENY = Variable(
    "EGRESS_DNS_PROXY_DENY",
    "",
    variables.parse_networks,
    "networks that are never connected to, whatever a name says, comma list in CIDR form: for "
    "example the cluster's own",
)
HEALTH_INTERVAL = Variable(
    "EGRESS_DNS_PROXY_HEALTH_INTERVAL",
    "off",
    _parse_health_interval,
    "active health check: how often a connection to each address of a name with several is tried",
)
WITHDRAWN_TIMEOUT = Variable(
    "EGRESS_DNS_PROXY_WITHDRAWN_TIMEOUT",
    "off",
    _parse_duration_or_off,
    "how long sessions may go on to an address that DNS no longer returns; off or 0: no limit",
)
ADMIN_LISTEN = Variable(
    "EGRESS_DNS_PROXY_ADMIN_LISTEN",
    ":9153",
    parse_admin_listen,
    "health, metrics and the status page: [address]:port, or off; without an address, on all of "
    "the pod's addresses except the egress interface's",
)
ADMIN_SESSIONS = Variable(
    "EGRESS_DNS_PROXY_ADMIN_SESSIONS",
    "",
    variables.parse_flag,
    "on: /sessions.json lists open sessions with their clients' addresses; off by default, because "
    "the admin port has no login, and every client of it could read them",
)
DATAPLANE = Variable(
    "EGRESS_DNS_PROXY_DATAPLANE",
    "splice",
    _parse_dataplane,
    "splice: this program accepts, connects and relays; kernel: nftables translates and forwards, "
    "which takes NET_ADMIN",
)
VARIABLES: tuple[Variable[Any], ...] = (
    variables.INTERFACE,
    variables.HA,
    DESTINATION,
    DESTINATION_FILE,
    DEBUG,
    LOG_CONNECTIONS,
    variables.LOG_FORMAT,
    SOURCE,
    LISTEN,
    ALLOW_CLIENTS,
    CONNECT_TIMEOUT,
    IDLE_TIMEOUT,
    HALF_CLOSE_TIMEOUT,
    DRAIN_TIMEOUT,
    REMOVED_TIMEOUT,
    MAX_CONNECTIONS,
    NAMESERVERS,
    STALE_TIMEOUT,
    DENY,
    HEALTH_INTERVAL,
    WITHDRAWN_TIMEOUT,
    DATAPLANE,
    ADMIN_LISTEN,
    ADMIN_SESSIONS,
)
