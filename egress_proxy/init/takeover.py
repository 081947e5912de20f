"""One attempt to take the address and the default route; it can be undone at any point.

The order of `carry_out` matters. Before the address is taken, no other host may have it. Before the
default route moves, replies have their own table. The default route is never absent, so that a kill
at any moment leaves a pod that the next run can finish. Redirect mode's rules come first and
forwarding comes last, so that nothing is forwarded without rules.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem
from egress_proxy.init import problems
from egress_proxy.init.announce import LanSockets, announce, detect, other_owner
from egress_proxy.init.events import InitStep
from egress_proxy.init.plan import make_plan
from egress_proxy.init.rule_problems import no_conntrack
from egress_proxy.init.steps import PutAddress, PutRule
from egress_proxy.nft.conntrack import delete, list_flows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from egress_proxy.events import Observer
    from egress_proxy.init.announce import Pace
    from egress_proxy.init.netlink import Netlink
    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import State
    from egress_proxy.init.steps import Change, Step
    from egress_proxy.ip import Address

# How long the parent of a macvlan may take until it carries frames.
_CARRIER_TIMEOUT_S = 5.0
# RFC 4862 section 5.4 takes at most 2 s with the default sysctls; a CNI may have made it longer.
_DETECTION_TIMEOUT_S = 5.0


class Takeover:
    """One attempt; `done` are the steps that it has made."""

    def __init__(self, netlink: Netlink, settings: InitSettings, log: Observer, pace: Pace) -> None:
        self.done: list[Step] = []
        self._netlink = netlink
        self._settings = settings
        self._log = log
        self._pace = pace
        self._addresses = tuple(source.address for source in settings.sources)

    def carry_out(self, state: State, observe: Callable[[], State]) -> tuple[Problem, ...]:
        """Make all steps from `state` to the settings; returns warnings.

        Raises `PlatformError` or `OSError`; the caller then calls `undo`.
        """
        plan = make_plan(state, self._settings)
        self._apply(plan.rules)
        self._delete_untranslated_flows(state)
        self._apply(plan.link)
        mac = self._wait_for_carrier()
        if self._settings.shared:
            self._apply(plan.routes)
            self._read_back(observe())
            return ()
        with self._open_lan(mac) as lan:
            # The kernel's IPv6 duplicate address detection runs while we probe for IPv4.
            self._apply(plan.ipv6_addresses)
            self._refuse_owner(detect(lan, self._addresses, self._pace))
            self._apply(plan.ipv4_addresses)
            self._wait_for_detection(lan)
            self._apply(plan.routes)
            self._read_back(observe())
            return self._announce(lan)

    def undo(self) -> tuple[Problem, ...]:
        """Undo the steps in `done`, the last one first; returns those that can't be undone."""
        left = []
        while self.done:
            change = self.done.pop().undo
            try:
                self._netlink.apply(change)
            except OSError as error:
                left.append(problems.not_undone(change, error))
            else:
                self._log_step(change, undo=True)
        return tuple(left)

    def _apply(self, steps: Iterable[Step]) -> None:
        for step in steps:
            try:
                self._netlink.apply(step.change)
            except OSError as error:
                if error.errno == errno.EEXIST and isinstance(step.change, PutAddress | PutRule):
                    # Added by another program since the plan was made: not ours to take back.
                    continue
                raise PlatformError(problems.refused(step.change, error, self._settings)) from None
            self.done.append(step)
            self._log_step(step.change, undo=False)

    def _log_step(self, change: Change, *, undo: bool) -> None:
        for command in str(change).splitlines():
            self._log.observe(InitStep(command=command, undo=undo))

    def _delete_untranslated_flows(self, state: State) -> None:
        """Delete flows to the pod that began before the rules that would translate them.

        The kernel consults the rules once per flow, so a UDP flow that continues would never reach
        its destination. Every run does it, because an earlier one may have been killed before.
        """
        ruleset = self._settings.ruleset
        if ruleset is None:
            return
        own = {assigned.address for assigned in state.addresses}
        inside = {
            assigned.address
            for assigned in state.addresses
            if assigned.interface != self._settings.interface
        }
        try:
            for flow in list(list_flows()):
                if (
                    flow.target.address in inside
                    and flow.source.address not in own
                    and ruleset.misses(flow)
                ):
                    delete(flow)
        except OSError as error:
            raise PlatformError(no_conntrack(error)) from None

    def _wait_for_carrier(self) -> bytes:
        """Wait until the interface carries frames; returns its Ethernet address."""
        interface = self._settings.interface

        def ready(state: State) -> str | None:
            link = state.link(interface)
            return link.mac if link is not None and link.up and link.carrier else None

        mac = self._netlink.wait(ready, _CARRIER_TIMEOUT_S)
        if mac is None:
            raise PlatformError(problems.no_carrier(interface, _CARRIER_TIMEOUT_S))
        return bytes.fromhex(mac.replace(":", ""))

    def _open_lan(self, mac: bytes) -> LanSockets:
        try:
            return LanSockets.open(self._settings.interface, mac)
        except OSError as error:
            problem = problems.no_packet_socket(self._settings.interface, error)
            raise PlatformError(problem) from None

    def _refuse_owner(self, owner: tuple[Address, str] | None) -> None:
        if owner is not None:
            raise PlatformError(problems.address_in_use(*owner))

    def _wait_for_detection(self, lan: LanSockets) -> None:
        def settled(state: State) -> tuple[Address, ...] | None:
            assigned = [
                assigned
                for assigned in map(state.assigned, self._addresses)
                if assigned is not None
            ]
            failed = tuple(one.address for one in assigned if one.duplicate)
            return None if not failed and any(one.tentative for one in assigned) else failed

        failed = self._netlink.wait(settled, _DETECTION_TIMEOUT_S)
        if failed is None:
            raise PlatformError(problems.undecided(_DETECTION_TIMEOUT_S))
        for address in failed:
            self._refuse_owner(other_owner(lan.pending(), [address]) or (address, ""))

    def _read_back(self, state: State) -> None:
        steps = make_plan(state, self._settings).steps
        if steps:
            raise PlatformError(*(problems.not_in_effect(step.change) for step in steps))

    def _announce(self, lan: LanSockets) -> tuple[Problem, ...]:
        silent = tuple(
            problems.silent_gateway(self._settings.interface, source)
            for source in announce(lan, self._settings.sources, self._pace)
        )
        if silent and self._settings.gateway_required:
            raise PlatformError(*silent)
        return silent
