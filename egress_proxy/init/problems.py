"""What prevents `init` from working, as problems with a cure. Pure.

`unmet_preconditions` checks the observed state; the other functions describe a step that failed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from egress_proxy.config import sources as names
from egress_proxy.config import variables
from egress_proxy.errors import Problem
from egress_proxy.init.routes import foreign_uses
from egress_proxy.init.rule_problems import find_rule_problems, no_rules, reason_of
from egress_proxy.init.state import IPV6, REPLY_TABLE
from egress_proxy.init.steps import PutAddress, PutTable, SetLink, SetSysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.config.sources import Source
    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import Link, State
    from egress_proxy.init.steps import Change
    from egress_proxy.ip import Address

# Six octets in hexadecimal, with a colon between.
_MAC_CHARACTERS = 17
_ATTACHMENT = (
    'with OpenShift SDN set the annotation pod.network.openshift.io/assign-macvlan: "true"; '
    "elsewhere attach a macvlan network (Multus, whose first interface is net1)"
)


def unmet_preconditions(state: State, settings: InitSettings) -> tuple[Problem, ...]:
    """Everything that would make init fail, as far as it can be known without trying."""
    link = state.link(settings.interface)
    problems = [*capability_problems(state)]
    if link is None or link.loopback or len(link.mac) != _MAC_CHARACTERS:
        problems.append(_interface_problem(state, settings.interface))
        return tuple(problems)
    problems.extend(_role_problems(state, link, settings))
    for source in settings.sources:
        problems.extend(_source_problems(state, link, source))
        if settings.shared:
            problems.extend(_shared_problems(state, source))
    problems.extend(find_rule_problems(state, settings))
    return tuple(problems)


def capability_problems(state: State) -> Iterator[Problem]:
    """What keeps init from changing anything; a check that changes nothing does without."""
    for name in state.missing_capabilities:
        yield Problem(
            reason=f"init has no capability {name}",
            cure=f"add {name} to securityContext.capabilities, and runAsUser: 0, "
            "because Kubernetes gives capabilities to root only",
        )


def _interface_problem(state: State, interface: str) -> Problem:
    link = state.link(interface)
    if link is None:
        others = [other.name for other in state.links if not other.loopback]
        reason = f"no such interface (there are {', '.join(others) or 'none'})"
    elif link.loopback:
        reason = "this is the loopback interface"
    else:
        reason = "this is not an Ethernet interface"
    return Problem(
        variable=variables.INTERFACE.name, value=interface, reason=reason, cure=_ATTACHMENT
    )


def _role_problems(state: State, link: Link, settings: InitSettings) -> Iterator[Problem]:
    """The interface is the pod's own network, which clients would lose."""
    reserved = {source.address for source in settings.sources}
    at_home = [
        assigned
        for assigned in state.addresses
        if not (assigned.address.is_loopback or assigned.address.is_link_local)
        and assigned.address not in reserved
    ]
    if at_home and all(assigned.interface == link.name for assigned in at_home):
        yield Problem(
            variable=variables.INTERFACE.name,
            value=link.name,
            reason="this is the pod's only network",
            cure=_ATTACHMENT,
        )


def _source_problems(state: State, link: Link, source: Source) -> Iterator[Problem]:
    assigned = state.assigned(source.address)
    if assigned is not None and assigned.interface != link.name:
        yield Problem(
            variable=names.SOURCE.name,
            value=str(source),
            reason=f"the pod has this address on {assigned.interface}",
            cure="write an address that is reserved on the egress network",
        )
    if state.assigned(source.gateway) is not None:
        yield Problem(
            variable=names.GATEWAY.name,
            value=str(source.gateway),
            reason="this is the pod's own address",
            cure="write the router's address",
        )
    if source.version == IPV6:
        yield from _ipv6_problems(state, link, source)
    for entry in foreign_uses(state, link, source):
        yield Problem(
            value=str(entry),
            reason=f"another program uses routing table {REPLY_TABLE}, which init needs for "
            "replies to clients",
            cure="let that program use another table",
        )


def _shared_problems(state: State, source: Source) -> Iterator[Problem]:
    assigned = state.assigned(source.address)
    if assigned is not None and assigned.lasting:
        yield Problem(
            variable=names.SOURCE.name,
            value=str(source),
            reason=f"{assigned.interface} has this address already, permanently",
            cure="remove ipam from the network attachment: with high availability, hold takes the "
            "address, and only one pod at a time has it",
        )


