"""What prevents redirect mode's rules, each with its cure. Pure."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from egress_proxy.errors import Problem
from egress_proxy.init.forwarding import ipv6_forwards
from egress_proxy.init.settings import DESTINATION
from egress_proxy.init.state import IPV6
from egress_proxy.nft.command import NoNftError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import State


def find_rule_problems(state: State, settings: InitSettings) -> Iterator[Problem]:
    if state.table_refusal is not None:
        yield no_rules(state.table_refusal)
    wanted = settings.ruleset is not None and IPV6 in settings.ruleset.versions
    if wanted and not state.sysctls_writable and not ipv6_forwards(state):
        yield Problem(
            variable=DESTINATION.name,
            reason="it has IPv6 addresses, IPv6 does not forward in this pod, "
            "and /proc/sys is read-only",
            cure="set net.ipv6.conf.all.forwarding=1 in the pod's securityContext.sysctls, or with "
            "the CNI plugin tuning in the network attachment, or run init privileged",
        )


def no_rules(error: OSError) -> Problem:
    """nft(8), or the kernel behind it, does not take redirect mode's rules."""
    if isinstance(error, NoNftError):
        return Problem(
            reason="this image has no nft program, which redirect mode needs",
            cure="use an image that this project builds, or install nftables in yours",
        )
    powerless = error.errno in (errno.EPERM, errno.EACCES)
    return Problem(
        reason=f"nft can't set the rules of redirect mode: {reason_of(error)}",
        cure="add NET_ADMIN to securityContext.capabilities"
        if powerless
        else "the node needs Linux 5.2 or later with nf_tables, nft_chain_nat, nft_nat, nft_ct, "
        "nft_fib_inet and nf_conntrack: load these modules",
    )


def no_conntrack(error: OSError) -> Problem:
    """The kernel does not list its flows, or does not delete one."""
    return Problem(
        reason=f"can't delete flows that began before the rules: {reason_of(error)}",
        cure="load nf_conntrack_netlink on the node",
    )


def reason_of(error: OSError) -> str:
    """The kernel's reason; if_nametoindex(3) in Python gives a text of its own."""
    return error.strerror or str(error)
