"""Which destination a flow belongs to, and the figures of each destination.

Rules mark each flow with the number of its destination (``ct mark``), so that it is known also
after a reload has given the port another destination, and after a restart. Counters of the rules
say how many flows have begun and how many octets they moved, and the kernel's list of flows says
how many there are; so a connection that succeeds costs this process nothing.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from egress_proxy.forwarding.live import Live
from egress_proxy.nft.conntrack import TcpState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from egress_proxy.forwarding.connection import Origin
    from egress_proxy.nft.command import Counted
    from egress_proxy.nft.conntrack import Glimpse

# Nothing more is sent in these.
OVER = frozenset({TcpState.TIME_WAIT, TcpState.CLOSE})
_LARGEST = 0xFFFFFFFF


def mark_of(port: int, name: str) -> int:
    """The mark of a destination's flows, the same in every process; never 0."""
    return zlib.crc32(f"{port} {name}".encode()) or 1


class Present(NamedTuple):
    """The flows of a destination that are not over; `connecting` ones are not answered yet."""

    active: int = 0
    connecting: int = 0


@dataclass(slots=True, eq=False)
class Marked:
    """A destination, and what became of its flows since this process runs.

    `begun` is all flows. Of those with a record, `recorded`, the `failed` ones have reached no
    upstream, and the `connected` ones' records say how long that took. `active` ones were there at
    the last `Marks.count`.
    """

    mark: int
    port: int
    origin: Origin
    begun: int = 0
    recorded: int = 0
    failed: int = 0
    connected: int = 0
    active: int = 0


class Marks:
    """All destinations by mark: also those that a reload has removed, while they have flows."""

    def __init__(self) -> None:
        self._entries: dict[int, Marked] = {}
        self._counted: Mapping[str, Counted] = {}

    def __iter__(self) -> Iterator[Marked]:
        return iter(self._entries.values())

    def get(self, mark: int) -> Marked | None:
        return self._entries.get(mark)

    def add(self, port: int, origin: Origin) -> Marked:
        """The entry of `origin` at `port`; one that was removed and is back keeps its figures.

        The same port and name have the same mark in every process, unless two of them collide.
        """
        mark = mark_of(port, origin.name)
        while (known := self._entries.get(mark)) and (known.port, known.origin.name) != (
            port,
            origin.name,
        ):
            mark = mark % _LARGEST + 1
        if known is None:
            known = self._entries[mark] = Marked(mark, port, origin)
        elif known.origin is not origin:
            origin.live, known.origin.live = known.origin.live, Live()
            known.origin = origin
        return known

    def retain(self, used: Iterable[Marked]) -> bool:
        """Forget the entries without flows that are not `used`; whether there were any."""
        kept = set(used)
        gone = [each for each in self if not each.active and each not in kept]
        for entry in gone:
            del self._entries[entry.mark]
        return bool(gone)

    def take_over(self, present: Mapping[int, Present]) -> None:
        """Flows that are there at the start have begun before it."""
        for mark, flows in present.items():
            entry = self._entries.get(mark)
            if entry is not None:
                entry.begun += flows.active

    def count(self, counters: Mapping[str, Counted], present: Mapping[int, Present]) -> int:
        """Bring each `Origin.live` up to date; how many flows there are.

        The `counters` must be older than the list of flows, and that older than the last event
        seen: then a flow is never counted as ended while it is not. Figures only grow.
        """
        for name, counted in counters.items():
            kind, _, mark = name.rpartition("_")
            entry = self._entries.get(int(mark, 16))
            before = self._counted.get(name, (0, 0))
            # A table that was replaced as a whole has new counters.
            packets, octets = (
                (now - then if now >= then else now)
                for now, then in zip(counted, before, strict=True)
            )
            if entry is None:
                continue
            if kind.startswith("new"):
                entry.begun += packets
            elif kind.startswith("up"):
                entry.origin.live.bytes_to_upstream += octets
            else:
                entry.origin.live.bytes_to_client += octets
        self._counted = counters
        for entry in self:
            _settle(entry, present.get(entry.mark, Present()))
        return sum(entry.active for entry in self)


def _settle(entry: Marked, present: Present) -> None:
    entry.active = present.active
    live = entry.origin.live
    live.active = present.active
    live.ended = max(live.ended, entry.begun - present.active - entry.recorded)
    # Records with a connect time count as established where records are counted.
    established = entry.begun - present.connecting - entry.failed - entry.connected
    live.established = max(live.established, established)


def present_flows(flows: Iterable[Glimpse]) -> dict[int, Present]:
    """The flows of each mark that are not over."""
    groups = Counter(
        (flow.mark, flow.answered) for flow in flows if flow.translated and flow.state not in OVER
    )
    found: dict[int, Present] = {}
    for (mark, answered), count in groups.items():
        before = found.get(mark, Present())
        connecting = before.connecting + (0 if answered else count)
        found[mark] = Present(before.active + count, connecting)
    return found
