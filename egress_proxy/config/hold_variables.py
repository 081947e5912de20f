"""The environment variables of high availability, and what `hold` reads of them.

Those of `egress-proxy hold`, with the pod's identity from the downward API. `EGRESS_HA` is read by
every command, and so it is in `variables`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from egress_proxy.config import run_variables, sources, variables
from egress_proxy.config.variables import RefusedError, Variable
from egress_proxy.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from egress_proxy.config.run_variables import AdminListen
    from egress_proxy.config.sources import Source
    from egress_proxy.config.variables import LogFormat
    from egress_proxy.ip import Address

Silence = Literal["keep", "release"]

# RFC 1123 section 2.1, as Kubernetes has it for the names of most objects.
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_LONGEST_NAME = 253
# The kernel counts lifetimes in whole seconds; a failover that takes longer than a minute is no
# better than a single pod that Kubernetes replaces.
_LONGEST_DURATION_S = 60


def _parse_object_name(text: str) -> str:
    if len(text) > _LONGEST_NAME or not _SUBDOMAIN.fullmatch(text):
        raise RefusedError(
            "not a name that Kubernetes allows",
            "write lower-case letters, digits and '-', for example egress-router",
        )
    return text


def _parse_lease_duration(text: str) -> int:
    duration_s = variables.parse_duration(text)
    if duration_s != int(duration_s) or not 1 <= duration_s <= _LONGEST_DURATION_S:
        raise RefusedError(
            "not a number of whole seconds from 1 to 60",
            "write for example 2s: the API server and the kernel count in seconds",
        )
    return int(duration_s)


def _parse_silence(text: str) -> Silence:
    if text == "keep":
        return "keep"
    if text == "release":
        return "release"
    raise RefusedError("not a choice", "write keep or release")


LEASE = Variable(
    "EGRESS_HA_LEASE",
    "egress-router",
    _parse_object_name,
    "the name of the Lease, in the pod's namespace",
)
LEASE_DURATION = Variable(
    "EGRESS_HA_LEASE_DURATION",
    "2s",
    _parse_lease_duration,
    "the lifetime of the Lease and of the address: whole seconds, from 1 to 60; both are renewed "
    "four times in it",
)
HANDOVER = Variable(
    "EGRESS_HA_HANDOVER",
    # docs/decisions/070: with 1 s kube-proxy still sent clients to the old pod.
    "2s",
    variables.parse_duration,
    "how long the address is kept after SIGTERM, while the Service's endpoints move",
)
API_SILENCE = Variable(
    "EGRESS_HA_API_SILENCE",
    "keep",
    _parse_silence,
    "while the Lease can't be renewed: keep the address until another pod claims it, or release it",
)
GATEWAY_CHECK = Variable(
    "EGRESS_HA_GATEWAY_CHECK",
    "on",
    variables.parse_flag,
    "off: the gateway answers no ARP or ND, and is not asked",
)
ADMIN_LISTEN = Variable(
    "EGRESS_HOLD_ADMIN_LISTEN",
    ":9154",
    partial(run_variables.parse_admin_listen, port=9154),
    "health and metrics of hold: [address]:port, or off; without an address, the pod's own",
)
POD_NAME = Variable(
    "POD_NAME", None, _parse_object_name, "the pod's name (downward API: metadata.name)"
)
POD_NAMESPACE = Variable(
    "POD_NAMESPACE",
    None,
    _parse_object_name,
    "the pod's namespace (downward API: metadata.namespace)",
)
POD_IP = Variable(
    "POD_IP",
    None,
    variables.parse_address,
    "the pod's address (downward API: status.podIP), the source of requests to the API server",
)
IDENTITY = (POD_NAME, POD_NAMESPACE, POD_IP)
VARIABLES: tuple[Variable[Any], ...] = (
    variables.HA,
    LEASE,
    LEASE_DURATION,
    HANDOVER,
    API_SILENCE,
    GATEWAY_CHECK,
    ADMIN_LISTEN,
    *IDENTITY,
    sources.SOURCE,
    sources.GATEWAY,
    variables.INTERFACE,
    run_variables.DRAIN_TIMEOUT,
    variables.LOG_FORMAT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldSettings:
    """What `hold` does. Durations are in seconds."""

    lease: str
    duration_s: int
    handover_s: float
    drain_s: float
    release_on_silence: bool
    gateway_check: bool
    admin_listen: AdminListen | None
    pod_name: str
    pod_namespace: str
    pod_ip: Address
    sources: tuple[Source, ...]
    interface: str
    log_format: LogFormat


def read_hold_settings(environ: Mapping[str, str]) -> HoldSettings:
    """Everything `hold` needs from `environ`. Raises `ConfigurationError` with all problems."""
    reader = variables.Reader(environ)
    if not reader.read(variables.HA) and not reader.problems:
        reader.problems.append(
            Problem(
                variable=variables.HA.name,
                reason="not set",
                cure="set it to lease in every container",
            )
        )
    settings = HoldSettings(
        lease=reader.read(LEASE),
        duration_s=reader.read(LEASE_DURATION),
        handover_s=reader.read(HANDOVER),
        drain_s=reader.read(run_variables.DRAIN_TIMEOUT),
        release_on_silence=reader.read(API_SILENCE) == "release",
        gateway_check=reader.read(GATEWAY_CHECK),
        admin_listen=reader.read(ADMIN_LISTEN),
        pod_name=reader.read_required(POD_NAME),
        pod_namespace=reader.read_required(POD_NAMESPACE),
        pod_ip=reader.read_required(POD_IP),
        sources=sources.read_sources(reader),
        interface=reader.read(variables.INTERFACE),
        log_format=reader.read(variables.LOG_FORMAT),
    )
    reader.raise_problems()
    return settings
