"""Log records on stdout: one event name and its fields, as a JSON line or for a person's eyes.

Standard output is the container's log. Text from peers, DNS or files reaches it only as field
values, and `_escape` makes each printable first, so nothing that a peer sends can break a line or
drive a terminal.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

import msgspec
import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from egress_proxy.variables import LogFormat


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


def _escape(_logger: object, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if not isinstance(value, (str, int, float, list, tuple, dict, type(None))):
            value = str(value)  # noqa: PLW2901 - addresses and the like become text first
        if isinstance(value, str) and not value.isprintable():
            value = value.encode("unicode_escape", "backslashreplace").decode("ascii")  # noqa: PLW2901
        event[key] = value
    return event


def _encode(event: EventDict, **_: object) -> str:
    first = {key: event.pop(key) for key in ("time", "level", "event")}
    return msgspec.json.encode({**first, **event}).decode()
