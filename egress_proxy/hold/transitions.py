"""The transitions between roles; every rule that changes the role calls one of these."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.hold.events import (
    AddressDropped,
    HoldActive,
    HoldReleased,
    HoldResumed,
    HoldTaking,
    LeaseLost,
)
from egress_proxy.hold.messages import Announce, AskGateway, Drop, Exit, Keep, ShowRole
from egress_proxy.hold.states import LATE_S, NEVER, Phase, Role

if TYPE_CHECKING:
    from egress_proxy.hold.messages import After
    from egress_proxy.hold.states import Turn

# RFC 5227 section 1.1, ANNOUNCE_NUM, and one more because each may be lost.
ANNOUNCEMENTS = 3
# The Lease's annotation that names the pod which clients were already sent to.
SUCCESSOR = "egress-proxy/successor"


def start_taking(turn: Turn, after: After, before: str) -> None:
    """The Lease is this pod's: ask the LAN whether the address is free."""
    state = turn.state
    state.role = Role.TAKING
    state.after = after
    turn.tell(HoldTaking(after=after, before=before))
    start_probing(turn, turn.now)


def start_probing(turn: Turn, at: float) -> None:
    turn.state.probes = 0
    turn.state.probe_at = at
    turn.state.answered = False


def take(turn: Turn) -> None:
    """The LAN was silent: the address is this pod's."""
    state, now = turn.state, turn.now
    if now >= state.valid_until:
        lose(turn, "it was not renewed while the address was being taken")
        return
    state.role = Role.ACTIVE
    state.probe_at = NEVER
    keep(turn, state.valid_until)
    state.announcements, state.announce_at = ANNOUNCEMENTS, now
    state.ask_at = now
    turn.do(ShowRole(active=True))
    turn.tell(HoldActive(after=state.after, takeover_s=now - state.taking_since))


def resume(turn: Turn) -> None:
    """Both the Lease and the address were this pod's all the time."""
    turn.state.role = Role.ACTIVE
    keep(turn, turn.state.valid_until)
    turn.do(AskGateway(owner=True), ShowRole(active=True))
    turn.tell(HoldResumed())


def keep(turn: Turn, deadline: float) -> None:
    """Restart the lifetime of the address, unless it is too late for that."""
    turn.do(Keep(deadline))
    turn.state.address_until = turn.now + turn.settings.duration_s


def announce(turn: Turn) -> None:
    """Announce the address, unless it is too late for that."""
    state = turn.state
    until = state.valid_until if state.confirmed else state.address_until or state.valid_until
    turn.do(Announce(until + LATE_S))


def drop(turn: Turn, reason: str) -> None:
    """Remove the address, if this pod has it."""
    state = turn.state
    state.announce_at = state.probe_at = NEVER
    if state.address_until is not None:
        state.address_until = None
        turn.do(Drop())
        turn.tell(AddressDropped(reason=reason))


def lose(turn: Turn, reason: str, holder: str = "", *, lease: bool = True) -> None:
    """Drop the address and forget the Lease; `lease`: because the Lease is lost."""
    drop(turn, reason)
    if lease:
        turn.tell(LeaseLost(holder=holder, reason=reason))
    state = turn.state
    state.own = state.doubtful = None
    state.giving_back = state.confirmed = False
    _stand_down(turn)


def give_back(turn: Turn, reason: str) -> None:
    """Drop the address, and release the Lease for the others."""
    drop(turn, reason)
    turn.state.giving_back = turn.state.own is not None
    turn.state.confirmed = False
    _stand_down(turn)


def _stand_down(turn: Turn) -> None:
    state = turn.state
    state.changed_at = None
    state.beat_at = turn.now
    if state.role == Role.LEAVING:
        state.phase = Phase.RELEASING
        state.leave_at = turn.now + turn.settings.request_timeout_s
        if state.giving_back and state.pending is None:
            release(turn)
        finish(turn)
        return
    if state.role != Role.STANDBY:
        turn.do(ShowRole(active=False))
    state.role = Role.STANDBY


def release(turn: Turn) -> None:
    """Write the Lease with an empty holder, as client-go does (tools/leaderelection, release)."""
    own = turn.state.own
    assert own is not None  # noqa: S101 - only the holder releases
    annotations = {key: value for key, value in own.annotations.items() if key != SUCCESSOR}
    if turn.state.successor:
        annotations[SUCCESSOR] = turn.state.successor
    turn.write("release", replace(own, holder="", duration_s=1, annotations=annotations), own)


def released(turn: Turn) -> None:
    """The Lease has no holder now."""
    turn.state.own = turn.state.doubtful = None
    turn.state.giving_back = False
    turn.tell(HoldReleased())
    finish(turn)


def finish(turn: Turn) -> None:
    """End, once there is nothing left to give back."""
    state = turn.state
    if state.role == Role.LEAVING and state.phase == Phase.RELEASING:
        pending = state.pending is not None and state.pending.kind != "read"
        held = state.own is not None or state.doubtful is not None or pending
        if not held or turn.now >= state.leave_at:
            state.role = Role.STOPPED
            turn.do(Exit(state.problem))
