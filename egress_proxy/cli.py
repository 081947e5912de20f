"""The commands: ``egress-proxy init | run | check``.

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
from typing import TYPE_CHECKING, Any

from egress_proxy import __version__, settings
from egress_proxy.errors import ConfigurationError, EgressProxyError, Problem
from egress_proxy.init import settings as init_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from egress_proxy.variables import Variable

# Kubernetes' default terminationMessagePath, and as much of it as the kubelet keeps.
TERMINATION_LOG = "/dev/termination-log"
_TERMINATION_OCTETS = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with the environment of the process; returns its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, Mapping[str, str]], None] = options.command
    try:
        command(options, os.environ)
    except EgressProxyError as error:
        print(error, file=sys.stderr)  # noqa: T201 - problems go to stderr, logs to stdout
        if command is not check:
            _write_termination_log(str(error))
        return error.exit_status
    return 0


def init(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Configure the egress interface."""
    # Only this command pays for pyroute2: 25 MB resident.
    from egress_proxy.init import run as init_run  # noqa: PLC0415 - see above
    from egress_proxy.logs import make_logger  # noqa: PLC0415 - check --offline needs none

    wanted = init_settings.read_settings(environ)
    init_run.run(wanted, make_logger(wanted.log_format, debug=wanted.debug))


def run(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Forward connections until SIGTERM."""
    # The event loop and DNS are for this command alone.
    import uvloop  # noqa: PLC0415 - see above

    from egress_proxy import addresses, daemon, logs  # noqa: PLC0415 - see above

    wanted = _read_run_settings(environ)
    observer = logs.LogObserver(
        logs.make_logger(wanted.log_format, debug=wanted.debug), debug=wanted.debug
    )

    async def forward() -> None:
        stopping = daemon.Stopping()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.ask)
        interfaces = addresses.read_interfaces()
        await daemon.Daemon(wanted, interfaces, observer, observer.report).run(stopping)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(forward())


def check(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Judge the configuration, and change nothing."""
    problems: list[Problem] = []
    for name, read in _parts(environ):
        try:
            read(environ)
        except EgressProxyError as error:
            problems += error.problems
        else:
            print(f"{name}: the configuration is good")  # noqa: T201 - the command's output
    if problems:
        raise ConfigurationError(*problems)


def _parts(
    environ: Mapping[str, str],
) -> Sequence[tuple[str, Callable[[Mapping[str, str]], object]]]:
    """The commands whose variables are there; with none of them there, both are judged."""
    parts = (
        ("init", init_settings.read_settings, ("EGRESS_SOURCE", "EGRESS_GATEWAY")),
        ("run", _read_run_settings, (settings.DESTINATION.name, settings.DESTINATION_FILE.name)),
    )
    present = [part for part in parts if any(name in environ for name in part[2])]
    return [(name, read) for name, read, _ in present or parts]


def _read_run_settings(environ: Mapping[str, str]) -> settings.Settings:
    # First of all: a misspelt name is often why the rest is refused.
    for warning in settings.unknown_names(environ):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201 - no log is set up yet
    return settings.read_settings(environ)


def _write_termination_log(text: str) -> None:
    """Leave `text` where the kubelet looks for it, if it does."""
    octets = text.encode(errors="backslashreplace")
    if len(octets) > _TERMINATION_OCTETS:
        octets = octets[: octets.rindex(b"\n", 0, _TERMINATION_OCTETS)]
    # Never made: outside a container there is nobody to read it.
    with contextlib.suppress(OSError):
        fd = os.open(TERMINATION_LOG, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(fd, octets)
        finally:
            os.close(fd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="egress-proxy",
        description="An egress router for pods: one reserved source address, fixed destinations.",
    )
    parser.add_argument("--version", action="version", version=f"egress-proxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="init | run | check")
    for command, variables in (
        (init, init_settings.VARIABLES),
        (run, settings.VARIABLES),
        (check, ()),
    ):
        summary = (command.__doc__ or "").strip()
        subparser = commands.add_parser(
            command.__name__,
            help=summary,
            description=summary,
            epilog=_explain(variables),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.set_defaults(command=command)
        if command is check:
            subparser.add_argument(
                "--offline",
                action="store_true",
                help="judge the text alone: no names, no interfaces",
            )
    return parser


def _explain(variables: Iterable[Variable[Any]]) -> str:
    entries = []
    for variable in variables:
        default = "" if variable.default is None else f" [{variable.default or 'empty'}]"
        entries.append(
            f"  {variable.name}{default}\n"
            + textwrap.indent(textwrap.fill(variable.meaning), " " * 6)
        )
    return "environment variables [and their defaults]:\n" + "\n".join(entries) if entries else ""
