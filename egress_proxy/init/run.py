"""The command: observe, plan, apply, read back; and undo everything if a step fails."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem
from egress_proxy.init import host_facts
from egress_proxy.init.announce import DEFAULT_PACE, Pace
from egress_proxy.init.events import InitDone, InitWarning
from egress_proxy.init.lock import exclusive
from egress_proxy.init.netlink import Netlink
from egress_proxy.init.plan import make_plan
from egress_proxy.init.preview import Preview
from egress_proxy.init.problems import failed, unmet_preconditions
from egress_proxy.init.takeover import Takeover
from egress_proxy.init.warnings import find_warnings
from egress_proxy.nft import command
from egress_proxy.nft.table import same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from egress_proxy.events import Observer
    from egress_proxy.init.settings import InitSettings
    from egress_proxy.init.state import State
    from egress_proxy.nft.ruleset import Ruleset


def run(
    settings: InitSettings,
    log: Observer,
    *,
    open_netlink: Callable[[], Netlink] = Netlink,
    pace: Pace = DEFAULT_PACE,
) -> None:
    """Set up the pod's network and say so in `log`.

    Raises `PlatformError`. Everything is then as it was before, or the last problems say what is
    left.
    """
    with _opened(open_netlink) as netlink, _locked():
        _run(netlink, settings, log, pace)


def _run(netlink: Netlink, settings: InitSettings, log: Observer, pace: Pace) -> None:
    started = time.monotonic()
    state = observe(netlink, settings)
    problems = unmet_preconditions(state, settings)
    if problems:
        raise PlatformError(*problems)
    _warn(log, find_warnings(state, settings))
    takeover = Takeover(netlink, settings, log, pace)
    try:
        warnings = takeover.carry_out(state, lambda: observe(netlink, settings))
    except PlatformError as error:
        raise PlatformError(*error.problems, *takeover.undo()) from None
    except OSError as error:
        raise PlatformError(failed(error, settings), *takeover.undo()) from error
    _warn(log, warnings)
    log.observe(
        InitDone(
            interface=settings.interface,
            sources=tuple(map(str, settings.sources)),
            gateways=tuple(str(source.gateway) for source in settings.sources),
            steps=len(takeover.done),
            duration_s=time.monotonic() - started,
        )
    )


def preview(settings: InitSettings) -> Preview:
    """What `run` would do, and the problems; changes nothing and sends nothing.

    Raises `PlatformError` if the network can't be read.
    """
    with _opened(Netlink) as netlink:
        state = observe(netlink, settings)
    present = state.link(settings.interface) is not None
    return Preview(
        settings=settings,
        state=state,
        steps=tuple(_commands(state, settings)) if present else (),
        problems=unmet_preconditions(state, settings),
        warnings=find_warnings(state, settings),
    )


def _commands(state: State, settings: InitSettings) -> Iterator[str]:
    for step in make_plan(state, settings).steps:
        yield from str(step).splitlines()


@contextmanager
def _locked() -> Iterator[None]:
    lock = ExitStack()
    try:
        lock.enter_context(exclusive())
    except OSError as error:
        problem = Problem(
            reason=f"can't make sure that no other init is running: {error.strerror}",
            cure="use the seccomp profile RuntimeDefault, which allows Unix sockets",
        )
        raise PlatformError(problem) from error
    with lock:
        yield


def _opened(open_netlink: Callable[[], Netlink]) -> Netlink:
    try:
        return open_netlink()
    except OSError as error:
        problem = Problem(
            reason=f"can't open a netlink socket: {error.strerror}",
            cure="use the seccomp profile RuntimeDefault, which allows it",
        )
        raise PlatformError(problem) from error


def observe(netlink: Netlink, settings: InitSettings) -> State:
    """The pod's network, and what else init depends on. Raises `PlatformError`."""
    try:
        state = replace(
            netlink.observe(),
            name_servers=host_facts.read_name_servers(),
            missing_capabilities=host_facts.missing_capabilities(),
            sysctls_writable=host_facts.sysctls_writable(),
        )
    except OSError as error:
        problem = Problem(
            reason=f"can't read the pod's network: {error.strerror}",
            cure="run init in the pod's network namespace",
        )
        raise PlatformError(problem) from error
    # What nft would say without NET_ADMIN is known.
    if settings.ruleset is None or state.missing_capabilities:
        return state
    return _observe_table(state, settings.ruleset)


def _observe_table(state: State, ruleset: Ruleset) -> State:
    table = ruleset.table()
    listing = ""
    try:
        listing = command.list_table()
        if not same(listing, table.listing()):
            command.try_text(table.transaction())
    except OSError as error:
        return replace(state, table_listing=listing, table_refusal=error)
    return replace(state, table_listing=listing)


def _warn(log: Observer, warnings: Iterable[Problem]) -> None:
    for problem in warnings:
        log.observe(
            InitWarning(
                variable=problem.variable,
                value=problem.value,
                reason=problem.reason,
                cure=problem.cure,
            )
        )
