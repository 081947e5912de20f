"""The environment of `egress-proxy init` as one frozen value, or all of its problems at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from egress_proxy.config import variables
from egress_proxy.config.sources import GATEWAY, SOURCE, read_sources
from egress_proxy.config.variables import RefusedError, Variable
from egress_proxy.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from egress_proxy.config.sources import Source
    from egress_proxy.config.variables import LogFormat

Mode = Literal["dns-proxy", "http-proxy"]

_MODES: dict[str, Mode] = {"dns-proxy": "dns-proxy", "http-proxy": "http-proxy"}
# The original's two names for redirect mode; leaving the mode out meant the first.
_REDIRECT = ("legacy", "init")
_REDIRECT_DESTINATION = "EGRESS_DESTINATION"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSettings:
    """What `init` does; `sources` holds one IPv4 source, one IPv6 source, or both in that order."""

    interface: str
    sources: tuple[Source, ...]
    mode: Mode
    gateway_required: bool
    debug: bool
    log_format: LogFormat


def _parse_mode(text: str) -> Mode:
    if text in _REDIRECT:
        raise RefusedError("redirect mode is not implemented yet", "write dns-proxy")
    if text not in _MODES:
        raise RefusedError("not a mode", "write dns-proxy or http-proxy")
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
    "dns-proxy or http-proxy; for both, init sets up the network and nothing else",
)
DEBUG = Variable("EGRESS_ROUTER_DEBUG", "", variables.parse_flag, "on: log every netlink step")
VARIABLES: tuple[Variable[Any], ...] = (
    SOURCE,
    GATEWAY,
    GATEWAY_REQUIRED,
    MODE,
    DEBUG,
    variables.INTERFACE,
    variables.LOG_FORMAT,
)


def read_settings(environ: Mapping[str, str]) -> InitSettings:
    """Everything `init` needs from `environ`. Raises `ConfigurationError` with all problems."""
    reader = variables.Reader(environ)
    settings = InitSettings(
        interface=reader.read(variables.INTERFACE),
        sources=read_sources(reader),
        mode=_read_mode(reader),
        gateway_required=reader.read(GATEWAY_REQUIRED),
        debug=reader.read(DEBUG),
        log_format=reader.read(variables.LOG_FORMAT),
    )
    reader.raise_problems()
    return settings


def _read_mode(reader: variables.Reader) -> Mode:
    mode = reader.read(MODE)
    destination = reader.environ.get(_REDIRECT_DESTINATION, "").strip()
    if destination and not reader.environ.get(MODE.name, "").strip():
        reader.problems.append(
            Problem(
                variable=_REDIRECT_DESTINATION,
                value=destination,
                reason=f"without {MODE.name} this asks for redirect mode, "
                "which is not implemented yet",
                cure=f"set {MODE.name} to dns-proxy, "
                "and EGRESS_DNS_PROXY_DESTINATION of the main container",
            )
        )
    return mode
