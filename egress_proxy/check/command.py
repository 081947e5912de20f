"""`egress-proxy check`: which parts are validated in this container, and what each finds."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from egress_proxy.check import warnings
from egress_proxy.check.report import Report
from egress_proxy.config import hold_variables, run_variables, settings, sources
from egress_proxy.config.explanations import value_in_effect
from egress_proxy.config.variables import HA, Reader
from egress_proxy.errors import ConfigurationError, EgressProxyError, PlatformError
from egress_proxy.init import settings as init_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from egress_proxy.config.settings import Settings
    from egress_proxy.config.sources import Source
    from egress_proxy.config.variables import Variable
    from egress_proxy.errors import Problem
    from egress_proxy.ip import Address


class How(NamedTuple):
    """How much is examined: only the text, or also connections to the destinations."""

    offline: bool
    connect: bool


Part: TypeAlias = "Callable[[Mapping[str, str], Report, How], None]"


def examine(
    environ: Mapping[str, str], unknown: Sequence[Problem], *, offline: bool, connect: bool
) -> Report:
    """Validate each part that is configured here; `unknown` are warnings about other variables.

    Without any configured part, `init` and `run` are validated; `hold` only if `EGRESS_HA` is set.
    """
    report = Report()
    report.warn(unknown)
    configured = [name for name, _, triggers in _PARTS if _any_set(environ, triggers)]
    for name, part, triggers in _PARTS:
        if configured and name not in configured:
            names = " and ".join(variable.name for variable in triggers)
            report.skipped(name, f"not validated: {names} are not set")
            continue
        _examine_part(name, part, environ, report, How(offline, connect))
    if Reader(environ).text(HA) not in ("", "off"):
        _examine_part("hold", _check_hold, environ, report, How(offline, connect))
    return report


def _examine_part(
    name: str, part: Part, environ: Mapping[str, str], report: Report, how: How
) -> None:
    try:
        part(environ, report, how)
    except EgressProxyError as error:
        report.failed(name, error)


def _check_init(environ: Mapping[str, str], report: Report, how: How) -> None:
    wanted = init_settings.read_settings(environ)
    report.warn(warnings.gateway_warnings(wanted.sources))
    if how.offline:
        report.good("init", "the configuration is good")
        return
    from egress_proxy.init import run as init_run  # noqa: PLC0415 - pyroute2 costs 25 MB
    from egress_proxy.init.problems import capability_problems  # noqa: PLC0415 - see above

    preview = init_run.preview(wanted)
    report.plan += str(preview).splitlines()
    report.warn(preview.warnings)
    lacking = list(capability_problems(preview.state))
    problems = [problem for problem in preview.problems if problem not in lacking]
    if preview.steps:
        # There is something to do, and this container could not do it.
        problems = [*lacking, *problems]
    elif lacking and not problems:
        report.good("network", "it is as init makes it")
    if problems:
        raise PlatformError(*problems)
    report.good("init", "the configuration is good")


def _check_run(environ: Mapping[str, str], report: Report, how: How) -> None:
    wanted = settings.read_settings(environ)
    reserved = _reserved(environ)
    report.warn(warnings.source_warnings(wanted, reserved))
    if how.offline:
        report.good("run", "the configuration is good")
        return
    from egress_proxy.check import preflight  # noqa: PLC0415 - check --offline needs none
    from egress_proxy.nft import kernel_problems  # noqa: PLC0415 - see above
    from egress_proxy.pod.address_monitor import choose_sources  # noqa: PLC0415 - see above
    from egress_proxy.pod.facts import read_pod  # noqa: PLC0415 - see above
    from egress_proxy.pod.preconditions import preconditions  # noqa: PLC0415 - see above

    pod = read_pod()
    problems = preconditions(wanted, pod)
    addresses: tuple[Address, ...] = ()
    if wanted.dataplane == "kernel" and not problems:
        addresses = tuple(map(ip_address, choose_sources(wanted, pod).values()))
        problems = kernel_problems.preconditions(wanted, addresses, pod)
    if problems:
        raise PlatformError(*problems)
    report.good("run", "the configuration is good")
    gateways = [source.gateway for source in reserved]
    examined = asyncio.run(preflight.examine(wanted, pod, gateways, connect=how.connect))
    report.add(examined.findings)
    if wanted.dataplane == "kernel":
        rules = kernel_problems.rules_of(wanted, addresses, examined.addresses)
        report.plan += ["rules:", *(f"  {line}" for line in rules.table().commands())]


def _check_hold(environ: Mapping[str, str], report: Report, _how: How) -> None:
    """Read what `hold` reads; only its own container has all of the pod's identity."""
    absent = [each.name for each in hold_variables.IDENTITY if each.name not in environ]
    try:
        hold_variables.read_hold_settings(environ)
    except ConfigurationError as error:
        problems = [problem for problem in error.problems if problem.variable not in absent]
        if problems:
            raise ConfigurationError(*problems) from error
    report.good("hold", "the configuration is good")
    if absent:
        report.skipped("hold", f"not validated: {', '.join(absent)}, which egress-hold has")


# Which variables show that a command is configured in this container.
_PARTS: tuple[tuple[str, Part, tuple[Variable[Any], ...]], ...] = (
    ("init", _check_init, (sources.SOURCE, sources.GATEWAY)),
    ("run", _check_run, (run_variables.DESTINATION, run_variables.DESTINATION_FILE)),
)


def _any_set(environ: Mapping[str, str], variables: Sequence[Variable[Any]]) -> bool:
    return any(variable.name in environ for variable in variables)


def _reserved(environ: Mapping[str, str]) -> tuple[Source, ...]:
    """The reserved addresses, where init is configured here too, and rightly."""
    reader = Reader(environ)
    found = sources.read_sources(reader)
    return () if reader.problems else found


def settings_in_effect(
    environ: Mapping[str, str], commands: Mapping[str, Sequence[Variable[Any]]]
) -> Iterator[str]:
    """One line per variable of each command, with its value in effect."""
    connections = _allowed_connections(environ)
    for command, variables in commands.items():
        yield f"{command}:"
        width = max(len(variable.name) for variable in variables)
        for variable in variables:
            value = value_in_effect(variable, environ, connections)
            yield f"  {variable.name:{width}}  {value}"


def _allowed_connections(environ: Mapping[str, str]) -> int | None:
    """How many connections run would allow by default; None where that can't be known."""
    from egress_proxy.pod.address_monitor import choose_listen_points  # noqa: PLC0415 - only here
    from egress_proxy.pod.descriptors import share_descriptors  # noqa: PLC0415 - only here
    from egress_proxy.pod.facts import read_pod  # noqa: PLC0415 - only here

    def allowed(wanted: Settings) -> int:
        pod = read_pod()
        points = choose_listen_points(wanted, pod.inside(wanted.interface))
        count = len(wanted.destinations) * len(points)
        return share_descriptors(pod.descriptors, count, None).connections

    try:
        return allowed(settings.read_settings(environ))
    except EgressProxyError:
        return None
