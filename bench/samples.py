"""The result of one measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.clocks import Times

# The one load that is not in `LOADS`: that of `KEPT` while the proxy also has idle connections.
IDLE = "idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One load through one peer in one round."""

    number: int
    load: str
    peer: str
    amount: float
    times: Times
    latency_us: float | None = None
    # Growth of the proxy's resident memory per idle connection.
    octets_per_pair: float | None = None
