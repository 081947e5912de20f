"""The rules of a standby: when it asks for the Lease, when the Lease is free, and taking it.

A Lease has expired when the API server has shown no change of it for its duration, on the clock of
this pod: the times in it are those of another pod's clock.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.hold.lease_rules import is_own
from egress_proxy.hold.objects import Lease
from egress_proxy.hold.states import NEVER, Role
from egress_proxy.hold.transitions import SUCCESSOR

if TYPE_CHECKING:
    from egress_proxy.hold.messages import After
    from egress_proxy.hold.states import State, Turn

# Two questions to a gateway are 0.5 s apart: one may be lost.
GATEWAY_FRESH_S = 1.2
# How long a released Lease is left to the pod that clients were already sent to.
SUCCESSOR_FIRST_S = 1.0


def is_quiet(turn: Turn) -> bool:
    """Whether a standby must read the Lease itself, because the watch shows nothing new."""
    changed_at = turn.state.changed_at
    return changed_at is None or turn.now - changed_at >= turn.settings.duration_s / 2


def consider_taking(turn: Turn) -> None:
    """Take the Lease if it is free and this pod could use the address."""
    state, now = turn.state, turn.now
    if (
        state.role != Role.STANDBY
        or state.pending is not None
        or state.giving_back
        or state.doubtful is not None
        or state.changed_at is None
        or not state.carrier
        or now < state.patient_until
        or turn.lan_age_s > GATEWAY_FRESH_S
    ):
        return
    after = _why_free(turn, state)
    if after is None:
        return
    if after == "expiry" and now - state.read_at > turn.settings.duration_s / 2:
        # Only a server that answers could have shown a renewal.
        turn.read()
        return
    base = state.lease
    state.after = after
    state.taking_since = now
    settings = turn.settings
    held = base or Lease(name="", transitions=-1)
    mine = held.holder == settings.identity
    turn.write(
        "acquire",
        replace(
            held,
            holder=settings.identity,
            duration_s=settings.duration_s,
            transitions=held.transitions if mine else held.transitions + 1,
            annotations={k: v for k, v in held.annotations.items() if k != SUCCESSOR},
        ),
        base,
    )


def _why_free(turn: Turn, state: State) -> After | None:
    lease = state.lease
    if lease is None or is_own(turn, lease):
        return "start"
    if lease.holder == "":
        if not lease.annotations.get(SUCCESSOR, "") or turn.now >= free_at(turn):
            return "release"
        return None
    return "expiry" if turn.now >= free_at(turn) else None


def free_at(turn: Turn) -> float:
    """When the observed Lease will have been left unchanged for long enough."""
    state = turn.state
    lease = state.lease
    if state.changed_at is None or lease is None:
        return NEVER
    if lease.holder == "":
        chosen = lease.annotations.get(SUCCESSOR, "")
        own = chosen in ("", turn.settings.identity)
        return state.changed_at + (0.0 if own else SUCCESSOR_FIRST_S)
    return state.changed_at + lease.duration_s
