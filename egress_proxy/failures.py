"""How the failure of a command is reported: on stderr or in the log, and to the kubelet.

On stderr it is text, one line per problem. With EGRESS_DNS_PROXY_LOG_FORMAT=json it is one record
of the log instead, so that every line of a container's output is JSON. Whether it can be written
changes neither what a command does nor its exit status.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from egress_proxy.config.variables import LOG_FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from egress_proxy.errors import EgressProxyError, Problem
    from egress_proxy.events import Event

# The commands that have a log; the others write to a person or a program.
_COMMANDS = frozenset({"init", "run", "hold"})
# As much of the termination message as the kubelet keeps.
_TERMINATION_SIZE = 4096
# For "and so many more": a text has fewer than a million lines.
_ROOM = len("\n… and 999999 more".encode())


def fill_standard_descriptors() -> None:
    """Open /dev/null as each of the descriptors 0 to 2 that is closed.

    Otherwise a socket gets the number, and what is meant for the log or for stderr is sent on it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free: this one.
            os.open(os.devnull, os.O_RDWR)


def report_failure(command: str, error: EgressProxyError, environ: Mapping[str, str]) -> None:
    """Say why `command` ends."""
    if command in _COMMANDS and _log_is_json(environ):
        from egress_proxy.events import RunFailed  # noqa: PLC0415 - only a failure pays for these
        from egress_proxy.hold.events import HoldFailed  # noqa: PLC0415 - see above
        from egress_proxy.init.events import InitFailed  # noqa: PLC0415 - see above

        kinds = {"run": RunFailed, "hold": HoldFailed, "init": InitFailed}
        _write_record(kinds[command](problems=tuple(map(str, error.problems))))
    else:
        _write_text(str(error))


def report_warnings(command: str, warnings: Iterable[Problem], environ: Mapping[str, str]) -> None:
    """Report problems that do not prevent `command`."""
    if command not in _COMMANDS or not _log_is_json(environ):
        for warning in warnings:
            _write_text(f"warning: {warning}")
        return
    from egress_proxy.events import RunWarning  # noqa: PLC0415 - only a warning pays for these
    from egress_proxy.hold.events import HoldWarning  # noqa: PLC0415 - see above
    from egress_proxy.init.events import InitWarning  # noqa: PLC0415 - see above

    kind = {"run": RunWarning, "hold": HoldWarning, "init": InitWarning}[command]
    for warning in warnings:
        _write_record(
            kind(
                variable=warning.variable,
                value=warning.value,
                reason=warning.reason,
                cure=warning.cure,
            )
        )


def write_termination_message(text: str, path: Path) -> None:
    """Write `text` to `path`, where the kubelet looks for it, if that file is there."""
    # It is never made: outside a container nothing reads it.
    with contextlib.suppress(OSError), path.open("r+b") as file:
        file.truncate()
        file.write(shorten(text, _TERMINATION_SIZE))


def shorten(text: str, limit: int) -> bytes:
    """`text` in at most `limit` bytes: whole lines, and the number of those that are left out.

    A first line that is too long by itself is cut.
    """
    data = text.encode(errors="backslashreplace")
    if len(data) <= limit:
        return data
    end = data.rfind(b"\n", 0, limit - _ROOM)
    if end < 0:
        # Not within a character.
        return data[: limit - _ROOM].decode(errors="ignore").encode() + "…".encode()
    more = data.count(b"\n", end)
    return data[:end] + f"\n… and {more} more".encode()


def _log_is_json(environ: Mapping[str, str]) -> bool:
    return environ.get(LOG_FORMAT.name, "").strip() == "json"


def _write_record(event: Event) -> None:
    from egress_proxy.telemetry.logs import command_log  # noqa: PLC0415 - structlog costs memory

    command_log("json").observe(event)


def _write_text(text: str) -> None:
    # None where descriptor 2 is closed; print would then choose stdout.
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - problems go to stderr
    except OSError:
        # Python would write what is left in the buffer when it exits, fail, and make that the exit
        # status.
        sys.stderr = None
