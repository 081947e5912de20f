"""The events of `hold`: what happened, as frozen values (see `egress_proxy.events`)."""

from __future__ import annotations

from egress_proxy.events import Event


class HoldStarted(Event, name="hold.started", level="info"):
    """`hold` runs, as `identity` in the Lease `lease`."""

    version: str
    identity: str
    lease: str
    duration_s: int
    source: tuple[str, ...]
    gateway: tuple[str, ...]


class HoldStandby(Event, name="hold.standby", level="info"):
    """This pod is a standby; `holder` has the Lease, empty if no pod has it."""

    holder: str


class HoldTaking(Event, name="hold.taking", level="info"):
    """This pod has the Lease and probes for the address; `after` says why it was free."""

    after: str
    before: str


class HoldActive(Event, name="hold.active", level="info"):
    """This pod has the address; `takeover_s` after it began to take the Lease."""

    after: str
    takeover_s: float


class HoldResumed(Event, name="hold.resumed", level="info"):
    """`hold` was restarted, and both the Lease and the address were still this pod's."""


class HoldUnconfirmed(Event, name="hold.unconfirmed", level="warning"):
    """The Lease could not be renewed for a while: the address is kept until a claim or a loss."""

    error: str


class HoldConfirmed(Event, name="hold.confirmed", level="info"):
    """The Lease is renewed again."""

    unconfirmed_s: float


class HoldBlocked(Event, name="hold.blocked", level="warning"):
    """This pod has the Lease, but a foreign host, `mac`, answers for the address."""

    address: str
    mac: str


class HoldLeaving(Event, name="hold.leaving", level="info"):
    """SIGTERM was received; `successor` is the pod that clients are sent to, or empty."""

    successor: str
    kept_s: float


class HoldReleased(Event, name="hold.released", level="info"):
    """The Lease was released: another pod may take it at once."""


class AddressDropped(Event, name="address.dropped", level="info"):
    """This pod no longer has the address."""

    reason: str


class AddressDefended(Event, name="address.defended", level="warning"):
    """A foreign host, `mac`, claims the address: this pod announces it again.

    At most one record in ten seconds; `claims` counts those since the last record.
    """

    address: str
    mac: str
    claims: int


class LeaseLost(Event, name="lease.lost", level="warning"):
    """This pod no longer has the Lease."""

    holder: str
    reason: str


class ApiSilent(Event, name="api.silent", level="warning"):
    """The API server does not answer."""

    error: str


class ApiBack(Event, name="api.back", level="info"):
    """The API server answers again."""

    silent_s: float


class GatewaySilent(Event, name="gateway.silent", level="warning"):
    """A gateway does not answer on the LAN."""

    gateway: tuple[str, ...]


class GatewayBack(Event, name="gateway.back", level="info"):
    """Every gateway answers again."""


class RoleFailed(Event, name="role.failed", level="warning"):
    """A label or annotation of a pod could not be changed; it is tried again in `retry_s`."""

    pod: str
    error: str
    retry_s: float


class HoldWarning(Event, name="hold.warning", level="warning"):
    """A problem that does not stop `hold`. `variable` is the one to look at."""

    variable: str
    value: str | None
    reason: str
    cure: str


class HoldFailed(Event, name="hold.failed", level="error"):
    """`hold` ends without success: the configuration is wrong, or the pod lacks something."""

    problems: tuple[str, ...]
