"""What holds for every TCP session of the daemon, and the rules that say so. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from egress_proxy.nft.table import Declaration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.config.settings import Settings
    from egress_proxy.ip import Address, Network

# How nft names the families.
NFT_FAMILY = {4: "ip", 6: "ip6"}
_NFPROTO = {4: "ipv4", 6: "ipv6"}
# For sessions that may be idle for ever: 46 days, the most that the kernel's 32-bit timers hold.
NEVER_S = 4_000_000
# How long a flow that is over is remembered. The kernel's own 120 s would keep its port from use.
_OVER_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRules:
    """What holds for the TCP sessions of the daemon: how many, whose, and how long they may idle.

    Durations are in whole seconds, 0 is never; `maximum` 0 is no maximum, and without `clients` or
    `listen` it is all of them. With `recorded` there are events of every session, else only of
    those that no upstream has answered.
    """

    connect_timeout_s: int
    idle_timeout_s: int
    half_close_timeout_s: int
    maximum: int = 0
    clients: tuple[Network, ...] = ()
    listen: tuple[Address, ...] = ()
    recorded: bool = False


def session_rules(settings: Settings) -> SessionRules:
    """Whole seconds, as the kernel counts them; 0 stays 0."""
    return SessionRules(
        connect_timeout_s=math.ceil(settings.connect_timeout_s),
        idle_timeout_s=math.ceil(settings.idle_timeout_s),
        half_close_timeout_s=math.ceil(settings.half_close_timeout_s),
        maximum=settings.max_connections or 0,
        clients=settings.allow_clients,
        listen=() if settings.listen == "auto" else settings.listen,
        recorded=settings.debug or settings.log_connections == "all",
    )


def timeouts(name: str, family: str, sessions: SessionRules) -> Declaration:
    """How long the kernel remembers a session, by TCP's state; `family` is in nft's words."""
    half = sessions.half_close_timeout_s or NEVER_S
    if sessions.idle_timeout_s:
        half = min(half, sessions.idle_timeout_s)
    policy = {
        "syn_sent": sessions.connect_timeout_s,
        "syn_recv": sessions.connect_timeout_s,
        "established": sessions.idle_timeout_s or NEVER_S,
        "fin_wait": half,
        "close_wait": half,
        "last_ack": half,
        "time_wait": _OVER_S,
        "close": _OVER_S,
        # The kernel's own 300 s of silence after unacknowledged octets would be shorter.
        "unack": sessions.idle_timeout_s or NEVER_S,
        "retrans": sessions.idle_timeout_s or NEVER_S,
    }
    entries = ", ".join(f"{state} : {seconds}" for state, seconds in policy.items())
    return Declaration(
        "ct timeout", name, ("protocol tcp", f"l3proto {family}", f"policy = {{ {entries} }}")
    )


def listening(addresses: tuple[Address, ...]) -> Iterator[str]:
    """Return for every packet to none of `addresses`, if there are any."""
    for version, family in NFT_FAMILY.items():
        of_version = [str(address) for address in addresses if address.version == version]
        if any(ip_address(address).is_unspecified for address in of_version):
            continue
        if len(of_version) == 1:
            # nft lists a set of one without its braces.
            yield f"{family} daddr != {of_version[0]} return"
        elif of_version:
            yield f"{family} daddr != {{ {', '.join(of_version)} }} return"
        elif addresses:
            yield f"meta nfproto {_NFPROTO[version]} return"


def accounting(sessions: SessionRules) -> Iterator[str]:
    """The rules for the first packet of each session that may pass."""
    for version, nfproto in _NFPROTO.items():
        yield f'meta nfproto {nfproto} ct timeout set "sessions{version}"'
    if sessions.maximum:
        yield f"ct count over {sessions.maximum} return"
