"""What resolv.conf(5) says, as a frozen value. Pure.

c-ares reads the file too, but exposes neither the search list nor the reason when it can't read it.
Left out: ``ndots`` (a name is always looked up as it is first), ``sortlist``, and the environment
variables LOCALDOMAIN and RES_OPTIONS.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# RFC 1035 section 2.3.4.
_MAX_NAME = 253
# A file of a few lines; more is not read.
MAX_OCTETS = 1 << 16

# resolv.conf(5): where no server is named, the one on this host is meant.
_LOCAL = "127.0.0.1:53"
# resolv.conf(5): RES_MAXRETRANS and RES_MAXRETRY, beyond which the numbers are capped.
_MAX_TIMEOUT_S = 30
_MAX_ATTEMPTS = 5
_NUMBER = re.compile(r"(timeout|attempts):([0-9]{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvConf:
    """Name servers as ``address:port``; None is c-ares' own default."""

    name_servers: tuple[str, ...] = (_LOCAL,)
    search: tuple[str, ...] = ()
    timeout_s: float | None = None
    attempts: int | None = None
    rotate: bool = False


def parse_resolv_conf(text: str) -> ResolvConf:
    """What `text` says; lines that say nothing valid are skipped, as every resolver does."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        keyword, *values = re.split(r"[#;]", line, maxsplit=1)[0].split() or [""]
        if keyword == "nameserver" and values:
            servers += _server(values[0])
        elif keyword in {"search", "domain"}:
            # The last one counts.
            search = tuple(filter(None, (value.strip(".") for value in values)))
        elif keyword == "options":
            options += values
    numbers = {
        match[1]: int(match[2]) for option in options if (match := _NUMBER.fullmatch(option))
    }
    return ResolvConf(
        name_servers=tuple(dict.fromkeys(servers)) or (_LOCAL,),
        search=search,
        timeout_s=min(numbers.get("timeout", 0), _MAX_TIMEOUT_S) or None,
        attempts=min(numbers.get("attempts", 0), _MAX_ATTEMPTS) or None,
        rotate="rotate" in options,
    )


def _server(text: str) -> list[str]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return []
    return [f"[{address}]:53" if address.version == 6 else f"{address}:53"]  # noqa: PLR2004 - IPv6


def candidates(name: str, search: tuple[str, ...]) -> Iterator[str]:
    """The absolute names to look up for `name`, in order, without their trailing dots."""
    yield name.removesuffix(".")
    if name.endswith("."):
        return
    for domain in search:
        if len(name) + 1 + len(domain) <= _MAX_NAME:
            yield f"{name}.{domain}"
