"""What one measurement gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.clocks import Times

# The load that is not in `LOADS`: the requests of `KEPT` beside idle connections.
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
    # Growth of the proxy's resident memory for each idle connection.
    octets_per_pair: float | None = None
