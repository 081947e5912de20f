"""The commands: ``egress-proxy init | run | hold | check | status | signal``.

Exit status: 0 good, 1 the environment failed, 2 the configuration is wrong. A failure is printed on
stderr, one line per problem; the commands of containers also write it to the termination message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egress_proxy import __version__
from egress_proxy.config import hold_variables, run_variables, settings
from egress_proxy.config.explanations import explain
from egress_proxy.config.variables import unknown_names
from egress_proxy.errors import EgressProxyError, PlatformError
from egress_proxy.failures import (
    fill_standard_descriptors,
    report_failure,
    report_warnings,
    write_termination_message,
)
from egress_proxy.init import settings as init_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from egress_proxy.config.variables import Variable

# Kubernetes' default terminationMessagePath.
TERMINATION_LOG = Path("/dev/termination-log")

_VARIABLES: dict[str, tuple[Variable[Any], ...]] = {
    "init": init_settings.VARIABLES,
    "run": run_variables.VARIABLES,
    "hold": hold_variables.VARIABLES,
}
# The signals that end a command, as blocked and waited for.
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_KNOWN = frozenset(variable.name for entries in _VARIABLES.values() for variable in entries)


def main(
    arguments: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    termination_log: Path = TERMINATION_LOG,
) -> int:
    """Run one command; returns its exit status."""
    fill_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A value may have characters that the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    options = _parser(environ).parse_args(arguments)
    command: Callable[[argparse.Namespace, Mapping[str, str]], None] = options.command
    try:
        command(options, environ)
    except EgressProxyError as error:
        report_failure(options.name, error, environ)
        if options.name in _VARIABLES:
            write_termination_message(str(error), termination_log)
        return error.exit_status
    except BrokenPipeError:
        if options.name in _VARIABLES:
            raise
        # The output of check or status has no reader; Python would complain when it flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PlatformError.exit_status
    return 0


def init(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Configure the egress interface."""
    _warn_of_unknown_names("init", environ)
    wanted = init_settings.read_settings(environ)

    # Only this command pays for pyroute2: 25 MB resident.
    from egress_proxy.init import run as init_run  # noqa: PLC0415 - see above
    from egress_proxy.init.events import InitWaiting  # noqa: PLC0415 - see above
    from egress_proxy.telemetry.logs import command_log  # noqa: PLC0415 - check --offline needs none

    log = command_log(wanted.log_format, debug=wanted.debug)
    if wanted.mode != "legacy":
        init_run.run(wanted, log)
        return
    # Blocked from the start: the first process of a container ignores a SIGTERM without a handler.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        init_run.run(wanted, log)
        log.observe(InitWaiting())
        signal.sigwait(_ENDING)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Forward connections until SIGTERM."""
    _warn_of_unknown_names("run", environ)
    wanted = settings.read_settings(environ)

    from egress_proxy.pod.facts import read_pod  # noqa: PLC0415 - check --offline needs none
    from egress_proxy.pod.preconditions import find_problems  # noqa: PLC0415 - see above
    from egress_proxy.pod.refusals import (  # noqa: PLC0415 - see above
        check_resources,
        refusals_are_problems,
    )

    # Before the event loop, which aborts the process when it gets no descriptors.
    pod = read_pod()
    problems = find_problems(wanted, pod)
    if problems:
        raise PlatformError(*problems)
    check_resources()

    # The event loop and DNS are for this command alone.
    import uvloop  # noqa: PLC0415 - see above

    from egress_proxy.run.daemon import Daemon  # noqa: PLC0415 - see above
    from egress_proxy.run.drain import Shutdown  # noqa: PLC0415 - see above
    from egress_proxy.telemetry import logs  # noqa: PLC0415 - see above

    with refusals_are_problems():
        log = logs.RunLog(wanted.log_format, debug=wanted.debug, connections=wanted.log_connections)

    async def forward() -> None:
        shutdown = Shutdown()
        with refusals_are_problems():
            running = Daemon(wanted, pod, log, environ)
        loop = asyncio.get_running_loop()
        for number, act in (
            (signal.SIGTERM, shutdown.request),
            (signal.SIGINT, shutdown.request),
            (signal.SIGHUP, running.reload),
            (signal.SIGUSR1, running.toggle_debug),
        ):
            loop.add_signal_handler(number, act)
        await running.run(shutdown)

    # Not where children must be waited for: the data plane of the kernel runs nft.
    if os.getpid() == 1 and wanted.dataplane == "splice":
        # A container's first process inherits orphans; ignored, the kernel buries them (wait(2)).
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def new_event_loop() -> asyncio.AbstractEventLoop:
        with refusals_are_problems():
            return uvloop.new_event_loop()

    runner = asyncio.Runner(loop_factory=new_event_loop)
    try:
        runner.run(forward())
    finally:
        log.close()
        # It runs the loop twice more, which needs descriptors; the process ends without it, too.
        with contextlib.suppress(OSError, RuntimeError):
            runner.close()


def hold(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Take the reserved address when it is free, and hand it over to another pod at the end."""
    _warn_of_unknown_names("hold", environ)
    wanted = hold_variables.read_hold_settings(environ)

    # Only this command needs ssl.
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
        # A few timers per second: uvloop would not help, and costs memory.
        asyncio.run(hold_address())
    finally:
        log.close()


