"""The records of `hold`: what happened, as frozen values (see `egress_proxy.events`)."""

from __future__ import annotations

from typing import ClassVar, Literal

from egress_proxy.events import Record

_Level = Literal["debug", "info", "warning"]


class HoldStarted(Record, frozen=True, kw_only=True):
    """`hold` runs, as `identity` in the Lease `lease`."""

    event: ClassVar[str] = "hold.started"

    version: str
    identity: str
    lease: str
    duration_s: int
    source: tuple[str, ...]
    gateway: tuple[str, ...]


class HoldStandby(Record, frozen=True, kw_only=True):
    """The Lease is `holder`'s; empty: nobody's."""

    event: ClassVar[str] = "hold.standby"

    holder: str


class HoldTaking(Record, frozen=True, kw_only=True):
    """The Lease is this pod's; the LAN is asked for the address. `after`: why it was free."""

    event: ClassVar[str] = "hold.taking"

    after: str
    before: str


class HoldActive(Record, frozen=True, kw_only=True):
    """This pod has the address; `takeover_s` after it began to take the Lease."""

    event: ClassVar[str] = "hold.active"

    after: str
    takeover_s: float


class HoldResumed(Record, frozen=True, kw_only=True):
    """`hold` was restarted, and both the Lease and the address were still this pod's."""

    event: ClassVar[str] = "hold.resumed"


class HoldUnconfirmed(Record, frozen=True, kw_only=True):
    """The Lease could not be renewed for a while: the address is kept until a claim or a loss."""

    event: ClassVar[str] = "hold.unconfirmed"
    level: ClassVar[_Level] = "warning"

    error: str


class HoldConfirmed(Record, frozen=True, kw_only=True):
    """The Lease is renewed again."""

    event: ClassVar[str] = "hold.confirmed"

    unconfirmed_s: float


class HoldBlocked(Record, frozen=True, kw_only=True):
    """The Lease is this pod's, and a foreign host, `mac`, answers for the address."""

    event: ClassVar[str] = "hold.blocked"
    level: ClassVar[_Level] = "warning"

    address: str
    mac: str


class HoldLeaving(Record, frozen=True, kw_only=True):
    """Told to stop; `successor` is the pod that clients are sent to, empty where there is none."""

    event: ClassVar[str] = "hold.leaving"

    successor: str
    kept_s: float


class HoldReleased(Record, frozen=True, kw_only=True):
    """The Lease is given back: another pod may take it at once."""

    event: ClassVar[str] = "hold.released"


class AddressDropped(Record, frozen=True, kw_only=True):
    """This pod no longer has the address."""

    event: ClassVar[str] = "address.dropped"

    reason: str


class AddressDefended(Record, frozen=True, kw_only=True):
    """A foreign host, `mac`, claims the address: the LAN is told again who has it.

    At most one record in ten seconds; `claims` counts those since the last record.
    """

    event: ClassVar[str] = "address.defended"
    level: ClassVar[_Level] = "warning"

    address: str
    mac: str
    claims: int


class LeaseLost(Record, frozen=True, kw_only=True):
    """The Lease is no longer this pod's."""

    event: ClassVar[str] = "lease.lost"
    level: ClassVar[_Level] = "warning"

    holder: str
    reason: str


class ApiSilent(Record, frozen=True, kw_only=True):
    """The API server does not answer."""

    event: ClassVar[str] = "api.silent"
    level: ClassVar[_Level] = "warning"

    error: str


class ApiBack(Record, frozen=True, kw_only=True):
    """The API server answers again."""

    event: ClassVar[str] = "api.back"

    silent_s: float


class GatewaySilent(Record, frozen=True, kw_only=True):
    """A gateway does not answer on the LAN."""

    event: ClassVar[str] = "gateway.silent"
    level: ClassVar[_Level] = "warning"

    gateway: tuple[str, ...]


class GatewayBack(Record, frozen=True, kw_only=True):
    """Every gateway answers again."""

    event: ClassVar[str] = "gateway.back"


class RoleFailed(Record, frozen=True, kw_only=True):
    """A label or annotation of a pod could not be changed; it is tried again in `retry_s`."""

    event: ClassVar[str] = "role.failed"
    level: ClassVar[_Level] = "warning"

    pod: str
    error: str
    retry_s: float
