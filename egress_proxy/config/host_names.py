"""The grammar of DNS names that are destinations. Pure.

A name has two labels or more. An internationalised name is encoded; underscores are allowed.
"""

from __future__ import annotations

import re

from egress_proxy.config.variables import RefusedError

# RFC 1035 section 2.3.4; a name's 253 characters are its 255 octets on the wire.
_MAX_LABEL = 63
_MAX_NAME = 253
# RFC 1123 section 2.1, and underscores, which service names in real zones have.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?", re.ASCII | re.IGNORECASE)
# What inet_aton(3) reads as a number: as a last label it would make the name an address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)


def parse_name(field: str) -> str:
    """The name in lower case and ASCII, with its trailing dot, if any. Raises `RefusedError`."""
    # Checked first, so that nothing below gets a long text.
    if len(field) > _MAX_NAME + 1:
        raise RefusedError(f"a name over {_MAX_NAME} octets", "shorten it", field)
    if ":" in field:
        raise RefusedError("a malformed IPv6 address", "write for example 2001:db8::10", field)
    absolute = _to_ascii(field)
    name = absolute.removesuffix(".")
    labels = name.split(".")
    if all(map(_NUMBER.fullmatch, labels)):
        raise RefusedError(
            "a malformed IPv4 address", "write four decimal numbers without leading zeros", field
        )
    if _NUMBER.fullmatch(labels[-1]):
        raise RefusedError("the last label of the name is a number", "correct the name", field)
    for label in labels:
        _refuse_label(label, field)
    if len(name) > _MAX_NAME:
        raise RefusedError(f"a name over {_MAX_NAME} octets", "shorten it", field)
    if len(labels) == 1:
        raise RefusedError(
            "a name of a single label", f"write it in full, for example {name}.example.com", field
        )
    return absolute.lower()


def _refuse_label(label: str, field: str) -> None:
    if not label:
        raise RefusedError("an empty label in the name", "remove the extra dot", field)
    if len(label) > _MAX_LABEL:
        raise RefusedError(f"a label over {_MAX_LABEL} octets", "shorten it", field)
    if not _LABEL.fullmatch(label):
        raise RefusedError(
            f"label {label!r} has other characters than letters, digits, '_' and '-', "
            "or a '-' at one end",
            "correct the name",
            field,
        )


def _to_ascii(field: str) -> str:
    """An internationalised name in its ASCII form (RFC 5891, with the mapping of UTS 46)."""
    if field.isascii():
        return field
    # Tables of 1 MB, for the rare text that needs them.
    import idna  # noqa: PLC0415 - see above

    try:
        labels = idna.uts46_remap(field, std3_rules=False).split(".")
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels
        )
    except UnicodeError as error:
        raise RefusedError(
            f"not an internationalised name: {error}", "correct it, or write its xn-- form", field
        ) from None
