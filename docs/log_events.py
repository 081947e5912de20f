"""Makes docs/log-events.md and its JSON schema from the code: `make docs` calls it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

import egress_proxy.hold.events
import egress_proxy.init.events
from egress_proxy.events import ConnectionClosed, Event

Schema = dict[str, Any]

PAGE = Path(__file__).with_name("log-events.md")
SCHEMA = Path(__file__).with_name("log-events.schema.json")
# What the log writes as text (telemetry.logs): socket addresses, and the name of an errno.
_ADDRESS = {"type": "string", "description": "address:port, or empty"}
_WRITTEN: dict[str, Schema] = {
    ConnectionClosed.name: {
        "client": _ADDRESS,
        "address": _ADDRESS,
        "source": _ADDRESS,
        "error": {"type": "string", "description": "of the last attempt that failed, or empty"},
    }
}
# RFC 3339, UTC; a whole second has no fraction.
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{6})?Z$"
_HEAD = """\
# Log events

Made by `make docs` from the code; do not edit. With `EGRESS_DNS_PROXY_LOG_FORMAT=json`, the default
where standard output is no terminal, each line of the log is one JSON object with these fields and
no others:

- `time`: UTC, RFC 3339, such as `2026-11-25T17:08:22.123456Z`
- `level`: `debug`, `info`, `warning` or `error`
- `event`: the name below. A name never changes its meaning; any version may add events and fields
- the fields of the event. All of them are always there; durations are in seconds, sizes in bytes

[log-events.schema.json](log-events.schema.json) is the same as a JSON schema (draft 2020-12).
Records of level `debug` are written only while DEBUG is on; those of connections also with
`EGRESS_DNS_PROXY_LOG_CONNECTIONS`. Characters that are not printable are escaped, so that nothing
that a peer sends can break a line.
"""

_COMMANDS = {
    "egress-proxy run": egress_proxy.events,
    "egress-proxy init": egress_proxy.init.events,
    "egress-proxy hold": egress_proxy.hold.events,
}


def events() -> list[type[Event]]:
    """Every event that a container may log, in the order of `_COMMANDS` and of the code."""
    return [
        kind
        for module in _COMMANDS.values()
        for kind in Event.__subclasses__()
        if kind.__module__ == module.__name__
    ]


def schema() -> Schema:
    """One schema for every line of the log."""
    kinds, definitions = msgspec.json.schema_components(
        events(),
        # Parts of socket addresses, which `_record` replaces.
        schema_hook=lambda _kind: {"type": "string"},
        ref_template="#/$defs/{name}",
    )
    names = [kind["$ref"].rpartition("/")[2] for kind in kinds]
    for event, name in zip(events(), names, strict=True):
        definitions[name] = _record(event, definitions[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of the log of egress-proxy",
        "type": "object",
        "required": ["time", "level", "event"],
        "properties": {"event": {"enum": [event.name for event in events()]}},
        # Not oneOf: a validator would tell of every event that the line is not.
        "allOf": [
            {
                "if": {"properties": {"event": {"const": event.name}}},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for event, name in zip(events(), names, strict=True)
        ],
        "$defs": definitions,
    }


def _record(event: type[Event], fields: Schema) -> Schema:
    """The schema of an event's fields as that of its record in the log."""
    properties = {
        "time": {"type": "string", "pattern": _TIME},
        "level": {"const": event.level},
        "event": {"const": event.name},
        **fields["properties"],
        **_WRITTEN.get(event.name, {}),
    }
    for entry in properties.values():
        # A record has every field: no default is ever used.
        entry.pop("default", None)
    return {
        # As the log has it: JSON's word.
        "description": inspect.cleandoc(fields["description"]).replace("None", "null"),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def page() -> str:
    """The whole text."""
    found = schema()
    sections = [_HEAD]
    heads = {module.__name__: command for command, module in _COMMANDS.items()}
    for event, branch in zip(events(), found["allOf"], strict=True):
        command = heads.pop(event.__module__, None)
        if command is not None:
            sections.append(f"## {command}\n")
        record = _resolve(branch["then"], found)
        fields = [
            f"| `{name}` | {_type(entry, found)} |"
            for name, entry in record["properties"].items()
            if name not in ("time", "level", "event")
        ]
        table = ["", "| field | type |", "|---|---|", *fields] if fields else []
        sections.append(
            "\n".join(
                [f"### {event.name}", f"Level `{event.level}`. {record['description']}", *table, ""]
            )
        )
    return "\n".join(sections)


def _resolve(entry: Schema, root: Schema) -> Schema:
    if "$ref" not in entry:
        return entry
    resolved: Schema = root["$defs"][entry["$ref"].rpartition("/")[2]]
    return resolved


def _type(entry: Schema, root: Schema) -> str:
    """A type in words."""
    entry = _resolve(entry, root)
    if "anyOf" in entry:
        return " or ".join(_type(each, root) for each in entry["anyOf"])
    if "enum" in entry:
        return "one of " + ", ".join(f"`{value}`" for value in entry["enum"])
    if entry["type"] == "array":
        return f"list of {_type(entry['items'], root)}s"
    text: str = entry["type"]
    return f"{text}: {entry['description']}" if "description" in entry else text


if __name__ == "__main__":
    PAGE.write_text(page())
    SCHEMA.write_text(json.dumps(schema(), indent=1) + "\n")
