"""Environment variables: what one is, and how its text becomes a value.

A `Variable` has its name, its default, its parser and its meaning, so that one definition serves
for reading it, for the help and for error messages. A parser takes the stripped text and raises
`RefusedError` with a reason and a cure. `Reader` turns that into a `Problem` that names the
variable, and continues, so that all problems are reported together.

Trust boundary: the text comes from a pod spec, that is from a cluster administrator, who makes
typing errors but does not attack.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast

from egress_proxy.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from egress_proxy.ip import Address, Network

T = TypeVar("T")
LogFormat = Literal["console", "json", ""]

PREFIX = "EGRESS_DNS_PROXY_"
_OURS = "EGRESS_"
# What Kubernetes sets for a Service whose name starts with egress, in every pod of its namespace.
_OF_KUBERNETES = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$"
    r"|_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$"
)

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
# What other programs accept: several units, longer names of them, days.
_LONG_DURATION = re.compile(
    r"([0-9]+)(d|days?|h|hours?|hrs?|m|mins?|minutes?|s|secs?|seconds?)(?![a-z])", re.ASCII
)
_LONG_UNIT_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_WHOLE_UNITS = (("h", 3600), ("m", 60), ("s", 1))
_NEVER = frozenset({"never", "none", "infinite", "infinity", "inf", "unlimited", "forever"})
_QUOTED = re.compile(r"^[\"']|[\"']$")
# A week: a longer duration is a typing error.
MAX_DURATION_S = 7 * 24 * 3600.0
_LOG_FORMATS: dict[str, LogFormat] = {"console": "console", "json": "json", "": ""}
# How similar two names must be for a suggestion (difflib's ratio): DEST and DESTINATION are.
_NEAR = 0.4
_OFF = frozenset({"", "0", "false", "no", "off"})


class RefusedError(ValueError):
    """A text that a parser refuses: `reason` is what is wrong, `cure` what to write instead."""

    def __init__(self, reason: str, cure: str, value: str | None = None) -> None:
        super().__init__(reason, cure)
        self.reason = reason
        self.cure = cure
        self.value = value

    def problem(
        self, variable: str, text: str | None = None, *, line: int | None = None
    ) -> Problem:
        """The problem of `variable`; its value is `text`, unless the error names a part of it."""
        value = text if self.value is None else self.value
        return Problem(
            variable=variable, line=line, value=value, reason=self.reason, cure=self.cure
        )


@dataclass(frozen=True, slots=True)
class Variable(Generic[T]):
    """One environment variable; `default` is text, parsed like any other, or None."""

    name: str
    default: str | None
    parse: Callable[[str], T]
    meaning: str


class Reader:
    """Reads variables from `environ`, and collects a `Problem` for each wrong one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []

    def text(self, variable: Variable[T]) -> str:
        """The variable's stripped text, or its default where it is unset or blank."""
        return self.environ.get(variable.name, "").strip() or (variable.default or "")

    def read(self, variable: Variable[T]) -> T:
        """The variable's value. If it is wrong, a problem is added and the value is not usable.

        Call `raise_problems` before using any value.
        """
        text = self.text(variable)
        try:
            return variable.parse(text)
        except RefusedError as error:
            self.refuse(variable, error, text)
        except ConfigurationError as error:
            self.problems.extend(error.problems)
        return cast("T", None)

    def read_required(self, variable: Variable[T]) -> T:
        """The same of a variable that must be set."""
        if self.text(variable):
            return self.read(variable)
        self.problems.append(
            Problem(variable=variable.name, reason="not set", cure=f"set it to {variable.meaning}")
        )
        return cast("T", None)

    def refuse(self, variable: Variable[T], error: RefusedError, text: str) -> None:
        self.problems.append(error.problem(variable.name, text))

    def raise_problems(self) -> None:
        """Raise `ConfigurationError` with all problems collected so far, if there are any."""
        if self.problems:
            raise ConfigurationError(*self.problems)


def unknown_names(environ: Mapping[str, str], known: Collection[str]) -> tuple[Problem, ...]:
    """A warning for each unknown variable with our prefix, with the nearest known name."""
    return tuple(
        Problem(variable=name, reason="unknown variable, ignored", cure=_nearest(name, known))
        for name in sorted(environ)
        if name.startswith(_OURS) and name not in known and not _OF_KUBERNETES.search(name)
    )


def _nearest(name: str, known: Collection[str]) -> str:
    def likeness(candidate: str) -> tuple[float, bool]:
        """Compares without prefixes, which would make all names alike; the same one is better."""
        pairs = [(_bare(name), _bare(candidate))]
        if not name.startswith(PREFIX):
            # The prefix itself may be misspelt.
            pairs.append((name.removeprefix(_OURS), candidate.removeprefix(_OURS)))
        ratio = max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return ratio, name.startswith(PREFIX) == candidate.startswith(PREFIX)

    nearest = max(sorted(known), key=likeness, default="")
    if not nearest or likeness(nearest)[0] < _NEAR:
        return "see --help for known ones"
    return f"did you mean {nearest}?"


def _bare(name: str) -> str:
    return name.upper().removeprefix(PREFIX).removeprefix(_OURS)


