"""What stands in the way of the kernel data plane in this container; it changes nothing.

`run` and `check` judge by it; `check` also shows the rules that `run` would set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from egress_proxy.config.run_variables import DATAPLANE
from egress_proxy.errors import Problem
from egress_proxy.nft import command, conntrack_events
from egress_proxy.nft.marks import mark_of
from egress_proxy.nft.rules_writer import is_there
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.session_rules import session_rules
from egress_proxy.nft.table import quote_interface
from egress_proxy.pod.forwarding import Forwarding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from egress_proxy.config.destinations import Destination
    from egress_proxy.config.settings import Settings
    from egress_proxy.ip import Address
    from egress_proxy.pod.facts import Pod


def rules_of(
    settings: Settings,
    sources: Iterable[Address],
    found: Iterable[tuple[Destination, Sequence[Address]]] = (),
) -> Ruleset:
    """The rules for `settings` with the addresses that are `found` of each destination."""
    return Ruleset(
        egress=settings.interface,
        sources=tuple(sources),
        translations=tuple(
            Translation(
                "tcp",
                destination.port,
                tuple(addresses),
                destination.remote_port,
                mark_of(destination.port, str(destination)),
            )
            for destination, addresses in found
        ),
        sessions=session_rules(settings),
    )


def preconditions(settings: Settings, sources: Sequence[Address], pod: Pod) -> list[Problem]:
    """All problems of a start with the kernel as data plane."""
    versions = {source.version for source in sources}
    return kernel_problems(
        rules_of(settings, sources),
        standby=settings.shared,
        ipv6_stuck=Forwarding(pod.interfaces, settings.interface, versions).stuck,
    )


def kernel_problems(ruleset: Ruleset, *, standby: bool, ipv6_stuck: bool) -> list[Problem]:
    """All problems with `ruleset`.

    `standby`: another pod may have its sources. `ipv6_stuck`: IPv6 should be forwarded, and is not.
    """
    found = []
    try:
        quote_interface(ruleset.egress)
        table = ruleset.table()
        if not is_there(table):
            command.try_text(table.transaction())
        conntrack_events.open_events(every=True).close()
    except ValueError:
        found.append(
            _problem(
                f"nftables can't name the interface {ruleset.egress!r}",
                "give it a name of letters, digits, '.', '_', '@' and '-'",
            )
        )
    except OSError as error:
        found.append(refused(error))
    if not ruleset.sources:
        found.append(_problem("it needs a reserved address", "set EGRESS_DNS_PROXY_SOURCE"))
    if standby:
        found.append(
            _problem(
                "with EGRESS_HA a standby keeps its clients waiting, which the kernel can't do",
                "use splice, or one pod without EGRESS_HA",
            )
        )
    if ipv6_stuck:
        found.append(
            _problem(
                "there is an IPv6 source, IPv6 does not forward in this pod, and /proc/sys is "
                "read-only",
                "set net.ipv6.conf.all.forwarding=1 in the pod's securityContext.sysctls, or "
                "with the CNI plugin tuning in the network attachment",
            )
        )
    return found


def _problem(reason: str, cure: str) -> Problem:
    return Problem(variable=DATAPLANE.name, value="kernel", reason=reason, cure=cure)


def refused(error: OSError) -> Problem:
    """The problem that `error` of nft or of the kernel is."""
    if isinstance(error, command.NoNftError):
        return _problem(
            "this image has no nft program",
            "use an image that this project builds, or install nftables in yours",
        )
    if isinstance(error, PermissionError):
        return _problem(
            f"the kernel refuses it: {error.strerror}",
            "add NET_ADMIN to the main container's securityContext.capabilities, and runAsUser: 0",
        )
    return _problem(
        f"the kernel refuses it: {error.strerror or error}",
        "the node needs Linux 5.8 or later with nf_tables, nft_chain_nat, nft_nat, nft_ct, "
        "nft_fib_inet, nft_numgen, nft_connlimit and nf_conntrack_netlink: load these modules",
    )
