"""Log records on stdout: one event name and its fields, as a JSON line or as text for people.

Standard output is the container's log; `RunLog` writes it without blocking the event loop. Text
from peers, DNS or files is only ever the value of a field, and `_escape` makes it printable and
cuts what is long, so nothing that a peer sends can break a line, drive a terminal or fill the
buffer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import msgspec
import structlog

from egress_proxy.events import FAILURES, ConnectionClosed, Event, LogDropped, Reason, as_text
from egress_proxy.telemetry.log_writer import LogWriter

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from egress_proxy.config.run_variables import LoggedConnections
    from egress_proxy.config.variables import LogFormat


# Texts and lists are cut to these, so that every record fits the buffer of the writer. Nothing that
# an operator reads is longer.
_MAX_CHARACTERS = 8192
_MAX_ENTRIES = 200
_MAX_IN_LIST = 512

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def make_logger(
    log_format: LogFormat,
    *,
    debug: bool,
    stream: TextIO | None = None,
) -> FilteringBoundLogger:
    """A logger to `stream` (default: standard output); empty format: console on a terminal."""
    out = sys.stdout if stream is None else stream
    # PrintLogger would write the line and its end in two calls.
    return _wrap(structlog.WriteLogger(out), log_format, terminal=out.isatty(), debug=debug)


def _wrap(
    target: object, log_format: LogFormat, *, terminal: bool, debug: bool
) -> FilteringBoundLogger:
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _escape,
    ]
    if log_format == "console" or (log_format == "" and terminal):
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=terminal, timestamp_key="time", pad_event_to=24, sort_keys=False
            )
        )
    else:
        processors.append(structlog.processors.JSONRenderer(serializer=_encode))
    logger: FilteringBoundLogger = structlog.wrap_logger(
        target,
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger("debug" if debug else "info"),
    )
    return logger


class DescriptorStream:
    """Descriptor `fd` as a stream without a buffer, which could fail at the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, text: str) -> int:
        """Write all of `text`. Raises OSError."""
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(self._fd, data) :]
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def isatty(self) -> bool:
        return os.isatty(self._fd)


def command_log(log_format: LogFormat, *, debug: bool = False, fd: int = 1) -> LogObserver:
    """The log of a command that may block: whether it can be written changes nothing it does."""
    # It has what WriteLogger uses of a stream.
    stream = cast("TextIO", DescriptorStream(fd))
    return LogObserver(make_logger(log_format, debug=debug, stream=stream), debug=debug)


# The connections that are logged with "failed": also those of clients that may not connect.
_LOGGED_AS_FAILED = FAILURES | {Reason.DENIED_CLIENT}


class LogObserver:
    """Writes events as log records.

    Events of level debug are left out while `debug` is off, but for the `connections` that are
    logged all the same.
    """

    def __init__(
        self,
        logger: FilteringBoundLogger,
        *,
        debug: bool,
        connections: LoggedConnections = "off",
    ) -> None:
        self._logger = logger
        self._connections = connections
        self.debug = debug

    def observe(self, event: Event) -> None:
        if event.level == "debug" and not (self.debug or self._logs_connection(event)):
            return
        fields = _fields(event)
        # If the log cannot be written (closed, disk full), the caller must go on all the same.
        with contextlib.suppress(OSError):
            self._logger.log(_LEVELS[event.level], event.name, **fields)

    def _logs_connection(self, event: Event) -> bool:
        if self._connections == "off" or not isinstance(event, ConnectionClosed):
            return False
        return self._connections == "all" or event.reason in _LOGGED_AS_FAILED


def _fields(event: Event) -> dict[str, Any]:
    fields = msgspec.structs.asdict(event)
    for key, value in fields.items():
        if isinstance(value, float):
            # No figure here is more precise than a microsecond.
            fields[key] = round(value, 6)
    if isinstance(event, ConnectionClosed):
        for key in ("client", "address", "source"):
            fields[key] = as_text(fields[key])
        fields["error"] = error_text(event.error)
    return fields


def error_text(number: int) -> str:
    """An errno as its name and its meaning; empty for 0."""
    if not number:
        return ""
    return f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"


class RunLog(LogObserver):
    """The log of `run`, on descriptor `fd`: it never blocks, and says how much it has dropped."""

    def __init__(
        self,
        log_format: LogFormat,
        *,
        debug: bool,
        connections: LoggedConnections = "off",
        fd: int = 1,
    ) -> None:
        terminal = os.isatty(fd)
        self._writer = LogWriter(fd, self._format_drop_notice)
        self._notices = _wrap(structlog.ReturnLogger(), log_format, terminal=terminal, debug=True)
        # A writer has the methods of a stream that WriteLogger uses. The level is not filtered here
        # but in `observe`, because a signal may change it.
        target = structlog.WriteLogger(cast("TextIO", self._writer))
        super().__init__(
            _wrap(target, log_format, terminal=terminal, debug=True),
            debug=debug,
            connections=connections,
        )

    @property
    def dropped(self) -> int:
        """The number of records that could not be written."""
        return self._writer.dropped

    def close(self) -> None:
        self._writer.close()

    def _format_drop_notice(self, dropped: int) -> str:
        event = LogDropped(records=dropped)
        return f"{self._notices.log(_LEVELS[event.level], event.name, **_fields(event))}\n"


def _escape(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {key: _printable(value, _MAX_CHARACTERS) for key, value in event.items()}


def _printable(value: object, limit: int) -> object:
    """`value` with all text in it printable and at most `limit` long; other objects become text."""
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple)):
        entries = [_printable(entry, _MAX_IN_LIST) for entry in value[:_MAX_ENTRIES]]
        more = len(value) - len(entries)
        return [*entries, f"… and {more} more"] if more else entries
    if isinstance(value, dict):
        return {
            _printable(key, _MAX_IN_LIST): _printable(entry, _MAX_IN_LIST)
            for key, entry in value.items()
        }
    text = _shorten(str(value), limit)
    if text.isprintable():
        return text
    return _shorten(
        "".join(
            character
            if character.isprintable()
            else character.encode("unicode_escape").decode("ascii")
            for character in text
        ),
        limit,
    )


def _shorten(text: str, limit: int) -> str:
    """Keeps both ends of `text`, because the last lines of a traceback say most."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _encode(event: EventDict, **_: object) -> str:
    first = {key: event.pop(key) for key in ("time", "level", "event")}
    return msgspec.json.encode({**first, **event}).decode()
