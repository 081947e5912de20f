"""The rules after SIGTERM, phase by phase.

SEEKING: find a Ready pod; HANDING_OVER: make it and not this one the Service's endpoint; KEEPING:
keep the address while the endpoints move; DEPRECATED: `run` resets what is left, and the address
still carries the RSTs; RELEASING: drop it, and release the Lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egress_proxy.hold.events import HoldLeaving
from egress_proxy.hold.lan_rules import hears_gateway, others
from egress_proxy.hold.lease_rules import request
from egress_proxy.hold.messages import Deprecate, Exit, HandOver, ListPods
from egress_proxy.hold.states import NEVER, Phase, Role
from egress_proxy.hold.transitions import drop, finish

if TYPE_CHECKING:
    from egress_proxy.hold.objects import Pod
    from egress_proxy.hold.states import Turn

# `run` is notified of a deprecated address within a millisecond, and resets some thousand sessions.
DEPRECATED_S = 0.1
SEEK_INTERVAL_S = 1.0


def stop(turn: Turn) -> None:
    """SIGTERM; the second one ends at once."""
    state = turn.state
    if state.stop_at == NEVER:
        state.stop_at = turn.now
    else:
        state.role = Role.LEAVING
        leave_at_once(turn)


def consider_leaving(turn: Turn) -> None:
    """Begin to leave after SIGTERM, but not during a takeover.

    The pod that had the address may already have sent clients here. They wait for the address, and
    would be reset if this pod let the Lease go.
    """
    state = turn.state
    acquiring = state.pending is not None and state.pending.kind == "acquire"
    if state.stop_at == NEVER or state.role in (Role.LEAVING, Role.TAKING) or acquiring:
        return
    active = state.role == Role.ACTIVE
    state.role = Role.LEAVING
    if not active:
        leave_at_once(turn)
        return
    state.phase = Phase.SEEKING
    state.leave_by = state.leave_at = state.stop_at + turn.settings.drain_s
    state.pods_asked, state.pods_at = True, turn.now + SEEK_INTERVAL_S
    turn.do(ListPods())


def leave_at_once(turn: Turn, reason: str = "a stop was requested") -> None:
    """Drop the address now, and release the Lease if possible."""
    state = turn.state
    drop(turn, reason)
    state.phase = Phase.RELEASING
    state.probe_at = NEVER
    state.leave_at = turn.now + turn.settings.request_timeout_s
    state.giving_back = state.own is not None
    if state.giving_back:
        request(turn)
    finish(turn)


def pods_listed(turn: Turn, pods: tuple[Pod, ...] | None) -> None:
    """Send the clients to a Ready pod, preferably one that the gateway answers."""
    state = turn.state
    if state.phase != Phase.SEEKING:
        return
    found = sorted(others(turn, pods), key=hears_gateway, reverse=True)
    if not found:
        return
    state.successor = found[0].name
    state.phase = Phase.HANDING_OVER
    turn.do(HandOver(state.successor))
    kept_s = max(min(turn.settings.handover_s, state.leave_by - turn.now), 0.0)
    turn.tell(HoldLeaving(successor=state.successor, kept_s=kept_s))


def handed_over(turn: Turn, *, done: bool) -> None:
    """The labels are changed; if not, the next attempt lists the pods again."""
    state = turn.state
    if state.phase != Phase.HANDING_OVER:
        return
    if not done:
        state.phase, state.successor = Phase.SEEKING, ""
        return
    state.phase = Phase.KEEPING
    state.leave_at = min(state.leave_by, turn.now + turn.settings.handover_s)


def go_on(turn: Turn) -> None:
    """Do the step that is due now."""
    state, now = turn.state, turn.now
    if state.phase == Phase.SEEKING and not state.pods_asked and now >= state.pods_at:
        state.pods_asked, state.pods_at = True, now + SEEK_INTERVAL_S
        turn.do(ListPods())
    if now < state.leave_at:
        return
    if state.phase < Phase.DEPRECATED:
        if not state.successor:
            turn.tell(HoldLeaving(successor="", kept_s=turn.settings.drain_s))
        state.phase = Phase.DEPRECATED
        state.leave_at = now + DEPRECATED_S
        turn.do(Deprecate())
    elif state.phase == Phase.DEPRECATED:
        leave_at_once(turn)
    elif state.role != Role.STOPPED:
        state.role = Role.STOPPED
        turn.do(Exit(state.problem))
