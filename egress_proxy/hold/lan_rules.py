"""The rules about the LAN: probes, claims, announcements, the gateways.

Only a frame that says "I have the address" counts as a claim. A probe has no sender address, and
switches that track hosts, and scanners, send probes too: none of them wants the address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egress_proxy.hold.events import (
    AddressDefended,
    GatewayBack,
    GatewaySilent,
    HoldBlocked,
)
from egress_proxy.hold.messages import Announce, AskGateway, ListPods, Probe, ShowGateway
from egress_proxy.hold.states import NEVER, Phase, Role
from egress_proxy.hold.transitions import announce, give_back, lose, start_probing, take

if TYPE_CHECKING:
    from egress_proxy.hold.messages import Claimed
    from egress_proxy.hold.objects import Pod
    from egress_proxy.hold.states import Turn
    from egress_proxy.ip import Address

# RFC 5227 section 1.1 has seconds. A LAN answers in milliseconds, and the Lease is decided already.
PROBES = 2
PROBE_INTERVAL_S = 0.1
# After a claim an unconfirmed owner needs a moment to drop the address.
YIELD_S = 0.05
BLOCKED_AFTER_S = 3.0
BLOCKED_PROBE_INTERVAL_S = 1.0
ANNOUNCE_INTERVAL_S = 0.05
# RFC 5227 section 2.4 allows one defence in ten seconds, (b), or any number, (c). The Lease says
# who is right, so it is (c), with a limit: two hosts that answer each claim with a claim have sent
# 5,000 frames in 0.4 s.
DEFENCE_INTERVAL_S = 0.1
DEFENCE_TOLD_S = 10.0

ASK_INTERVAL_S = 0.5
# The pause after a request without an answer, while the frame may just have been lost.
ASK_AGAIN_S = 0.1
ASK_QUICKLY_S = 2.0
# A standby stops saying that it hears the gateway before an active one looks for it, so that a
# gateway that fails for both of them moves nothing: 0.5 s of an interval apart, and 0.1 s more.
GATEWAY_SHOWN_S = 0.9
GATEWAY_SILENT_S = 1.5
# And it says so again only after the active one has had time to hear it too.
GATEWAY_STABLE_S = 1.0
PODS_INTERVAL_S = 1.0
# The annotation of a pod that says whether it hears every gateway.
GATEWAY_ANNOTATION = "egress-proxy/gateway"
HEARD, SILENT = "heard", "silent"


def probe(turn: Turn) -> None:
    """The next probe is due, or the decision after the last one."""
    state = turn.state
    if state.probes < PROBES:
        state.probes += 1
        state.probe_at = turn.now + PROBE_INTERVAL_S
        state.answered = False
        turn.do(Probe())
    else:
        take(turn)


def claimed(turn: Turn, claim: Claimed) -> None:
    """Another host says that it has the address."""
    state = turn.state
    if state.role in (Role.TAKING, Role.BLOCKED):
        _answered(turn, claim)
    elif state.address_until is None:
        return
    elif state.confirmed and turn.now < state.valid_until:
        _defend(turn, claim)
    else:
        lose(turn, f"{claim.mac} claims it while the Lease is unconfirmed", lease=False)


def _answered(turn: Turn, claim: Claimed) -> None:
    """The address is not free: try again, first with a claim."""
    state = turn.state
    if state.answered:
        return
    if state.role == Role.BLOCKED:
        start_probing(turn, turn.now + BLOCKED_PROBE_INTERVAL_S)
    elif turn.now - state.taking_since >= BLOCKED_AFTER_S:
        state.role = Role.BLOCKED
        turn.tell(HoldBlocked(address=str(claim.address), mac=claim.mac))
        start_probing(turn, turn.now + BLOCKED_PROBE_INTERVAL_S)
    else:
        turn.do(Announce(state.valid_until))
        start_probing(turn, turn.now + YIELD_S)
    state.answered = True


def _defend(turn: Turn, claim: Claimed) -> None:
    state, now = turn.state, turn.now
    state.claims += 1
    if now >= state.defend_at:
        state.defend_at = now + DEFENCE_INTERVAL_S
        announce(turn)
    if now - state.defence_told_at >= DEFENCE_TOLD_S:
        state.defence_told_at = now
        turn.tell(AddressDefended(address=str(claim.address), mac=claim.mac, claims=state.claims))
        state.claims = 0


def announce_again(turn: Turn) -> None:
    state = turn.state
    state.announcements -= 1
    state.announce_at = turn.now + ANNOUNCE_INTERVAL_S if state.announcements else NEVER
    announce(turn)


def ask_gateway(turn: Turn) -> None:
    """Ask all gateways; soon again, if one of them may just have lost a frame."""
    state = turn.state
    losing = turn.gateway_age_s < ASK_QUICKLY_S
    state.ask_at = turn.now + (ASK_AGAIN_S if losing else ASK_INTERVAL_S)
    owner = state.address_until is not None and state.phase < Phase.DEPRECATED
    turn.do(AskGateway(owner=owner))


def gateway_heard(turn: Turn, gateway: Address) -> None:
    state = turn.state
    if gateway not in turn.settings.gateways:
        return
    if turn.gateway_age_s > GATEWAY_SHOWN_S:
        state.heard_since = turn.now
    state.heard = {**state.heard, gateway: turn.now}
    if turn.gateway_age_s < ASK_AGAIN_S:
        state.ask_at = turn.now + ASK_INTERVAL_S
    if state.gateway_silent and turn.gateway_age_s <= GATEWAY_SHOWN_S:
        state.gateway_silent = False
        turn.tell(GatewayBack())


def judge_gateway(turn: Turn) -> None:
    """Decide what to do when gateways have not answered for some time."""
    state, now = turn.state, turn.now
    heard = turn.gateway_age_s <= GATEWAY_SHOWN_S and now - state.heard_since >= GATEWAY_STABLE_S
    if heard != state.gateway_shown and (heard or now - state.started_at > GATEWAY_SILENT_S):
        state.gateway_shown = heard
        turn.do(ShowGateway(heard))
    if turn.gateway_age_s <= GATEWAY_SILENT_S or now - state.started_at <= GATEWAY_SILENT_S:
        return
    if not state.gateway_silent:
        state.gateway_silent = True
        silent = (
            str(gateway)
            for gateway in turn.settings.gateways
            if now - state.heard.get(gateway, -NEVER) > GATEWAY_SILENT_S
        )
        turn.tell(GatewaySilent(gateway=tuple(silent)))
    if state.role not in (Role.ACTIVE, Role.LEAVING) or state.address_until is None:
        return
    if not state.confirmed:
        if turn.lan_age_s > GATEWAY_SILENT_S:
            lose(turn, "neither the API server nor a gateway answers", lease=False)
    elif state.role == Role.ACTIVE and not state.pods_asked and now >= state.pods_at:
        state.pods_asked = True
        state.pods_at = now + PODS_INTERVAL_S
        turn.do(ListPods())


def pods_listed(turn: Turn, pods: tuple[Pod, ...] | None) -> None:
    """While a gateway does not answer this pod: does it answer a standby?"""
    if turn.gateway_age_s <= GATEWAY_SILENT_S:
        return
    if any(hears_gateway(pod) for pod in others(turn, pods)):
        give_back(turn, "a gateway is silent here, and a standby hears it")


def others(turn: Turn, pods: tuple[Pod, ...] | None) -> list[Pod]:
    """The pods that could take over."""
    return [
        pod
        for pod in pods or ()
        if pod.ready and not pod.deleting and pod.name != turn.settings.identity
    ]


def hears_gateway(pod: Pod) -> bool:
    return pod.annotations.get(GATEWAY_ANNOTATION) == HEARD
