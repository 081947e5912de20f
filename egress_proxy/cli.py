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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egress_proxy import __version__, settings
from egress_proxy.errors import EgressProxyError, PlatformError
from egress_proxy.init import settings as init_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from egress_proxy.variables import Variable

# Kubernetes' default terminationMessagePath, and as much of it as the kubelet keeps.
TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_OCTETS = 4096
# For "and so many more": a text has fewer than a million lines.
_ROOM = len("\n… and 999999 more".encode())


def main(
    arguments: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    termination_log: Path = TERMINATION_LOG,
) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, Mapping[str, str]], None] = options.command
    try:
        command(options, environ)
    except EgressProxyError as error:
        print(error, file=sys.stderr)  # noqa: T201 - problems go to stderr, logs to stdout
        if command is not check:
            _leave_word(str(error), termination_log)
        return error.exit_status
    return 0


def init(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Configure the egress interface."""
    wanted = init_settings.read_settings(environ)

    # Only this command pays for pyroute2: 25 MB resident.
    from egress_proxy.init import run as init_run  # noqa: PLC0415 - see above
    from egress_proxy.logs import make_logger  # noqa: PLC0415 - check --offline needs none

    init_run.run(wanted, make_logger(wanted.log_format, debug=wanted.debug))


def run(_options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Forward connections until SIGTERM."""
    wanted = _read_run_settings(environ)

    # The event loop and DNS are for this command alone.
    import uvloop  # noqa: PLC0415 - see above

    from egress_proxy import addresses, daemon, logs  # noqa: PLC0415 - see above

    log = logs.RunLog(wanted.log_format, debug=wanted.debug)

    async def forward() -> None:
        stopping = daemon.Stopping()
        running = daemon.Daemon(wanted, addresses.read_interfaces(), log, environ)
        loop = asyncio.get_running_loop()
        for number, act in (
            (signal.SIGTERM, stopping.ask),
            (signal.SIGINT, stopping.ask),
            (signal.SIGHUP, running.reload),
            (signal.SIGUSR1, running.toggle_debug),
        ):
            loop.add_signal_handler(number, act)
        await running.run(stopping)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(forward())
        finally:
            log.close()


def check(options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Judge the configuration, say what init and run would do, and change nothing."""
    failures: list[EgressProxyError] = []
    for part in _parts(environ):
        try:
            part(environ, offline=options.offline)
        except EgressProxyError as error:
            failures.append(error)
    if failures:
        problems = [problem for failure in failures for problem in failure.problems]
        # The one that is mended first decides: 2 before 1.
        raise type(max(failures, key=lambda failure: failure.exit_status))(*problems)


def _parts(environ: Mapping[str, str]) -> Sequence[Callable[..., None]]:
    """The commands whose variables are there; with none of them there, both are judged."""
    parts = (
        (_check_init, ("EGRESS_SOURCE", "EGRESS_GATEWAY")),
        (_check_run, (settings.DESTINATION.name, settings.DESTINATION_FILE.name)),
    )
    present = [part for part, names in parts if any(name in environ for name in names)]
    return present or [part for part, _ in parts]


def _check_init(environ: Mapping[str, str], *, offline: bool) -> None:
    wanted = init_settings.read_settings(environ)
    print("init: the configuration is good")  # noqa: T201 - the command's output
    if offline:
        return
    from egress_proxy.init import run as init_run  # noqa: PLC0415 - pyroute2 costs 25 MB

    preview = init_run.preview(wanted)
    print(preview)  # noqa: T201 - the command's output
    if preview.problems:
        raise PlatformError(*preview.problems)


def _check_run(environ: Mapping[str, str], *, offline: bool) -> None:
    wanted = _read_run_settings(environ)
    print("run: the configuration is good")  # noqa: T201 - the command's output
    if offline:
        return
    from egress_proxy import addresses, ground  # noqa: PLC0415 - check --offline needs none

    interfaces = addresses.read_interfaces()
    sources = ground.choose_sources(wanted, interfaces)
    print(f"  source: {', '.join(sources.values()) or 'what the kernel chooses'}")  # noqa: T201
    for destination in wanted.destinations:
        print(f"  {destination.port} -> {destination}")  # noqa: T201 - the command's output


def _read_run_settings(environ: Mapping[str, str]) -> settings.Settings:
    # First of all: a misspelt name is often why the rest is refused.
    for warning in settings.unknown_names(environ):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201 - no log is set up yet
    return settings.read_settings(environ)


def _leave_word(text: str, termination_log: Path) -> None:
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
