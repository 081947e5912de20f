"""Log records on stdout: one event name and its fields, as a JSON line or for a person's eyes.

Standard output is the container's log. Text from peers, DNS or files reaches it only as field
values, and `_escape` makes each printable first, so nothing that a peer sends can break a line or
drive a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from typing import TYPE_CHECKING, TextIO

import msgspec
import structlog

from egress_proxy.records import ConnectionClosed, Record, as_text

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from egress_proxy.variables import LogFormat


_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def make_logger(
    log_format: LogFormat,
    *,
    debug: bool,
    stream: TextIO | None = None,
) -> FilteringBoundLogger:
    """A logger to `stream` (standard output); an empty format means console on a terminal."""
    out = sys.stdout if stream is None else stream
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _escape,
    ]
    if log_format == "console" or (log_format == "" and out.isatty()):
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(), timestamp_key="time", pad_event_to=24
            )
        )
    else:
        processors.append(structlog.processors.JSONRenderer(serializer=_encode))
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger("debug" if debug else "info"),
    )
    return logger


class LogObserver:
    """Writes each record as a log line; those of level debug only when `debug` is on."""

    def __init__(self, logger: FilteringBoundLogger, *, debug: bool) -> None:
        self._logger = logger
        self._debug = debug

    def observe(self, record: Record) -> None:
        if record.level == "debug" and not self._debug:
            return
        fields = msgspec.structs.asdict(record)
        for key, value in fields.items():
            if isinstance(value, float):
                # A microsecond is finer than anything measured here.
                fields[key] = round(value, 6)
        if isinstance(record, ConnectionClosed):
            for key in ("client", "address", "source"):
                fields[key] = as_text(fields[key])
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
