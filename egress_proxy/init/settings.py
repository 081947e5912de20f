"""The environment of `egress-proxy init` as one frozen value, or all of its problems at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from egress_proxy.config import variables
from egress_proxy.config.redirects import parse_redirects
from egress_proxy.config.sources import GATEWAY, SOURCE, read_sources
from egress_proxy.config.variables import RefusedError, Variable
from egress_proxy.errors import ConfigurationError, Problem
from egress_proxy.nft.ruleset import Ruleset, Translation
from egress_proxy.nft.table import quote_interface

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from egress_proxy.config.redirects import RedirectTable
    from egress_proxy.config.sources import Source
    from egress_proxy.config.variables import LogFormat

Mode = Literal["dns-proxy", "http-proxy", "init", "legacy"]

_MODES: dict[str, Mode] = {mode: mode for mode in ("dns-proxy", "http-proxy", "init", "legacy")}
# The modes with rules of their own; the original meant the second where there was none.
_REDIRECT: tuple[Mode, ...] = ("init", "legacy")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSettings:
    """What `init` does; `sources` holds one IPv4 source, one IPv6 source, or both in that order.

    `ruleset` is redirect mode's; without one the pod forwards nothing. `shared`: the addresses are
    taken and released by `hold`, and init only prepares for them.
    """

    interface: str
    sources: tuple[Source, ...]
    mode: Mode
    gateway_required: bool
    debug: bool
    log_format: LogFormat
    ruleset: Ruleset | None = None
    shared: bool = False


def _parse_text(text: str) -> str:
    return text


def _parse_mode(text: str) -> Mode:
    if text not in _MODES:
        raise RefusedError("not a mode", f"write {', '.join(_MODES)}")
    return _MODES[text]


GATEWAY_REQUIRED = Variable(
    "EGRESS_GATEWAY_REQUIRED",
    "",
    variables.parse_flag,
    "on: a gateway that does not answer is a failure; off: it is a warning",
)
MODE = Variable(
    "EGRESS_ROUTER_MODE",
    "dns-proxy",
    _parse_mode,
    "dns-proxy or http-proxy: set up the network and nothing else; init: redirect by the rules of "
    "EGRESS_DESTINATION, then exit; legacy: the same, then wait for SIGTERM, and the default where "
    "EGRESS_DESTINATION is set",
)
DESTINATION = Variable(
    "EGRESS_DESTINATION",
    "",
    _parse_text,
    "redirect mode's rules, one per line: <port> tcp|udp|sctp <address> [<remote port>]; "
    "an address alone on the last line gets all other traffic",
)
DEBUG = Variable("EGRESS_ROUTER_DEBUG", "", variables.parse_flag, "on: log every netlink step")
VARIABLES: tuple[Variable[Any], ...] = (
    SOURCE,
    GATEWAY,
    GATEWAY_REQUIRED,
    variables.HA,
    MODE,
    DESTINATION,
    DEBUG,
    variables.INTERFACE,
    variables.LOG_FORMAT,
)


def read_settings(environ: Mapping[str, str]) -> InitSettings:
    """Everything `init` needs from `environ`. Raises `ConfigurationError` with all problems."""
    reader = variables.Reader(environ)
    interface = reader.read(variables.INTERFACE)
    sources = read_sources(reader)
    mode = _read_mode(reader)
    shared = reader.read(variables.HA)
    if shared and mode in _REDIRECT:
        reader.problems.append(
            Problem(
                variable=variables.HA.name,
                value=reader.text(variables.HA),
                reason="redirect mode has no high availability",
                cure=f"set {MODE.name} to dns-proxy, or remove {variables.HA.name}",
            )
        )
    settings = InitSettings(
        interface=interface,
        sources=sources,
        mode=mode,
        gateway_required=reader.read(GATEWAY_REQUIRED),
        debug=reader.read(DEBUG),
        log_format=reader.read(variables.LOG_FORMAT),
        ruleset=_read_ruleset(reader, interface, sources) if mode in _REDIRECT else None,
        shared=shared,
    )
    reader.raise_problems()
    return settings


def _read_mode(reader: variables.Reader) -> Mode:
    # Without a mode, what the original did with these rules.
    if reader.text(DESTINATION) and not reader.environ.get(MODE.name, "").strip():
        return "legacy"
    return reader.read(MODE)


def _read_ruleset(
    reader: variables.Reader, interface: str | None, sources: tuple[Source, ...]
) -> Ruleset | None:
    """The rules of redirect mode; None where they, or what they depend on, are wrong."""
    try:
        # Not stripped: the lines are counted.
        table = parse_redirects(reader.environ.get(DESTINATION.name, ""), variable=DESTINATION.name)
    except ConfigurationError as error:
        reader.problems.extend(error.problems)
        return None
    if sources:
        reader.problems.extend(_unreachable(table, sources))
    if interface is None:
        return None
    try:
        quote_interface(interface)
    except ValueError:
        refused = RefusedError(
            "nftables can't name this interface in redirect mode",
            "give it a name of letters, digits, '.', '_', '@' and '-'",
        )
        reader.refuse(variables.INTERFACE, refused, interface)
    return Ruleset(
        egress=interface,
        sources=tuple(source.address for source in sources),
        translations=tuple(
            Translation(entry.protocol, entry.port, (entry.address,), entry.remote_port)
            for entry in table.redirects
        ),
        fallback=None if table.fallback is None else table.fallback.address,
    )


def _unreachable(table: RedirectTable, sources: tuple[Source, ...]) -> Iterator[Problem]:
    versions = {source.version for source in sources}
    own = {source.address for source in sources}
    for entry in table.entries:
        address = entry.address
        if address.version not in versions:
            reason = f"an IPv{address.version} address, and {SOURCE.name} has none to send from"
            cure = f"add one to {SOURCE.name}, and its router to {GATEWAY.name}"
        elif address in own:
            reason = f"the same address as {SOURCE.name}"
            cure = "write the remote host's own address"
        else:
            continue
        yield Problem(
            variable=DESTINATION.name,
            line=entry.line,
            value=str(address),
            reason=reason,
            cure=cure,
        )