def parse_flag(text: str) -> bool:
    """Off for empty, ``0``, ``false``, ``no``, ``off`` in any case; on for anything else."""
    return text.lower() not in _OFF


def parse_duration(text: str) -> float:
    """``500ms``, ``10s``, ``1m``, ``1h`` or plain seconds, as seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise RefusedError("not a duration", _mistaken_duration(text))
    seconds = float(match[1]) * _UNIT_S[match[2]]
    if seconds > MAX_DURATION_S:
        raise RefusedError("longer than a week", "write at most 168h, or 0 where that means never")
    return seconds


def _mistaken_duration(text: str) -> str:
    """What to write instead of `text`."""
    lower = text.lower()
    if lower in _NEVER:
        return "write 0 where that means never"
    parts = _LONG_DURATION.findall(lower)
    if not parts or "".join(map("".join, parts)) != lower:
        return "write for example 500ms, 10s, 1m, 1h or plain seconds"
    seconds = sum(int(number[:9]) * _LONG_UNIT_S[unit[0]] for number, unit in parts)
    unit, length_s = next(
        (unit, length_s) for unit, length_s in _WHOLE_UNITS if seconds % length_s == 0
    )
    return f"write {seconds // length_s}{unit}"


def parse_positive_duration(text: str) -> float:
    """A duration that is not zero, as seconds."""
    seconds = parse_duration(text)
    if seconds == 0:
        raise RefusedError("zero is not allowed here", "write for example 10s")
    return seconds


def parse_name(text: str) -> str:
    """The name of a network interface, as the kernel allows it (dev_valid_name in net/core)."""
    # 15 octets: IFNAMSIZ less the terminating zero (linux/if.h).
    if not 0 < len(text.encode(errors="replace")) <= 15:  # noqa: PLR2004 - said above
        raise RefusedError("not an interface name: 1 to 15 octets", "write for example net1")
    if text in {".", ".."} or re.search(r"[\s/:]", text):
        raise RefusedError("not an interface name: no blank, '/' or ':'", "write for example net1")
    return text


def parse_address(text: str, *, cure: str = "write for example 192.0.2.10") -> Address:
    """One IPv4 or IPv6 address without a scope; `cure` says what else the variable may contain."""
    refuse_quotation_marks(text)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        reason, better = _mistaken_address(text) or ("not an IP address", cure)
        raise RefusedError(reason, better, text) from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise RefusedError("an address with a scope", "remove the % and what follows", text)
    return address


def refuse_quotation_marks(text: str) -> None:
    """Raise `RefusedError` for those that an env file keeps."""
    if _QUOTED.search(text):
        raise RefusedError("quotation marks", "remove them", text)


def _mistaken_address(text: str) -> tuple[str, str] | None:
    """Reason and cure, if the text is an address with something around it."""
    for reason, inner in (
        ("brackets around the address", text.removeprefix("[").removesuffix("]")),
        ("a length after the address", text.rpartition("/")[0]),
    ):
        with contextlib.suppress(ValueError):
            return reason, f"write {ipaddress.ip_address(inner)}"
    return None


def split_list(text: str) -> list[str]:
    """The stripped entries of a comma list. A trailing comma is allowed, an empty entry is not."""
    entries = [entry.strip() for entry in text.split(",")]
    if entries[-1] == "":
        entries.pop()
    if "" in entries:
        raise RefusedError("an empty entry between commas", "remove the extra comma")
    return entries


def parse_addresses(
    text: str, *, cure: str = "write for example 192.0.2.10"
) -> tuple[Address, ...]:
    """A comma list of addresses."""
    return tuple(parse_address(entry, cure=cure) for entry in split_list(text))


def parse_networks(text: str) -> tuple[Network, ...]:
    """A comma list of networks in CIDR form; a single address is a network of one address."""
    return tuple(map(_parse_network, split_list(text))) if text else ()


def _parse_network(entry: str) -> Network:
    try:
        return ipaddress.ip_network(entry)
    except ValueError:
        pass
    try:
        nearest = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise RefusedError("not a network", "write for example 192.0.2.0/24", entry) from None
    raise RefusedError("a network with host bits set", f"write {nearest}", entry)


def parse_log_format(text: str) -> LogFormat:
    """``console``, ``json``, or empty, which means console on a terminal and JSON elsewhere."""
    if text not in _LOG_FORMATS:
        raise RefusedError("not a log format", "write json or console")
    return _LOG_FORMATS[text]


def parse_ha(text: str) -> bool:
    """True for ``lease``."""
    if text not in ("", "off", "lease"):
        raise RefusedError("not a kind of high availability", "write lease, or remove it")
    return text == "lease"


HA = Variable(
    "EGRESS_HA",
    "",
    parse_ha,
    "lease: this pod shares the reserved address with others, and `hold` takes and releases it",
)
INTERFACE = Variable("EGRESS_INTERFACE", "macvlan0", parse_name, "the egress interface")
LOG_FORMAT = Variable(
    "EGRESS_DNS_PROXY_LOG_FORMAT",
    "",
    parse_log_format,
    "json (failures too) or console; empty: console on a terminal, otherwise json, but failures "
    "are text on stderr",
)
