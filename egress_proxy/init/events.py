"""What `init` logs."""

from __future__ import annotations

from egress_proxy.events import Event


class InitStep(Event, name="init.step", level="debug"):
    """A change was made, or undone after a failure; `command` would do the same."""

    command: str
    undo: bool


class InitWarning(Event, name="init.warning", level="warning"):
    """A problem that does not stop `init`. `variable` is the one to look at."""

    variable: str
    value: str | None
    reason: str
    cure: str


class InitDone(Event, name="init.done", level="info"):
    """The network is set up. `steps` is the number of changes, 0 if all was there."""

    interface: str
    sources: tuple[str, ...]
    gateways: tuple[str, ...]
    steps: int
    duration_s: float


class InitWaiting(Event, name="init.waiting", level="info"):
    """Redirect mode's rules are set, and the mode `legacy` waits for SIGTERM."""


class InitFailed(Event, name="init.failed", level="error"):
    """`init` ends without success. All changes were undone, unless a problem says what is left."""

    problems: tuple[str, ...]
