"""The rules about the Lease: when to read it and to renew it; what an answer means.

A write's condition is the resource version that its decision was made on, so that no news that the
watch brings meanwhile can change what is written. A renewal's is that of the own last write, and
never one of the watch: with that, a holder which was frozen would take the Lease back from the pod
that has taken over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.hold.events import ApiBack, ApiSilent, HoldConfirmed, HoldStandby
from egress_proxy.hold.states import Phase, Role
from egress_proxy.hold.transitions import (
    drop,
    finish,
    lose,
    release,
    released,
    resume,
    start_taking,
)

if TYPE_CHECKING:
    from egress_proxy.hold.messages import Failure
    from egress_proxy.hold.objects import Lease
    from egress_proxy.hold.states import Request, Turn


def request(turn: Turn) -> None:
    """Make the request that is due, or note that one is."""
    state = turn.state
    if state.pending is not None:
        state.overdue = True
        return
    state.overdue = False
    if turn.now < state.patient_until:
        return
    if state.own is None or state.doubtful is not None:
        turn.read()
    elif state.giving_back:
        release(turn)
    else:
        turn.write("renew", replace(state.own, duration_s=turn.settings.duration_s), state.own)


def see(turn: Turn, lease: Lease | None) -> None:
    """The watch shows the Lease."""
    state = turn.state
    _api_answers(turn)
    own = state.own
    if own is None or state.giving_back:
        _observe(turn, lease)
    elif (
        lease is not None
        and lease.holder != turn.settings.identity
        # An older version than the own last write.
        and lease.transitions >= own.transitions
        and lease.resource_version != own.resource_version
    ):
        lose(turn, "another pod holds it", lease.holder)


def done(turn: Turn, lease: Lease | None) -> None:
    """A request was answered."""
    state = turn.state
    sent, state.pending = state.pending, None
    if sent is None:
        return
    _api_answers(turn)
    if sent.kind == "read":
        state.read_at = turn.now
        _read_answered(turn, lease)
    elif sent.kind == "release":
        state.changed_at = None
        released(turn)
    elif lease is not None:
        _written(turn, sent, lease)
    if state.overdue:
        request(turn)


def _read_answered(turn: Turn, lease: Lease | None) -> None:
    state = turn.state
    doubtful, state.doubtful = state.doubtful, None
    if state.own is None:
        _observe(turn, lease)
        if state.role == Role.LEAVING and lease is not None and is_own(turn, lease):
            # The write that took it was applied after all.
            state.own, state.giving_back = lease, True
            request(turn)
        finish(turn)
    elif lease is None or not is_own(turn, lease):
        if state.giving_back:
            released(turn)
        else:
            lose(turn, "another pod holds it", "" if lease is None else lease.holder)
    else:
        before = None if doubtful is None else doubtful.base
        if (
            doubtful is not None
            and doubtful.kind == "renew"
            and before is not None
            and before.resource_version != lease.resource_version
        ):
            _confirm(turn, doubtful.sent_at)
        state.own = lease
        request(turn)


def _written(turn: Turn, sent: Request, lease: Lease) -> None:
    state = turn.state
    if sent.kind == "renew" and state.own is None and state.role != Role.LEAVING:
        # Lost while the request was on its way.
        _observe(turn, lease)
        return
    state.own = state.lease = lease
    if sent.kind == "renew":
        _confirm(turn, sent.sent_at)
        state.giving_back = state.giving_back or state.phase == Phase.RELEASING
        if state.giving_back:
            request(turn)
        return
    state.valid_until = sent.sent_at + turn.settings.duration_s
    state.confirmed = True
    before = "" if sent.base is None else sent.base.holder
    if state.role == Role.LEAVING:
        state.giving_back = True
        request(turn)
    elif state.role != Role.STANDBY:
        return
    elif state.inherited and before == turn.settings.identity:
        state.inherited = False
        resume(turn)
    else:
        state.inherited = False
        start_taking(turn, state.after, before)


def _confirm(turn: Turn, sent_at: float) -> None:
    """The Lease was renewed by a request that was sent at `sent_at`."""
    state = turn.state
    state.valid_until = max(state.valid_until, sent_at + turn.settings.duration_s)
    confirmed = turn.now < state.valid_until - _overdue_margin_s(turn)
    if confirmed and not state.confirmed:
        state.confirmed = True
        if state.role in (Role.ACTIVE, Role.LEAVING):
            turn.tell(HoldConfirmed(unconfirmed_s=turn.now - state.unconfirmed_at))


def _overdue_margin_s(turn: Turn) -> float:
    return turn.settings.duration_s - turn.settings.confirmed_s


def confirmed_until(turn: Turn) -> float:
    """When a holder without another renewal becomes unconfirmed."""
    return turn.state.valid_until - _overdue_margin_s(turn)


def failed(turn: Turn, failure: Failure, error: str, retry_after_s: float) -> None:
    """A request was refused, or has no answer."""
    state = turn.state
    sent, state.pending = state.pending, None
    if sent is None:
        return
    if failure == "conflict":
        _conflict(turn, sent)
    else:
        _api_fails(turn, error)
        if state.own is None:
            state.changed_at = None
        if retry_after_s:
            # Not longer: a holder must renew in time, even if the server asks for a longer pause.
            patience_s = min(retry_after_s, turn.settings.duration_s / 2)
            state.patient_until = turn.now + patience_s
        if failure == "doubtful" and sent.kind != "read":
            state.doubtful, state.doubted_at = sent, turn.now
            request(turn)
    if state.overdue:
        request(turn)
    finish(turn)


def _conflict(turn: Turn, sent: Request) -> None:
    state = turn.state
    _api_answers(turn)
    if state.own is None:
        state.changed_at = None
        request(turn)
    elif sent.kind == "release":
        lose(turn, "another pod took it first", lease=False)
    elif turn.now - state.doubted_at < 2 * turn.settings.duration_s:
        # Perhaps it is a late write of this pod. Until that is known, claims of other hosts are
        # believed.
        state.confirmed = False
        state.unconfirmed_at = turn.now
        state.doubtful = sent
        request(turn)
    else:
        lose(turn, "a renewal was a conflict")


def _observe(turn: Turn, lease: Lease | None) -> None:
    state = turn.state
    before = state.lease
    same = (None if before is None else before.resource_version) == (
        None if lease is None else lease.resource_version
    )
    if state.changed_at is None or not same:
        state.changed_at = turn.now
    state.lease = lease
    if lease is not None and is_own(turn, lease):
        return
    if lease is not None and (before is None or before.holder != lease.holder):
        turn.tell(HoldStandby(holder=lease.holder))
    if state.inherited:
        # Another pod was faster than the restart of this one.
        state.inherited = False
        state.address_until = turn.now
        drop(turn, "the Lease is not this pod's")


def is_own(turn: Turn, lease: Lease) -> bool:
    return lease.holder == turn.settings.identity


def _api_answers(turn: Turn) -> None:
    state = turn.state
    if state.api_silent:
        state.api_silent = False
        turn.tell(ApiBack(silent_s=turn.now - state.answered_at))
    state.answered_at = turn.now
    state.api_error = ""


def _api_fails(turn: Turn, error: str) -> None:
    state = turn.state
    state.api_error = error
    if not state.api_silent and turn.now - state.answered_at >= turn.settings.duration_s / 2:
        state.api_silent = True
        turn.tell(ApiSilent(error=error))
