"""What happened, as frozen values: each part of the program emits events, observers use them.

An observer writes an event as a log record (`telemetry.logs`) or counts it (`telemetry.counters`).
The class of an event has its `name`, the constant dotted name in the log, and its `level`; the
fields of an event are the fields of the log record. Durations are in seconds, sizes in bytes.
The socket addresses in `ConnectionClosed` are tuples as the socket module returns them, because
that event is made for each connection: text is made (`as_text`) only if a record is written.
"""

from __future__ import annotations

import enum
import traceback
from collections.abc import Sequence  # noqa: TC003 - msgspec reads annotations at run time
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias

import msgspec

Level: TypeAlias = Literal["debug", "info", "warning", "error"]


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
    WITHDRAWN = "withdrawn"
    NO_SOURCE = "no_source"
    SOURCE_LOST = "source_lost"
    DRAINED = "drained"
    RESET = "reset"
    ENDED = "ended"
    ERROR = "error"


# Reasons that blame the destination, not the client.
FAILURES = frozenset(
    {
        Reason.UPSTREAM_RESET,
        Reason.CONNECT_REFUSED,
        Reason.CONNECT_TIMEOUT,
        Reason.CONNECT_UNREACHABLE,
        Reason.ERROR,
    }
)


class _EventType(msgspec.StructMeta):
    """Takes name and level as class arguments. Events are frozen, their fields keyword-only."""

    def __new__(
        cls, cls_name: str, bases: tuple[type, ...], namespace: dict[str, Any], **arguments: str
    ) -> _EventType:
        namespace.update(arguments)
        return super().__new__(cls, cls_name, bases, namespace, frozen=True, kw_only=True)


class Event(msgspec.Struct, metaclass=_EventType):
    """The base of all events."""

    name: ClassVar[str]
    level: ClassVar[Level]


class Observer(Protocol):
    """Receives events as they happen. It must be quick and must not raise."""

    def observe(self, event: Event) -> None: ...


class Observers:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, event: Event) -> None:
        for observer in self._observers:
            observer.observe(event)


class ConnectionClosed(Event, name="connection.closed", level="debug"):
    """A connection ended: exactly one per accepted client.

    `address` is the upstream's, or the last one tried; empty if none was tried. `source` is the
    address that the upstream sees; empty if none was reached, or if it was reached before these
    records were switched on. `connect_s` is None if no upstream was reached. `error` is that of the
    last failed attempt. With the kernel as data plane the bytes are those of packets, or None where
    it does not count them per connection; the reason `reset` stands for either side's reset;
    `duration_s` is None unless the connection began while all connections were recorded.
    """

    # In the log addresses are texts, empty for None, and `error` is the errno's name and meaning.
    listener: int
    destination: str
    client: Sequence[object]
    address: Sequence[object] | None
    source: Sequence[object] | None
    bytes_to_upstream: int | None
    bytes_to_client: int | None
    duration_s: float | None
    connect_s: float | None
    attempts: int
    reason: Reason
    error: int = 0


class DestinationResolved(Event, name="destination.resolved", level="debug"):
    """A look-up was answered; `ttl_s` is the shortest TTL in the answer."""

    destination: str
    addresses: tuple[str, ...]
    ttl_s: float
    lookup_s: float


class DestinationChanged(Event, name="destination.changed", level="info"):
    """The usable addresses of a name have changed."""

    destination: str
    addresses: tuple[str, ...]
    before: tuple[str, ...]


class DestinationUnresolved(Event, name="destination.unresolved", level="warning"):
    """A look-up failed and there are no earlier addresses: the port refuses its clients."""

    destination: str
    error: str
    retry_s: float


class DestinationStale(Event, name="destination.stale", level="warning"):
    """A look-up failed; the addresses of the last good answer stay in use."""

    destination: str
    error: str
    addresses: tuple[str, ...]
    retry_s: float


class DestinationDenied(Event, name="destination.denied", level="warning"):
    """A name resolves to an address that is never connected to."""

    destination: str
    address: str
    error: str


