"""What can go wrong, as one tree.

::

    EgressProxyError
    ├── ConfigurationError     what the admin wrote is wrong; exit status 2
    └── PlatformError          the pod, node or network lacks something; exit status 1

Both carry `Problem` values, one for each thing to correct, so that an administrator sees all of
them together. Text is made only in ``__str__``; code that catches an error reads its fields.
"""

from __future__ import annotations

from dataclasses import dataclass

# A longer value is cut after this many characters: a message should fit on one line of a terminal,
# and the kubelet keeps only 4096 bytes of a termination message.
QUOTED_CHARACTERS = 80


def quote(value: str) -> str:
    """`value` in quotes, on one line whatever it holds, cut after `QUOTED_CHARACTERS`."""
    if len(value) > QUOTED_CHARACTERS:
        return f"{value[:QUOTED_CHARACTERS]!r}… ({len(value)} characters)"
    return repr(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing to correct.

    `variable` is the wrong environment variable, or empty if none is; `line` is the line in its
    value, counted from 1; `value` is the wrong text; `reason` says what is wrong and `cure` what to
    do about it, or is empty.
    """

    variable: str = ""
    line: int | None = None
    value: str | None = None
    reason: str
    cure: str = ""

    def __str__(self) -> str:
        where = self.variable
        if self.line is not None:
            where = f"{where} line {self.line}".lstrip()
        what = [where] if where else []
        if self.value is not None:
            what.append(quote(self.value))
        what.append(f"{self.reason}; {self.cure}" if self.cure else self.reason)
        return ": ".join(what)


class EgressProxyError(Exception):
    """Any failure that ends a command; `problems` says what to correct."""

    exit_status = 1

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class ConfigurationError(EgressProxyError):
    """The environment variables, or the text they name, are wrong."""

    exit_status = 2


class PlatformError(EgressProxyError):
    """The pod, the node or the network lacks what the configuration asks for."""

    exit_status = 1
