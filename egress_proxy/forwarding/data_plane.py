"""What all forwarders of the process share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from egress_proxy.forwarding.source_gate import SourceGate

if TYPE_CHECKING:
    from egress_proxy.events import Observer
    from egress_proxy.forwarding.admission import Admission
    from egress_proxy.forwarding.race import Connector
    from egress_proxy.relay.pipes import PipePool
    from egress_proxy.relay.reactor import Reactor
    from egress_proxy.relay.timer_wheel import TimerWheel


@dataclass(frozen=True, slots=True)
class DataPlane:
    """The shared parts through which every client's octets go."""

    reactor: Reactor
    pipes: PipePool
    wheel: TimerWheel
    admission: Admission
    connector: Connector
    observer: Observer
    source_gate: SourceGate = field(default_factory=SourceGate)
