"""What a command's help and `check --show-settings` say about variables. Pure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from egress_proxy.config.run_variables import MAX_CONNECTIONS
from egress_proxy.config.variables import RefusedError, parse_flag
from egress_proxy.errors import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from egress_proxy.config.variables import Variable


def explain(variables: Iterable[Variable[Any]], environ: Mapping[str, str]) -> str:
    """Each variable with its default, its value now, and its meaning; empty without variables."""
    entries = []
    for variable in variables:
        default = "" if variable.default is None else f" [{variable.default or 'empty'}]"
        text = environ.get(variable.name, "").strip()
        now = f" = {quote(text)}" if text else ""
        entries.append(
            f"  {variable.name}{default}{now}\n"
            + textwrap.indent(textwrap.fill(variable.meaning), " " * 6)
        )
    if not entries:
        return ""
    return "environment variables [and their defaults] = their values now:\n" + "\n".join(entries)


def value_in_effect(
    variable: Variable[Any], environ: Mapping[str, str], connections: int | None
) -> str:
    """The value in effect; `connections` is the maximum that the limit of open files allows."""
    text = environ.get(variable.name, "").strip()
    default = variable.default
    if not text and default is None:
        return "not set"
    if not text and variable is MAX_CONNECTIONS and connections is not None:
        return f"{connections} (from RLIMIT_NOFILE)"
    shown = quote(text or default or "")
    if variable.parse is parse_flag:
        shown = "on" if parse_flag(text or default or "") else "off"
    try:
        variable.parse(text or default or "")
    except RefusedError:
        return f"{shown} (wrong)"
    return shown if text else f"{shown} (default)"
