"""The observer that counts.

Plain integers in plain dictionaries, because it is called for each connection: no lock, no label
object, no text. Whoever asks (`status`) turns them into something to read. A destination that is
configured no more is forgotten one reload after its last connection has ended, so that nothing
grows with the number of reloads.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

from egress_proxy.events import (
    ConfigRejected,
    ConfigReloaded,
    ConnectionClosed,
    DaemonDefect,
    DestinationChanged,
    DestinationResolved,
    DestinationStale,
    DestinationUnresolved,
    Event,
    Reason,
    UpstreamFailed,
)
from egress_proxy.telemetry.status import ConnectTimes, Failure, Name, Reloads

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# Seconds: the next attempt starts after 0.25 s, TCP repeats a SYN after 1 s and 3 s (RFC 6298), and
# 10 s is the default connect timeout. Few, because each destination has all of them.
BOUNDS_S = (0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 3.0, 10.0)

# Reasons that say that a destination, not a client, is in trouble.
_FAILURES = frozenset(
    {
        Reason.UPSTREAM_RESET,
        Reason.CONNECT_REFUSED,
        Reason.CONNECT_TIMEOUT,
        Reason.CONNECT_UNREACHABLE,
        Reason.ERROR,
    }
)
LOOKUP_RESULTS = ("resolved", "stale", "unresolved")


class Ended:
    """The connections of one destination that have ended; `failed_at` is a Unix time.

    `connects` counts, for each of `BOUNDS_S` and for more, those that were established that fast.
    """

    __slots__ = (
        "bytes_to_client",
        "bytes_to_upstream",
        "connects",
        "connects_s",
        "failed_at",
        "failure",
        "reasons",
        "total",
    )

    def __init__(self) -> None:
        self.reasons = dict.fromkeys(map(str, Reason), 0)
        self.total = 0
        self.bytes_to_upstream = 0
        self.bytes_to_client = 0
        self.connects = [0] * (len(BOUNDS_S) + 1)
        self.connects_s = 0.0
        self.failure: Reason | None = None
        self.failed_at = 0.0

    @property
    def connect_times(self) -> ConnectTimes:
        *within, count = accumulate(self.connects)
        return ConnectTimes(within=tuple(within), count=count, sum_s=self.connects_s)


class _Name:
    """What the records have said of one name; times are Unix seconds."""

    def __init__(self) -> None:
        self.lookups = dict.fromkeys(LOOKUP_RESULTS, 0)
        self.addresses = 0
        self.stale = False
        self.fresh_until = 0.0
        self.last_success: float | None = None
        self.last_failure: Failure | None = None

    def failed(self, result: str, error: str) -> None:
        self.lookups[result] += 1
        self.stale = result == "stale"
        self.last_failure = Failure(what=error, at=time.time())


class Counters:
    """Counts what the records say."""

    def __init__(self) -> None:
        self.ended: dict[tuple[int, str], Ended] = {}
        self.upstream_failures: Counter[str] = Counter()
        self.defects = 0
        self._names: dict[str, _Name] = {}
        self._reloads = Reloads(reloaded=0, rejected=0, last=None, problems=())
        self._takers: dict[type[Event], Callable[..., None]] = {
            ConnectionClosed: self._count,
            DestinationResolved: self._resolved,
            DestinationChanged: self._changed,
            DestinationStale: self._stale,
            DestinationUnresolved: self._unresolved,
            UpstreamFailed: self._upstream_failed,
            ConfigReloaded: self._reloaded,
            ConfigRejected: self._rejected,
            DaemonDefect: self._defect,
        }

    def observe(self, event: Event) -> None:
        take = self._takers.get(type(event))
        if take is not None:
            take(event)

    def _count(self, record: ConnectionClosed) -> None:
        key = (record.listener, record.destination)
        ended = self.ended.get(key)
        if ended is None:
            ended = self.ended[key] = Ended()
        reason = record.reason
        ended.reasons[reason] += 1
        ended.total += 1
        ended.bytes_to_upstream += record.bytes_to_upstream
        ended.bytes_to_client += record.bytes_to_client
        if record.connect_s is not None:
            ended.connects[bisect_left(BOUNDS_S, record.connect_s)] += 1
            ended.connects_s += record.connect_s
        if reason in _FAILURES:
            ended.failure = reason
            ended.failed_at = time.time()

    def _name(self, name: str) -> _Name:
        return self._names.setdefault(name, _Name())

    def _resolved(self, record: DestinationResolved) -> None:
        name = self._name(record.destination)
        name.lookups["resolved"] += 1
        name.stale = False
        name.last_success = time.time()
        name.fresh_until = name.last_success + record.ttl_s

    def _changed(self, record: DestinationChanged) -> None:
        self._name(record.destination).addresses = len(record.addresses)

    def _stale(self, record: DestinationStale) -> None:
        self._name(record.destination).failed("stale", record.error)

    def _unresolved(self, record: DestinationUnresolved) -> None:
        self._name(record.destination).failed("unresolved", record.error)

    def _upstream_failed(self, record: UpstreamFailed) -> None:
        self.upstream_failures[record.destination] += 1

    def _reloaded(self, _record: ConfigReloaded) -> None:
        before = self._reloads
        self._reloads = Reloads(
            reloaded=before.reloaded + 1, rejected=before.rejected, last=time.time(), problems=()
        )

    def _rejected(self, record: ConfigRejected) -> None:
        before = self._reloads
        self._reloads = Reloads(
            reloaded=before.reloaded,
            rejected=before.rejected + 1,
            last=time.time(),
            problems=record.problems,
        )

    def _defect(self, _event: DaemonDefect) -> None:
        self.defects += 1

    def retain_only(
        self, destinations: Collection[tuple[int, str]], names: Collection[str]
    ) -> None:
        """Forget what is counted for others than `destinations` and `names`."""
        for key in self.ended.keys() - set(destinations):
            del self.ended[key]
        for destination in self.upstream_failures.keys() - {name for _, name in destinations}:
            del self.upstream_failures[destination]
        for name in self._names.keys() - set(names):
            del self._names[name]

    @property
    def reloads(self) -> Reloads:
        return self._reloads

    def name(self, name: str) -> Name:
        """What is known of `name`, also before the first answer."""
        known = self._names.get(name) or _Name()
        return Name(
            name=name,
            lookups=dict(known.lookups),
            addresses=known.addresses,
            stale=known.stale,
            ttl_left_s=max(known.fresh_until - time.time(), 0.0),
            last_success=known.last_success,
            last_failure=known.last_failure,
        )
