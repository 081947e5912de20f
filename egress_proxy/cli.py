"""The commands: ``egress-proxy init | run | hold | check``.

Exit status: 0 good, 1 the environment failed, 2 the configuration is wrong. A failure is told on
stderr, one line a problem, and in the container's termination message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egress_proxy import __version__
from egress_proxy.check.report import Report
from egress_proxy.config import hold_variables, settings
from egress_proxy.config import run_variables as environment
from egress_proxy.errors import (
    EgressProxyError,
    PlatformError,
    quote,
)
from egress_proxy.init import settings as init_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from egress_proxy.config.variables import Variable
    from egress_proxy.ip import Address

# Kubernetes' default terminationMessagePath, and as much of it as the kubelet keeps.
TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_OCTETS = 4096
# For "and so many more": a text has fewer than a million lines.
_ROOM = len("\n… and 999999 more".encode())

_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})


def main(
    arguments: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    termination_log: Path = TERMINATION_LOG,
) -> int:
    """Run one command; returns its exit status."""
    options = _parser(environ).parse_args(arguments)
    command: Callable[[argparse.Namespace, Mapping[str, str]], None] = options.command
    try:
        command(options, environ)
    except EgressProxyError as error:
        print(error, file=sys.stderr)  # noqa: T201 - problems go to stderr, logs to stdout
        if command is not check:
            _write_termination_message(str(error), termination_log)
        return error.exit_status
    return 0


def init(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Configure the egress interface."""
    wanted = init_settings.read_settings(environ)

    # Only this command pays for pyroute2: 25 MB resident.
    from egress_proxy.init import run as init_run  # noqa: PLC0415 - see above
    from egress_proxy.telemetry.logs import make_logger  # noqa: PLC0415 - check --offline needs none

    log = make_logger(wanted.log_format, debug=wanted.debug)
    if wanted.mode != "legacy":
        init_run.run(wanted, log)
        return
    # Blocked from the start: the first process of a container ignores a SIGTERM without a handler.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        init_run.run(wanted, log)
        log.info("init.waiting")
        signal.sigwait(_ENDING)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Forward connections until SIGTERM."""
    wanted = _read_run_settings(environ)

    from egress_proxy.forwarding import descriptors  # noqa: PLC0415 - only this command needs it

    # Before the event loop, which aborts the process when it gets no descriptors. There may be more
    # listeners than destinations: the daemon asks again once it knows them all.
    descriptors.share_descriptors(
        descriptors.raise_descriptor_limit(), len(wanted.destinations), wanted.max_connections
    )

    # The event loop and DNS are for this command alone.
    import uvloop  # noqa: PLC0415 - see above

    from egress_proxy.pod import addresses  # noqa: PLC0415 - see above
    from egress_proxy.run import daemon  # noqa: PLC0415 - see above
    from egress_proxy.telemetry import logs  # noqa: PLC0415 - see above

    log = logs.RunLog(wanted.log_format, debug=wanted.debug)

    async def forward() -> None:
        shutdown = daemon.Shutdown()
        running = daemon.Daemon(wanted, addresses.read_interfaces(), log, environ)
        loop = asyncio.get_running_loop()
        for number, act in (
            (signal.SIGTERM, shutdown.request),
            (signal.SIGINT, shutdown.request),
            (signal.SIGHUP, running.reload),
            (signal.SIGUSR1, running.toggle_debug),
        ):
            loop.add_signal_handler(number, act)
        await running.run(shutdown)

    if os.getpid() == 1:
        # A container's first process inherits orphans; ignored, the kernel buries them (wait(2)).
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(forward())
        finally:
            log.close()


def hold(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Take the reserved address when it is free, and give it to another pod in the end."""
    wanted = hold_variables.read_hold_settings(environ)

    # This command pays for ssl, and no other one.
    from egress_proxy.hold import daemon  # noqa: PLC0415 - see above
    from egress_proxy.hold.api_server import ApiServer  # noqa: PLC0415 - see above
    from egress_proxy.hold.kubernetes import KubernetesClient  # noqa: PLC0415 - see above
    from egress_proxy.telemetry import logs  # noqa: PLC0415 - see above

    server = ApiServer.in_cluster(environ, source=str(wanted.pod_ip))
    log = logs.RunLog(wanted.log_format, debug=False)

    async def hold_address() -> None:
        client = KubernetesClient(server, namespace=wanted.pod_namespace, lease=wanted.lease)
        running = daemon.Hold(wanted, client, log)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.request_stop)
        await running.run()

    try:
        # A few timers a second: uvloop would gain nothing, and costs memory.
        asyncio.run(hold_address())
    finally:
        log.close()


