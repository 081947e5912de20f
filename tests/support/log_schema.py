"""Holds records of the log against the schema that `docs/log-events.schema.json` promises."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from docs.log_events import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

# Of each event; a crowd of clients has thousands of them.
_MOST = 20


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text()))


def violations(records: Iterable[dict[str, Any]]) -> list[str]:
    """What the schema does not allow in `records`, of which some of each event are looked at."""
    seen: Counter[object] = Counter()
    found = []
    for record in records:
        event = record.get("event")
        seen[event] += 1
        if seen[event] <= _MOST:
            found += [f"{error.message}: {record}" for error in _validator().iter_errors(record)]
    return found
