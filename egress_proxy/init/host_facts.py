"""What init reads elsewhere than from netlink: name servers, capabilities, writable sysctls."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from egress_proxy.ip import Address

RESOLV_CONF = Path("/etc/resolv.conf")
_SYSCTLS = Path("/proc/sys/net/ipv6/conf/all/accept_ra")
_STATUS = Path("/proc/self/status")

# linux/capability.h: the numbers of all that init needs.
_CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13}


def read_name_servers(resolv_conf: Path = RESOLV_CONF) -> tuple[Address, ...]:
    """The servers of resolv.conf(5); one with a scope needs no route and is left out."""
    try:
        text = resolv_conf.read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Without the file there is no name server that could become unreachable.
        return ()
    return parse_name_servers(text)


def parse_name_servers(text: str) -> tuple[Address, ...]:
    found = []
    for line in text.splitlines():
        keyword, *values = line.split()[:2] or [""]
        if keyword == "nameserver" and values and "%" not in values[0]:
            try:
                found.append(ipaddress.ip_address(values[0]))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))


def missing_capabilities() -> tuple[str, ...]:
    """The capabilities that init needs and this process does not have."""
    return parse_missing(_STATUS.read_text(encoding="ascii", errors="replace"))


def parse_missing(status: str) -> tuple[str, ...]:
    """The same from the text of /proc/self/status (proc_pid_status(5), CapEff)."""
    [mask] = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(mask, 16)
    return tuple(name for name, number in _CAPABILITIES.items() if not effective >> number & 1)


def sysctls_writable() -> bool:
    """False where /proc/sys is read-only, as in every container that is not privileged."""
    return os.access(_SYSCTLS, os.W_OK)
