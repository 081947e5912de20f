"""What happened, as frozen values: the data plane emits records, observers decide what they become.

A record's class says its `event`, the constant dotted name that logs carry, and its `level`; its
fields are the log's fields. Durations are in seconds, sizes in octets. Socket addresses are as
the socket module has them, address and port first: a record is made for each connection, text
only where one is written (`as_text`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence  # noqa: TC003 - msgspec reads annotations at run time
from typing import ClassVar, Literal, Protocol

import msgspec


def as_text(address: Sequence[object] | None) -> str:
    """A socket address as ``address:port``, with brackets around IPv6; empty for None."""
    if address is None:
        return ""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class Reason(enum.StrEnum):
    """Why a connection ended."""

    FINISHED = "finished"
    CLIENT_RESET = "client_reset"
    UPSTREAM_RESET = "upstream_reset"
    IDLE_TIMEOUT = "idle_timeout"
    HALF_CLOSE_TIMEOUT = "half_close_timeout"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_UNREACHABLE = "connect_unreachable"
    CLIENT_GONE = "client_gone"
    DENIED_CLIENT = "denied_client"
    DENIED_ADDRESS = "denied_address"
    WITHDRAWN = "withdrawn"
    DRAINED = "drained"
    ERROR = "error"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all records."""

    event: ClassVar[str]
    level: ClassVar[Literal["debug", "info", "warning"]] = "info"


class Observer(Protocol):
    """Takes records as they come; it must be quick, and must not raise."""

    def observe(self, record: Record) -> None: ...


class Observers:
    """Several as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, record: Record) -> None:
        for observer in self._observers:
            observer.observe(record)


class ConnectionClosed(Record, frozen=True, kw_only=True):
    """The one record of a connection.

    `address` is the upstream's and `source` the one it sees; both and `connect_s` are None when
    no upstream was reached, `source` also when nobody asked for it.
    """

    event: ClassVar[str] = "connection.closed"
    level: ClassVar[Literal["debug", "info", "warning"]] = "debug"

    listener: int
    destination: str
    client: Sequence[object]
    address: Sequence[object] | None
    source: Sequence[object] | None
    bytes_to_upstream: int
    bytes_to_client: int
    duration_s: float
    connect_s: float | None
    attempts: int
    reason: Reason


class DestinationResolved(Record, frozen=True, kw_only=True):
    """An answer to a look-up; `ttl_s` is the shortest one in it."""

    event: ClassVar[str] = "destination.resolved"
    level: ClassVar[Literal["debug", "info", "warning"]] = "debug"

    destination: str
    addresses: tuple[str, ...]
    ttl_s: float
    lookup_s: float


class DestinationChanged(Record, frozen=True, kw_only=True):
    """A name's usable addresses are others than before."""

    event: ClassVar[str] = "destination.changed"

    destination: str
    addresses: tuple[str, ...]
    before: tuple[str, ...]


class DestinationUnresolved(Record, frozen=True, kw_only=True):
    """A look-up failed and there is no earlier answer: the port refuses its clients."""

    event: ClassVar[str] = "destination.unresolved"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    destination: str
    error: str
    retry_s: float


class DestinationStale(Record, frozen=True, kw_only=True):
    """A look-up failed and the addresses of the last good answer stay in use."""

    event: ClassVar[str] = "destination.stale"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    destination: str
    error: str
    addresses: tuple[str, ...]
    retry_s: float


class DestinationDenied(Record, frozen=True, kw_only=True):
    """A name resolves to an address that is never connected to."""

    event: ClassVar[str] = "destination.denied"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    destination: str
    address: str
    error: str


class UpstreamFailed(Record, frozen=True, kw_only=True):
    """An address of a destination goes to the back; a client tries it again in `retry_s`."""

    event: ClassVar[str] = "upstream.failed"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    destination: str
    address: str
    error: str
    retry_s: float


class UpstreamRecovered(Record, frozen=True, kw_only=True):
    """An address that had failed answers again."""

    event: ClassVar[str] = "upstream.recovered"

    destination: str
    address: str


class ListenerOpened(Record, frozen=True, kw_only=True):
    """A port accepts clients now."""

    event: ClassVar[str] = "listener.opened"

    listener: int
    destination: str
    addresses: tuple[str, ...]


class ListenerClosed(Record, frozen=True, kw_only=True):
    """A port refuses clients from now on; established connections go on."""

    event: ClassVar[str] = "listener.closed"

    listener: int
    destination: str


class ListenersPaused(Record, frozen=True, kw_only=True):
    """No client is accepted for a while; they wait in the backlog. At `listener`, or anywhere."""

    event: ClassVar[str] = "listener.paused"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    listener: int | None = None
    error: str
    connections: int


class ListenersResumed(Record, frozen=True, kw_only=True):
    """Clients are accepted again."""

    event: ClassVar[str] = "listener.resumed"

    listener: int | None = None
    connections: int


class SourceLost(Record, frozen=True, kw_only=True):
    """A source address can't be sent from: what needs it refuses its clients."""

    event: ClassVar[str] = "source.lost"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    address: str
    error: str


class SourceRestored(Record, frozen=True, kw_only=True):
    """A source address is back."""

    event: ClassVar[str] = "source.restored"

    address: str


class ConfigReloaded(Record, frozen=True, kw_only=True):
    """The destinations were read again and hold from now on; listening ports of each kind."""

    event: ClassVar[str] = "config.reloaded"

    added: tuple[int, ...]
    changed: tuple[int, ...]
    removed: tuple[int, ...]
    unchanged: int


class ConfigRejected(Record, frozen=True, kw_only=True):
    """The destinations were read again and are wrong: those of before stay."""

    event: ClassVar[str] = "config.rejected"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    problems: tuple[str, ...]


class LogSwitched(Record, frozen=True, kw_only=True):
    """A signal turned the records of connections and answers on or off."""

    event: ClassVar[str] = "log.switched"

    debug: bool


class LogDropped(Record, frozen=True, kw_only=True):
    """Nobody read the log for a while: so many records before this one are missing."""

    event: ClassVar[str] = "log.dropped"
    level: ClassVar[Literal["debug", "info", "warning"]] = "warning"

    records: int


class DaemonStarted(Record, frozen=True, kw_only=True):
    """Everything is bound; `source` is empty where the kernel chooses."""

    event: ClassVar[str] = "daemon.started"

    version: str
    source: tuple[str, ...]
    listen: tuple[str, ...]
    destinations: int
    max_connections: int


class DaemonReady(Record, frozen=True, kw_only=True):
    """Every name has been asked for once; the ports in `unresolved` refuse their clients."""

    event: ClassVar[str] = "daemon.ready"

    listeners: int
    unresolved: tuple[int, ...]
    startup_s: float


class DaemonDraining(Record, frozen=True, kw_only=True):
    """Told to stop: sessions have `timeout_s` to finish."""

    event: ClassVar[str] = "daemon.draining"

    connections: int
    timeout_s: float


class DaemonStopped(Record, frozen=True, kw_only=True):
    """The end; `reset` sessions were cut short."""

    event: ClassVar[str] = "daemon.stopped"

    reset: int
