"""Snapshots of a daemon, as tests need them."""

from __future__ import annotations

from egress_proxy.telemetry.counters import BOUNDS_S
from egress_proxy.telemetry.sessions import Query, Session, SessionList
from egress_proxy.telemetry.status import (
    Check,
    ConnectTimes,
    Destination,
    Failure,
    ListenerState,
    Name,
    Reloads,
    Source,
    Status,
    Upstream,
    readiness,
)

_ERRORS = {
    "failed": "Address already in use",
    "refusing": "a.example: timed out",
    "failing": "no address of a.example answers",
}


class Shown:
    """What the pages of an admin port show: `status`, which a test may replace."""

    def __init__(self, status: Status) -> None:
        self.status = status
        self.taken = 0
        self.fail = False
        self.down: tuple[str, ...] = ()

    def readiness(self) -> tuple[Check, ...]:
        return readiness(
            draining=self.status.draining,
            sources=self.status.sources,
            ports=self.status.destinations,
            reloads=self.status.reloads,
            role=self.status.role,
        )

    async def sessions(self, query: Query) -> SessionList | None:
        if not self.status.sessions_listed:
            return None
        session = Session(
            listener=query.listener or 80,
            destination="a.example:80",
            client="10.128.0.7:40000",
            address="192.0.2.1:80",
            age_s=3700.5,
            idle_s=12.25,
            bytes_to_upstream=2048,
            bytes_to_client=4096,
        )
        return SessionList(total=7, sessions=(session,))

    async def take(self) -> Status:
        self.taken += 1
        if self.fail:
            raise RuntimeError("no snapshot")
        return self.status


def destination(
    state: ListenerState = "listening", *, port: int = 80, name: str | None = None
) -> Destination:
    return Destination(
        listener=port,
        destination=f"{name or '192.0.2.1'}:{port}",
        name=name,
        state=state,
        error=_ERRORS.get(state, ""),
        upstreams=(Upstream(address="192.0.2.1", healthy=True),),
        upstream_failures=0,
        active=0,
        total=0,
        established=0,
        connect_times=ConnectTimes(within=(0,) * len(BOUNDS_S), count=0, sum_s=0.0),
        ended={"finished": 0},
        bytes_to_upstream=0,
        bytes_to_client=0,
        last_failure=None,
    )


def name(error: str | None = None) -> Name:
    return Name(
        name="a.example",
        lookups={"resolved": 0},
        last_failure=Failure(what=error, at=1.0) if error else None,
    )


def status(
    *destinations: Destination,
    draining: bool = False,
    source: str = "",
    names: tuple[Name, ...] = (),
) -> Status:
    return Status(
        pod="egress/router-1",
        node="worker-3",
        sessions_listed=False,
        version="1.0",
        python="3.11",
        now=2.0,
        started=1.0,
        draining=draining,
        debug=False,
        interface="macvlan0",
        sources=(Source(address="192.0.2.99", problem=source),),
        active=0,
        maximum=1000,
        pauses=0,
        destinations=destinations,
        names=names,
        reloads=Reloads(),
        log_dropped=0,
        defects=0,
    )
