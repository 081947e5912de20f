"""The elector's inputs (what happened) and actions (what to do), as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from egress_proxy.errors import Problem
    from egress_proxy.events import Event
    from egress_proxy.hold.objects import Lease, Pod
    from egress_proxy.ip import Address

# How a request failed. `doubtful`: no answer, so it may have been applied; `refused`: it was not.
Failure: TypeAlias = Literal["conflict", "doubtful", "refused"]
# Why the Lease was free.
After: TypeAlias = Literal["start", "expiry", "release"]


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that the state asked to be woken at has come."""


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """The watch shows the Lease; None: there is none."""

    lease: Lease | None


@dataclass(frozen=True, slots=True)
class RequestDone:
    """The answer to the last `Read` or `Write`."""

    lease: Lease | None


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The last `Read` or `Write` failed; the server asks for a pause of `retry_after_s`."""

    failure: Failure
    error: str
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PodsListed:
    """The answer to `ListPods`; None: it failed."""

    pods: tuple[Pod, ...] | None


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The answer to `HandOver`: whether the labels were changed."""

    done: bool


@dataclass(frozen=True, slots=True)
class GatewayHeard:
    address: Address


@dataclass(frozen=True, slots=True)
class Claimed:
    """A frame of `mac` says that it has `address`, one of the reserved ones."""

    address: Address
    mac: str


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A probe could not be sent, so silence proves nothing."""


@dataclass(frozen=True, slots=True)
class CarrierChanged:
    up: bool


@dataclass(frozen=True, slots=True)
class KeptLate:
    """`Keep` was carried out after its deadline; the address is dropped again."""


@dataclass(frozen=True, slots=True)
class KeepFailed:
    """The kernel refuses the address or its route."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class StopRequested:
    """SIGTERM; a second one ends at once."""


Input: TypeAlias = (
    Tick
    | LeaseSeen
    | RequestDone
    | RequestFailed
    | PodsListed
    | HandedOver
    | GatewayHeard
    | Claimed
    | ProbeFailed
    | CarrierChanged
    | KeptLate
    | KeepFailed
    | StopRequested
)


@dataclass(frozen=True, slots=True)
class Read:
    """GET the Lease."""


@dataclass(frozen=True, slots=True)
class Write:
    """PUT `lease` with its resource version, or create it where it has none.

    The caller fills in the times: `acquire` says whether the holder is new.
    """

    lease: Lease
    acquire: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the LAN for the addresses, without claiming them (RFC 5227 section 2.1.1)."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce the addresses on the LAN; not after `deadline`."""

    deadline: float


@dataclass(frozen=True, slots=True)
class AskGateway:
    """Ask for the gateways; `owner`: in the name of the addresses."""

    owner: bool


@dataclass(frozen=True, slots=True)
class Keep:
    """Add the addresses and routes, or restart their lifetime; not after `deadline`."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Deprecate:
    """No new connections from the addresses; they stay until sessions have been reset."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove the addresses."""


@dataclass(frozen=True, slots=True)
class ListPods:
    """LIST the pods that share the Lease."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Label the pod `successor` active, and then this one standby."""

    successor: str


@dataclass(frozen=True, slots=True)
class ShowRole:
    """Active: keep this pod the only one that is labelled so; else change no labels any more."""

    active: bool


@dataclass(frozen=True, slots=True)
class ShowGateway:
    """Annotate the own pod: whether it hears the gateway."""

    heard: bool


@dataclass(frozen=True, slots=True)
class Tell:
    event: Event


@dataclass(frozen=True, slots=True)
class Exit:
    """Everything is released; `problem` is the reason, if it is not SIGTERM."""

    problem: Problem | None = None


Action: TypeAlias = (
    Read
    | Write
    | Probe
    | Announce
    | AskGateway
    | Keep
    | Deprecate
    | Drop
    | ListPods
    | HandOver
    | ShowRole
    | ShowGateway
    | Tell
    | Exit
)
