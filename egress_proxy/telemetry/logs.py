"""Log records on stdout: one event name and its fields, as a JSON line or for a person's eyes.

Standard output is the container's log; `RunLog` is the one of the daemon, which nothing blocks.
Text from peers, DNS or files reaches it only as field values, and `_escape` makes each printable
first, so nothing that a peer sends can break a line or drive a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, TextIO, cast

import msgspec
import structlog

from egress_proxy.events import ConnectionClosed, LogDropped, Record, as_text
from egress_proxy.telemetry.log_writer import LogWriter

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from egress_proxy.config.variables import LogFormat


_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


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
    """Writes each record as a log line; those of level debug only while `debug` is on."""

    def __init__(self, logger: FilteringBoundLogger, *, debug: bool) -> None:
        self._logger = logger
        self.debug = debug

    def observe(self, record: Record) -> None:
        if record.level == "debug" and not self.debug:
            return
        fields = _fields(record)
        # Nobody reads the log, or its disk is full: no reason to fail a connection.
        with contextlib.suppress(OSError):
            self._logger.log(_LEVELS[record.level], record.event, **fields)

    def report(self, error: Exception) -> None:
        """Write a defect of this program, with the place where it happened."""
        with contextlib.suppress(OSError):
            self._logger.error(
                "daemon.defect",
                error=repr(error),
                # A field like any other, and so on the same line.
                traceback="".join(traceback.format_exception(error)),
            )


def _fields(record: Record) -> dict[str, Any]:
    fields = msgspec.structs.asdict(record)
    for key, value in fields.items():
        if isinstance(value, float):
            # A microsecond is finer than anything measured here.
            fields[key] = round(value, 6)
    if isinstance(record, ConnectionClosed):
        for key in ("client", "address", "source"):
            fields[key] = as_text(fields[key])
    return fields


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
        record = LogDropped(records=dropped)
        return f"{self._notices.log(_LEVELS[record.level], record.event, **_fields(record))}\n"


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
