"""The elector's settings, its state, and one turn of it.

Times are seconds on one clock that also counts while the machine sleeps (CLOCK_BOOTTIME), so that a
process that was frozen or suspended sees that it is late.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from egress_proxy.hold.messages import Read, Tell, Write

if TYPE_CHECKING:
    from egress_proxy.errors import Problem
    from egress_proxy.events import Event
    from egress_proxy.hold.messages import Action, After
    from egress_proxy.hold.objects import Lease
    from egress_proxy.ip import Address

NEVER = math.inf

# If a deadline has passed by more than this, the process was frozen or got no CPU time.
LATE_S = 0.05


class Role(enum.StrEnum):
    """What this pod is. Only from ACTIVE on it may have the address."""

    STANDBY = "standby"
    TAKING = "taking"
    BLOCKED = "blocked"
    ACTIVE = "active"
    LEAVING = "leaving"
    STOPPED = "stopped"


class Phase(enum.IntEnum):
    """How far LEAVING has come; see `leaving_rules`."""

    SEEKING = 0
    HANDING_OVER = 1
    KEEPING = 2
    DEPRECATED = 3
    RELEASING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectorSettings:
    """The settings of the elector.

    `identity` is this pod in the Lease. `duration_s` is both the Lease's and the lifetime of the
    address in the kernel. `handover_s` and `drain_s` are how long the address is kept after the
    stop was requested, with a successor and without one.
    """

    identity: str
    duration_s: int
    handover_s: float
    drain_s: float
    release_on_silence: bool
    gateway_check: bool
    gateways: tuple[Address, ...]

    @property
    def beat_s(self) -> float:
        """Between two renewals of the Lease and of the address."""
        return self.duration_s / 4

    @property
    def request_timeout_s(self) -> float:
        return self.duration_s / 3

    @property
    def confirmed_s(self) -> float:
        """How long after a renewal was sent the next one is overdue."""
        return self.duration_s - self.beat_s - self.request_timeout_s


Kind: TypeAlias = Literal["read", "acquire", "renew", "release"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is not answered yet; a write was decided on `base`."""

    kind: Kind
    sent_at: float
    base: Lease | None = None


@dataclass(slots=True, kw_only=True)
class State:
    """Everything the elector remembers; `advance` leaves the one it is given as it was."""

    started_at: float
    role: Role = Role.STANDBY
    wake_at: float = 0.0
    carrier: bool = True
    # Whether the kernel had the addresses when this process started.
    inherited: bool = False

    # Since when the observed Lease has not changed. None: the observation starts with the next
    # answer, because without answers a Lease never seems to change.
    lease: Lease | None = None
    changed_at: float | None = None
    # When the API server last answered a read of this pod.
    read_at: float = -NEVER

    # The Lease as this pod has written it; None: it is not this pod's.
    own: Lease | None = None
    # Until then no other pod can have taken it.
    valid_until: float = -NEVER
    confirmed: bool = False
    unconfirmed_at: float = -NEVER
    # The address was or will be dropped, and the Lease must still be released.
    giving_back: bool = False

    pending: Request | None = None
    # A write without an answer: a read must show whether it was applied.
    doubtful: Request | None = None
    doubted_at: float = -NEVER
    overdue: bool = False
    patient_until: float = -NEVER
    answered_at: float = 0.0
    api_error: str = ""
    api_silent: bool = False

    # When the kernel will remove the address by itself; None: this pod does not have it.
    address_until: float | None = None
    beat_at: float = -NEVER

    after: After = "start"
    taking_since: float = -NEVER
    probes: int = 0
    probe_at: float = NEVER
    answered: bool = False
    announcements: int = 0
    announce_at: float = NEVER
    defend_at: float = -NEVER
    defence_told_at: float = -NEVER
    claims: int = 0

    heard: dict[Address, float] = field(default_factory=dict)
    heard_since: float = -NEVER
    ask_at: float = -NEVER
    gateway_shown: bool | None = None
    gateway_silent: bool = False
    pods_asked: bool = False
    pods_at: float = -NEVER

    # When SIGTERM came; NEVER: it has not. A takeover that is under way then is finished first.
    stop_at: float = NEVER
    phase: Phase = Phase.SEEKING
    leave_by: float = NEVER
    leave_at: float = NEVER
    successor: str = ""
    problem: Problem | None = None

    @property
    def shown(self) -> str:
        """The role as logs and metrics have it."""
        if self.role == Role.ACTIVE and not self.confirmed:
            return "unconfirmed"
        return self.role.value


@dataclass(slots=True)
class Turn:
    """One event at `now`: the rules change `state`, a copy, and add to `actions`."""

    settings: ElectorSettings
    state: State
    now: float
    actions: list[Action] = field(default_factory=list)

    def do(self, *actions: Action) -> None:
        self.actions.extend(actions)

    def tell(self, event: Event) -> None:
        self.actions.append(Tell(event))

    def read(self) -> None:
        self.state.pending = Request("read", self.now)
        self.do(Read())

    def write(self, kind: Kind, lease: Lease, base: Lease | None) -> None:
        """Write `lease`, on condition that the server still has the resource version of `base`."""
        version = "" if base is None else base.resource_version
        self.state.pending = Request(kind, self.now, base)
        self.do(Write(replace(lease, resource_version=version), acquire=kind == "acquire"))

    @property
    def gateway_age_s(self) -> float:
        """Since when at least one gateway is silent."""
        return max(self._ages_s())

    @property
    def lan_age_s(self) -> float:
        """Since when every gateway is silent."""
        return min(self._ages_s())

    def _ages_s(self) -> list[float]:
        if not self.settings.gateway_check:
            return [0.0]
        heard = self.state.heard
        return [self.now - heard.get(gateway, -NEVER) for gateway in self.settings.gateways]