def check(options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Judge the configuration, say what init and run would do, and change nothing."""
    if options.show_settings:
        _show_settings(environ)
        return
    report = Report()
    for part in _parts(environ):
        try:
            part(options, environ, report)
        except EgressProxyError as error:
            report.failures.append(error)
    report.tell(options.output)


def _parts(environ: Mapping[str, str]) -> Sequence[Callable[..., None]]:
    """The commands whose variables are there; with none of them there, both are judged."""
    parts = (
        (_check_init, ("EGRESS_SOURCE", "EGRESS_GATEWAY")),
        (_check_run, (environment.DESTINATION.name, environment.DESTINATION_FILE.name)),
    )
    present = [part for part, names in parts if any(name in environ for name in names)]
    return present or [part for part, _ in parts]


def _check_init(options: argparse.Namespace, environ: Mapping[str, str], report: Report) -> None:
    wanted = init_settings.read_settings(environ)
    report.good("init", "the configuration is good")
    if options.offline:
        return
    from egress_proxy.init import run as init_run  # noqa: PLC0415 - pyroute2 costs 25 MB

    preview = init_run.preview(wanted)
    report.plan += str(preview).splitlines()
    if preview.problems:
        raise PlatformError(*preview.problems)


def _check_run(options: argparse.Namespace, environ: Mapping[str, str], report: Report) -> None:
    wanted = _read_run_settings(environ)
    report.good("run", "the configuration is good")
    if options.offline:
        return
    from egress_proxy.check import preflight  # noqa: PLC0415 - check --offline needs none

    report.findings += asyncio.run(
        preflight.examine(wanted, _gateways(environ), connect=options.connect)
    )


def _gateways(environ: Mapping[str, str]) -> list[Address]:
    """Those that `init` has been told of, if it is configured here too, and rightly."""
    try:
        return [source.gateway for source in init_settings.read_settings(environ).sources]
    except EgressProxyError:
        return []


def _show_settings(environ: Mapping[str, str]) -> None:
    for command, variables in (("init", init_settings.VARIABLES), ("run", environment.VARIABLES)):
        print(f"{command}:")  # noqa: T201 - the command's output
        width = max(len(variable.name) for variable in variables)
        for variable in variables:
            print(f"  {variable.name:{width}}  {_current(variable, environ)}")  # noqa: T201 - see above


def _current(variable: Variable[Any], environ: Mapping[str, str]) -> str:
    """The text in force, and whether it is the default."""
    text = environ.get(variable.name, "").strip()
    if text:
        return quote(text)
    if variable.default is None:
        return "not set"
    return f"{quote(variable.default)} (default)"


def _read_run_settings(environ: Mapping[str, str]) -> settings.Settings:
    # First of all: a misspelt name is often why the rest is refused.
    for warning in environment.unknown_names(environ):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201 - no log is set up yet
    return settings.read_settings(environ)


def _write_termination_message(text: str, termination_log: Path) -> None:
    """Write `text` where the kubelet looks for it, if it does."""
    # Never made: outside a container there is nobody to read it.
    with contextlib.suppress(OSError), termination_log.open("r+b") as file:
        file.truncate()
        file.write(shorten(text, _TERMINATION_OCTETS))


def shorten(text: str, limit: int) -> bytes:
    """`text` in at most `limit` octets: whole lines, and how many there are more.

    A first line that is too long by itself is cut.
    """
    octets = text.encode(errors="backslashreplace")
    if len(octets) <= limit:
        return octets
    end = octets.rfind(b"\n", 0, limit - _ROOM)
    if end < 0:
        # Not within a character.
        return octets[: limit - _ROOM].decode(errors="ignore").encode() + "…".encode()
    more = octets.count(b"\n", end)
    return octets[:end] + f"\n… and {more} more".encode()


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="egress-proxy",
        description="An egress router for pods: one reserved source address, fixed destinations.",
    )
    parser.add_argument("--version", action="version", version=f"egress-proxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="init | run | hold | check")
    for command, variables in (
        (init, init_settings.VARIABLES),
        (run, environment.VARIABLES),
        (hold, hold_variables.VARIABLES),
        (check, ()),
    ):
        summary = (command.__doc__ or "").strip()
        subparser = commands.add_parser(
            command.__name__,
            help=summary,
            description=summary,
            epilog=_explain(variables, environ),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.set_defaults(command=command)
        if command is check:
            _add_options_of_check(subparser)
    return parser


def _add_options_of_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--offline",
        action="store_true",
        help="judge the text alone: no names, no interfaces",
    )
    parser.add_argument(
        "--connect",
        action="store_true",
        help="connect to every address of every destination too",
    )
    parser.add_argument(
        "--output",
        choices=("text", "json"),
        default="text",
        help="a table for a person, or JSON for a program",
    )
    parser.add_argument(
        "--show-settings",
        action="store_true",
        help="print what each variable holds, and nothing else",
    )


def _explain(variables: Iterable[Variable[Any]], environ: Mapping[str, str]) -> str:
    entries = []
    for variable in variables:
        default = "" if variable.default is None else f" [{variable.default or 'empty'}]"
        text = environ.get(variable.name, "").strip()
        now = f" = {quote(text)}" if text else ""
        entries.append(
            f"  {variable.name}{default}{now}\n"
            + textwrap.indent(textwrap.fill(variable.meaning), " " * 6)
        )
    if not entries:
        return ""
    return "environment variables [and their defaults] = what they hold now:\n" + "\n".join(entries)
