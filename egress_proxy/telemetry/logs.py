"""Log records on stdout: one event name and its fields, as a JSON line or for a person's eyes.

Standard output is the container's log; `RunLog` is the one of the daemon, which nothing blocks.
Text from peers, DNS or files reaches it only as field values, and `_escape` makes each printable
first, so nothing that a peer sends can break a line or drive a terminal.
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

from egress_proxy.events import ConnectionClosed, Event, LogDropped, as_text
from egress_proxy.telemetry.log_writer import LogWriter

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from egress_proxy.config.variables import LogFormat


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
    """A logger to `stream` (standard output); an empty format means console on a terminal."""
    out = sys.stdout if stream is None else stream
    # Writes a line in one piece, and not in two as PrintLogger does.
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


class LogObserver:
    """Writes each event as a log record; those of level debug only while `debug` is on."""

    def __init__(self, logger: FilteringBoundLogger, *, debug: bool) -> None:
        self._logger = logger
        self.debug = debug

    def observe(self, event: Event) -> None:
        if event.level == "debug" and not self.debug:
            return
        fields = _fields(event)
        # If the log cannot be written (closed, disk full), the caller must go on all the same.
        with contextlib.suppress(OSError):
            self._logger.log(_LEVELS[event.level], event.name, **fields)


def _fields(event: Event) -> dict[str, Any]:
    fields = msgspec.structs.asdict(event)
    for key, value in fields.items():
        if isinstance(value, float):
            # Nothing here is measured to less than a microsecond.
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
    """The log of `run`, on descriptor `fd`: it never blocks, and tells what it had to leave out."""

    def __init__(self, log_format: LogFormat, *, debug: bool, fd: int = 1) -> None:
        terminal = os.isatty(fd)
        self._writer = LogWriter(fd, self._format_drop_notice)
        self._notices = _wrap(structlog.ReturnLogger(), log_format, terminal=terminal, debug=True)
        # It has what WriteLogger uses of a stream. What is shown is decided for each record: a
        # signal may change that.
        target = structlog.WriteLogger(cast("TextIO", self._writer))
        super().__init__(_wrap(target, log_format, terminal=terminal, debug=True), debug=debug)

    @property
    def dropped(self) -> int:
        """Records that nobody read in time."""
        return self._writer.dropped

    def close(self) -> None:
        self._writer.close()

    def _format_drop_notice(self, dropped: int) -> str:
        event = LogDropped(records=dropped)
        return f"{self._notices.log(_LEVELS[event.level], event.name, **_fields(event))}\n"


def _escape(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {key: _printable(value) for key, value in event.items()}


def _printable(value: object) -> object:
    """`value` with all text in it printable; what is neither text, number nor container is text."""
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_printable(entry) for entry in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(entry) for key, entry in value.items()}
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _encode(event: EventDict, **_: object) -> str:
    first = {key: event.pop(key) for key in ("time", "level", "event")}
    return msgspec.json.encode({**first, **event}).decode()
