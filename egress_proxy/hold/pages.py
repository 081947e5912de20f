"""Health and metrics of `hold`: what /livez, /readyz and /metrics answer.

Readiness does not depend on the role: if a standby were not ready, a rollout would never end. Nor
does it depend on the API server or the gateway: if they do not answer, the endpoint must stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from egress_proxy.hold.events import AddressDropped, HoldActive
from egress_proxy.hold.states import Role
from egress_proxy.telemetry.pages import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from egress_proxy.events import Event
    from egress_proxy.hold.states import State

PREFIX = "egress_proxy_"
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHOWN = ("standby", "taking", "blocked", "active", "unconfirmed", "leaving")
# If a `Tick` is overdue by this long, the event loop or the elector is stuck.
_STUCK_S = 5.0


@dataclass(slots=True)
class Counts:
    """An observer that counts events, and other figures of the daemon."""

    takeovers: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("start", "expiry", "release"), 0)
    )
    takeover_s: float = 0.0
    renewals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("done", "conflict", "doubtful", "refused"), 0)
    )
    conflicts: int = 0
    drops: int = 0

    def observe(self, event: Event) -> None:
        if isinstance(event, HoldActive):
            self.takeovers[event.after] += 1
            self.takeover_s += event.takeover_s
        elif isinstance(event, AddressDropped):
            self.drops += 1


class HoldPages:
    """The answer to each path; `take` returns the elector's state and the time."""

    def __init__(self, take: Callable[[], tuple[State, float]], counts: Counts) -> None:
        self._take = take
        self._counts = counts
        self._paths = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics}

    async def answer(self, method: str, target: str) -> Answer:
        """The answer to a request."""
        page = self._paths.get(target.partition("?")[0])
        if page is None:
            return _text(404, f"there are {' '.join(self._paths)}")
        if method not in ("GET", "HEAD"):
            return _text(405, "nothing can be changed here", (("Allow", "GET, HEAD"),))
        return page()

    async def stop(self) -> None:
        """Nothing is made in the background here."""

    def _livez(self) -> Answer:
        state, now = self._take()
        if state.wake_at < now - _STUCK_S:
            return _text(503, "the elector has not run when it should have")
        return _text(200, "ok")

    def _readyz(self) -> Answer:
        state, _ = self._take()
        problems = []
        if not state.carrier:
            problems.append("the egress interface has no carrier")
        if state.role == Role.BLOCKED:
            problems.append("a foreign host has the reserved address")
        return _text(503 if problems else 200, "\n".join(problems or ["ok"]))

    def _metrics(self) -> Answer:
        state, now = self._take()
        text = "".join(exposition(state, now, self._counts))
        return Answer(200, _CONTENT_TYPE, text.encode())


def exposition(state: State, now: float, counts: Counts) -> Iterator[str]:
    """Everything in Prometheus' text format (version 0.0.4), line by line."""
    yield from _metric(
        "hold_state",
        "gauge",
        "1 for what this pod is: standby, taking, blocked, active, unconfirmed or leaving.",
        {f'{{state="{name}"}}': int(name == state.shown) for name in _SHOWN},
    )
    yield from _metric(
        "hold_takeovers_total",
        "counter",
        "How often this pod took the address, by why the Lease was free.",
        {f'{{after="{after}"}}': count for after, count in counts.takeovers.items()},
    )
    yield from _metric(
        "hold_takeover_seconds",
        "summary",
        "From the decision to take the Lease to the address.",
        {"_sum": counts.takeover_s, "_count": sum(counts.takeovers.values())},
    )
    yield from _metric(
        "lease_renewals_total",
        "counter",
        "Writes of the Lease: done, conflict, doubtful (no answer) or refused.",
        {f'{{result="{result}"}}': count for result, count in counts.renewals.items()},
    )
    yield from _metric(
        "lease_valid_seconds",
        "gauge",
        "How long the Lease is certain to be this pod's; 0 where it is not.",
        {"": max(state.valid_until - now, 0.0) if state.own is not None else 0.0},
    )
    yield from _metric(
        "address_conflicts_total",
        "counter",
        "Frames in which another host claimed the address while this pod had it.",
        {"": counts.conflicts},
    )
    yield from _metric(
        "gateway_heard_seconds",
        "gauge",
        "How long ago a gateway was last heard.",
        {
            f'{{gateway="{gateway}"}}': max(now - heard, 0.0)
            for gateway, heard in state.heard.items()
        },
    )


def _metric(
    name: str, kind: str, meaning: str, samples: dict[str, float] | dict[str, int]
) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {meaning}\n# TYPE {PREFIX}{name} {kind}\n"
    for suffix, value in samples.items():
        yield f"{PREFIX}{name}{suffix} {value:g}\n"


def _text(status: int, text: str, more: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), more)