def _ipv6_problems(state: State, link: Link, source: Source) -> Iterator[Problem]:
    if link.ipv6 is None:
        yield Problem(
            variable=names.SOURCE.name,
            value=str(source),
            reason=f"{link.name} has no IPv6",
            cure="enable IPv6 in the node's kernel (ipv6.disable=0), with an MTU of 1280 or more",
        )
    elif link.ipv6.disable_ipv6 and not state.sysctls_writable:
        yield Problem(
            variable=names.SOURCE.name,
            value=str(source),
            reason=f"IPv6 is off on {link.name}, and /proc/sys is read-only",
            cure=set_sysctl(link, "disable_ipv6"),
        )


def set_sysctl(link: Link, name: str) -> str:
    """The cure where `init` can't set IPv6's `name` of `link` itself."""
    return (
        f"set net.ipv6.conf.{link.name}.{name}=0, for example with the CNI plugin tuning in the "
        "network attachment, or run init privileged"
    )


def refused(change: Change, error: OSError, settings: InitSettings) -> Problem:
    """The kernel refuses `change`."""
    if isinstance(change, PutTable):
        return no_rules(error)
    if isinstance(change, (SetLink, SetSysctl)):
        variable, value = variables.INTERFACE.name, settings.interface
    elif isinstance(change, PutAddress):
        variable, value = names.SOURCE.name, str(change.assigned.address)
    else:
        variable = names.GATEWAY.name
        value = ",".join(str(source.gateway) for source in settings.sources)
    powerless = error.errno in (errno.EPERM, errno.EACCES)
    return Problem(
        variable=variable,
        value=value,
        reason=f"the kernel refuses '{change}': {reason_of(error)}",
        cure="add NET_ADMIN to securityContext.capabilities"
        if powerless
        else "compare it with what egress-proxy check shows",
    )


def failed(error: OSError, settings: InitSettings) -> Problem:
    """Reading the network, or sending and receiving on the interface, fails."""
    return Problem(
        variable=variables.INTERFACE.name,
        value=settings.interface,
        reason=f"the network failed while init ran: {reason_of(error)}",
        cure="look for something else that changes the pod's network",
    )


def not_undone(change: Change, error: OSError) -> Problem:
    """After a failure, `change` was to restore what was there before."""
    return Problem(
        value=str(change), reason=f"could not be undone: {reason_of(error)}", cure="delete the pod"
    )


def not_in_effect(change: Change) -> Problem:
    """The kernel accepted `change`, but it is not there afterwards."""
    return Problem(
        value=str(change),
        reason="was made, but is not in effect",
        cure="look for something else that changes the pod's network",
    )


def no_carrier(interface: str, waited_s: float = 0) -> Problem:
    within = f" within {waited_s:g} s" if waited_s else ""
    return Problem(
        variable=variables.INTERFACE.name,
        value=interface,
        reason=f"no carrier{within}",
        cure="check the node's interface below it: is it up, and is its cable in",
    )


def no_packet_socket(interface: str, error: OSError) -> Problem:
    return Problem(
        variable=variables.INTERFACE.name,
        value=interface,
        reason=f"can't send and receive frames on it: {reason_of(error)}",
        cure="add NET_RAW to securityContext.capabilities",
    )


def address_in_use(address: Address, mac: str) -> Problem:
    """Another host has `address`; `mac` is its Ethernet address, or empty."""
    return Problem(
        variable=names.SOURCE.name,
        value=str(address),
        reason=f"{mac or 'another host'} has this address already",
        cure="reserve one address for each pod; a Deployment needs one replica and strategy "
        "Recreate, so that the old pod has gone before the new one starts",
    )


def undecided(waited_s: float) -> Problem:
    """IPv6 duplicate address detection does not end."""
    return Problem(
        variable=names.SOURCE.name,
        reason=f"IPv6 looks for duplicates for more than {waited_s:g} s",
        cure="lower net.ipv6.conf.default.dad_transmits",
    )


def silent_gateway(interface: str, source: Source) -> Problem:
    return Problem(
        variable=names.GATEWAY.name,
        value=str(source.gateway),
        reason=f"does not answer on {interface}",
        cure="look for a hypervisor that lets only its own MAC address through (promiscuous mode, "
        "forged transmits), the wrong parent interface, or the wrong VLAN",
    )