class UpstreamFailed(Event, name="upstream.failed", level="warning"):
    """An address of a destination failed: for `retry_s` the other addresses are tried first."""

    destination: str
    address: str
    error: str
    retry_s: float


class UpstreamRecovered(Event, name="upstream.recovered", level="info"):
    """A failed address of a destination answers again."""

    destination: str
    address: str


class ListenerOpened(Event, name="listener.opened", level="info"):
    """A port accepts clients; `addresses` are the local ones."""

    listener: int
    destination: str
    addresses: tuple[str, ...]


class ListenerClosed(Event, name="listener.closed", level="info"):
    """A port refuses clients; established connections continue."""

    listener: int
    destination: str


class ListenerFailed(Event, name="listener.failed", level="warning"):
    """A port has addresses to connect to but cannot listen; it is tried again in `retry_s`.

    `address` is the local address that it cannot listen on.
    """

    listener: int
    destination: str
    address: str
    error: str
    retry_s: float


class ListenersPaused(Event, name="listener.paused", level="warning"):
    """Clients wait in the backlog: those of `listener`, or of all listeners if it is None."""

    error: str
    connections: int
    listener: int | None = None


class ListenersResumed(Event, name="listener.resumed", level="info"):
    """Clients are accepted again at `listener`, or at all listeners if it is None."""

    connections: int
    listener: int | None = None


class SourceLost(Event, name="source.lost", level="warning"):
    """A source address cannot be used: destinations that need it refuse their clients."""

    address: str
    error: str


class SourceRestored(Event, name="source.restored", level="info"):
    """A source address can be used again."""

    address: str


class ConfigReloaded(Event, name="config.reloaded", level="info"):
    """New destinations are in force; `added`, `changed` and `removed` are listening ports."""

    added: tuple[int, ...]
    changed: tuple[int, ...]
    removed: tuple[int, ...]
    unchanged: int


class ConfigRejected(Event, name="config.rejected", level="warning"):
    """New destinations are wrong, or the pod cannot serve them; the earlier ones stay."""

    problems: tuple[str, ...]


class LogSwitched(Event, name="log.switched", level="info"):
    """SIGUSR1 switched the records of level debug on or off."""

    debug: bool


class LogDropped(Event, name="log.dropped", level="warning"):
    """`records` before this one are missing, because the log could not be written in time."""

    records: int


class DaemonStarted(Event, name="daemon.started", level="info"):
    """All ports are bound; `source` is empty if the kernel chooses the source address."""

    version: str
    source: tuple[str, ...]
    listen: tuple[str, ...]
    destinations: int
    max_connections: int


class DaemonReady(Event, name="daemon.ready", level="info"):
    """Each name has been looked up once; the ports in `unresolved` refuse their clients."""

    listeners: int
    unresolved: tuple[int, ...]
    startup_s: float


class DaemonDraining(Event, name="daemon.draining", level="info"):
    """The daemon was asked to stop: sessions have `timeout_s` to finish."""

    connections: int
    timeout_s: float


class DaemonStopped(Event, name="daemon.stopped", level="info"):
    """The daemon ends; `reset` sessions had not finished and were reset."""

    reset: int


class RunWarning(Event, name="run.warning", level="warning"):
    """A problem that does not stop `run`. `variable` is the one to look at."""

    variable: str
    value: str | None
    reason: str
    cure: str


class RunFailed(Event, name="run.failed", level="error"):
    """`run` ends without success: the configuration is wrong, or the pod lacks something."""

    problems: tuple[str, ...]


class DaemonDefect(Event, name="daemon.defect", level="error"):
    """This program raised an exception that it did not expect: please report it.

    `where` names the task or callback that it ended; a task starts again in `restart_s`, None if it
    does not.
    """

    where: str
    error: str
    traceback: str
    restart_s: float | None = None

    @classmethod
    def of(cls, error: BaseException, where: str, restart_s: float | None = None) -> Self:
        return cls(
            where=where,
            error=repr(error),
            # With line breaks: the log escapes them, so the record is one line.
            traceback="".join(traceback.format_exception(error)),
            restart_s=restart_s,
        )
