"""Who has the address: a pure function of what happened and when.

`advance` takes a state, an event and the time, and returns the next state and what is to be done.
It opens nothing and waits for nothing; `daemon` feeds it and carries out its actions in order. The
rules are in the modules `standby_rules`, `lease_rules`, `lan_rules`, `leaving_rules`; here is the
order in which they apply.

First of all, a holder compares the clock with its deadline. If it is late, it was frozen and
another pod may have the address, so it drops the address and sends nothing: a holder that defends
the address because it remembers that it had it, and the new one, answer each other without end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from egress_proxy.hold import lan_rules, lease_rules, leaving_rules, standby_rules
from egress_proxy.hold.events import HoldUnconfirmed
from egress_proxy.hold.messages import (
    CarrierChanged,
    Claimed,
    GatewayHeard,
    HandedOver,
    KeepFailed,
    KeptLate,
    LeaseSeen,
    PodsListed,
    ProbeFailed,
    RequestDone,
    RequestFailed,
    StopRequested,
    Tick,
)
from egress_proxy.hold.states import LATE_S, NEVER, Phase, Role, State, Turn
from egress_proxy.hold.transitions import give_back, keep, lose, start_probing

if TYPE_CHECKING:
    from egress_proxy.hold.messages import Action, Input
    from egress_proxy.hold.states import ElectorSettings

# With EGRESS_HA_API_SILENCE=release the address is dropped this long before the Lease runs out: the
# kernel may be 0.11 s late with what it removes, and the next owner probes for 0.2 s.
RELEASE_EARLY_S = 0.3


def start(now: float, *, carrier: bool, inherited: bool = False) -> State:
    """The state to begin with; `inherited`: the kernel still has the addresses."""
    return State(started_at=now, answered_at=now, wake_at=now, carrier=carrier, inherited=inherited)


def advance(
    settings: ElectorSettings, state: State, event: Input, now: float
) -> tuple[State, tuple[Action, ...]]:
    """The state after `event` at `now`, and the actions in their order.

    The next state's `wake_at` is the time of the next `Tick`, unless another event comes first.
    """
    turn = Turn(settings, replace(state), now)
    if turn.state.role != Role.STOPPED:
        _check_clock(turn, late_s=now - state.wake_at)
        _apply(turn, event)
        _run_timers(turn)
        turn.state.wake_at = max(_next_wake(turn), now)
    return turn.state, tuple(turn.actions)


def _check_clock(turn: Turn, *, late_s: float) -> None:
    state, now = turn.state, turn.now
    if state.address_until is not None and (
        now > state.address_until + LATE_S or (state.confirmed and now > state.valid_until + LATE_S)
    ):
        lose(turn, "this process did not run for too long", lease=False)
    elif state.role in (Role.TAKING, Role.BLOCKED):
        if now >= state.valid_until:
            lose(turn, "it was not renewed while the address was being taken")
        elif late_s > LATE_S:
            # Answers may wait in the socket.
            start_probing(turn, now)
    elif state.role == Role.STANDBY and late_s > turn.settings.beat_s:
        # It has missed renewals, perhaps. Less than that is a busy machine.
        state.changed_at = None


def _apply(turn: Turn, event: Input) -> None:  # noqa: C901, PLR0912 - one branch per event
    match event:
        case Tick():
            pass
        case LeaseSeen(lease):
            lease_rules.see(turn, lease)
        case RequestDone(lease):
            lease_rules.done(turn, lease)
        case RequestFailed(failure, error, retry_after_s):
            lease_rules.failed(turn, failure, error, retry_after_s)
        case PodsListed(pods):
            turn.state.pods_asked = False
            if turn.state.role == Role.ACTIVE:
                lan_rules.pods_listed(turn, pods)
            elif turn.state.role == Role.LEAVING:
                leaving_rules.pods_listed(turn, pods)
        case HandedOver(done):
            leaving_rules.handed_over(turn, done=done)
        case GatewayHeard(address):
            lan_rules.gateway_heard(turn, address)
        case Claimed():
            lan_rules.claimed(turn, event)
        case ProbeFailed():
            start_probing(turn, turn.now + lan_rules.PROBE_INTERVAL_S)
        case CarrierChanged(up):
            turn.state.carrier = up
            if not up and turn.state.role not in (Role.STANDBY, Role.STOPPED):
                give_back(turn, "the interface has no carrier")
        case KeptLate():
            lose(turn, "this process did not run for too long", lease=False)
        case KeepFailed(problem):
            turn.state.problem = problem
            turn.state.role = Role.LEAVING
            leaving_rules.leave_at_once(turn, "the kernel refuses it")
        case StopRequested():
            leaving_rules.stop(turn)
        case _:
            assert_never(event)


def _run_timers(turn: Turn) -> None:
    state, now = turn.state, turn.now
    if _holds(state):
        _judge_confirmation(turn)
    if state.role in (Role.TAKING, Role.BLOCKED) and now >= state.probe_at:
        lan_rules.probe(turn)
    if state.address_until is not None and now >= state.announce_at:
        lan_rules.announce_again(turn)
    leaving_rules.consider_leaving(turn)
    if state.role == Role.LEAVING:
        leaving_rules.go_on(turn)
    if state.role == Role.STOPPED:
        return
    if now >= state.beat_at:
        _beat(turn)
    if now >= state.ask_at:
        lan_rules.ask_gateway(turn)
    lan_rules.judge_gateway(turn)
    standby_rules.consider_taking(turn)


def _holds(state: State) -> bool:
    return state.role in (Role.ACTIVE, Role.LEAVING) and state.address_until is not None


def _judge_confirmation(turn: Turn) -> None:
    state, now = turn.state, turn.now
    if state.confirmed and now >= lease_rules.confirmed_until(turn):
        state.confirmed = False
        state.unconfirmed_at = now
        turn.tell(HoldUnconfirmed(error=state.api_error or "a request has no answer yet"))
    if (
        not state.confirmed
        and turn.settings.release_on_silence
        and now >= state.valid_until - RELEASE_EARLY_S
    ):
        lose(turn, "the Lease can't be renewed", lease=False)


def _beat(turn: Turn) -> None:
    state = turn.state
    state.beat_at = turn.now + turn.settings.beat_s
    if state.role == Role.LEAVING and state.phase >= Phase.DEPRECATED:
        return
    if state.address_until is not None:
        deadline = state.address_until
        if state.confirmed:
            deadline = min(deadline, state.valid_until)
        keep(turn, deadline + LATE_S)
    if state.own is not None or state.doubtful is not None or standby_rules.is_quiet(turn):
        lease_rules.request(turn)


def _next_wake(turn: Turn) -> float:
    state = turn.state
    times = [state.beat_at, state.ask_at, state.probe_at, state.announce_at]
    if _holds(state):
        if state.confirmed:
            times.append(lease_rules.confirmed_until(turn))
        elif turn.settings.release_on_silence:
            times.append(state.valid_until - RELEASE_EARLY_S)
    if state.role == Role.LEAVING:
        times.append(state.leave_at)
    if state.role == Role.STANDBY and standby_rules.free_at(turn) > turn.now:
        times.append(standby_rules.free_at(turn))
    return min(times) if state.role != Role.STOPPED else NEVER