def status(options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Print the state of the egress-proxy run that runs in this pod."""
    import msgspec  # noqa: PLC0415 - only this command needs it

    from egress_proxy.control import admin_client, status_text  # noqa: PLC0415 - see above

    page = admin_client.read_page(environ)
    if options.output == "json":
        _print(msgspec.json.format(msgspec.json.encode(page), indent=2).decode())
    else:
        _print("\n".join(status_text.lines(page.ready, page.status)))


def signal_daemon(options: argparse.Namespace, _environ: Mapping[str, str]) -> None:
    """Make the egress-proxy run of this container reload its destinations, or toggle DEBUG."""
    from egress_proxy.control import processes  # noqa: PLC0415 - only this command needs it

    _print(processes.send(options.action))


def check(options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Validate the configuration, say what init and run would do, and change nothing."""
    from egress_proxy.check import command  # noqa: PLC0415 - only this command needs it

    if options.show_settings:
        _print("\n".join(command.settings_in_effect(environ, _VARIABLES)))
        return
    unknown = unknown_names(environ, _KNOWN)
    if options.output == "text":
        # First, because a misspelt name is often why the rest is refused.
        report_warnings("check", unknown, environ)
        unknown = ()
    report = command.examine(environ, unknown, offline=options.offline, connect=options.connect)
    report.tell(options.output)


def _warn_of_unknown_names(command: str, environ: Mapping[str, str]) -> None:
    """Called first, because a misspelt name is often why the rest is refused."""
    report_warnings(command, unknown_names(environ, _KNOWN), environ)


def _print(text: str) -> None:
    print(text)  # noqa: T201 - a command's output


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    version = f"egress-proxy {__version__}"
    parser = argparse.ArgumentParser(
        prog="egress-proxy",
        description="An egress router for pods: one reserved source address, fixed destinations.",
    )
    parser.add_argument("--version", action="version", version=version)
    commands: dict[str, Callable[[argparse.Namespace, Mapping[str, str]], None]] = {
        "init": init,
        "run": run,
        "hold": hold,
        "check": check,
        "status": status,
        "signal": signal_daemon,
    }
    subparsers = parser.add_subparsers(required=True, metavar=" | ".join(commands), dest="name")
    for name, command in commands.items():
        summary = (command.__doc__ or "").strip()
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=explain(_VARIABLES.get(name, ()), environ),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # An image's entry point ends with a command: arguments come after it.
        subparser.add_argument("--version", action="version", version=version)
        subparser.set_defaults(command=command)
        if command is check:
            _add_options_of_check(subparser)
        if command in {check, status}:
            subparser.add_argument(
                "--output",
                choices=("text", "json"),
                default="text",
                help="text for a person, or JSON for a program",
            )
        if command is signal_daemon:
            subparser.add_argument(
                "action",
                choices=("reload", "debug"),
                help="reload: read the destinations again; debug: toggle EGRESS_DNS_PROXY_DEBUG",
            )
    return parser


def _add_options_of_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--offline",
        action="store_true",
        help="validate only the text: no names, no interfaces",
    )
    parser.add_argument(
        "--connect",
        action="store_true",
        help="also connect to every address of every destination",
    )
    parser.add_argument(
        "--show-settings",
        action="store_true",
        help="print the value of each variable, and nothing else",
    )
