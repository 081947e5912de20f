"""Mistakes that administrators make when they write destinations, each with its cure. Pure.

Consulted only for a text that the grammar has refused: a known mistake explains more than the
grammar's own reason.
"""

from __future__ import annotations

import itertools
import re

from egress_proxy.config.variables import RefusedError

Mistake = tuple[str, str]  # a reason and a cure

NETWORK = re.compile(r"[0-9a-f.:]+/[0-9]{1,3}", re.ASCII | re.IGNORECASE)

# How much of a line is searched, in characters; no destination is longer.
_SEARCHED = 1000
# YAML's folded style puts a space where the text had a line break.
_FOLDED = "in YAML write |- instead of >-, which joins lines"
_QUOTES = ('"', "'")
# A comment with words and then a destination. A destination alone was commented out on purpose.
_IN_COMMENT = re.compile(r"#\s*[^\s0-9].*\s[0-9]+\s+\S*[.:]", re.ASCII)


def in_line(line: str) -> RefusedError | None:
    """The known mistake in a line that was refused, or None."""
    text = line.strip(" \t")
    start = text[:_SEARCHED]
    mistake = _in_characters(start) or _in_marks(start) or _in_fields(start.split())
    return RefusedError(*mistake, text) if mistake else None


def _in_marks(text: str) -> Mistake | None:
    if r"\n" in text:
        return r"\n is a backslash and a letter here", "use real line breaks: in YAML write |-"
    if text.startswith(_QUOTES) or text.endswith(_QUOTES):
        return "a quotation mark", "remove the quotation marks"
    if ";" in text:
        return "a ';'", "write one destination per line, without ';'"
    return None


def _in_characters(text: str) -> Mistake | None:
    for character in text:
        if character == "\0":
            return "a NUL octet: UTF-16 or a binary file", "save the file as UTF-8"
        if "\udc80" <= character <= "\udcff":
            octet = ord(character) - 0xDC00
            return f"octet 0x{octet:02X} is not UTF-8", "save the text as UTF-8"
        if character not in " \t" and (character.isspace() or not character.isprintable()):
            # Tables of 1 MB, for a text that is refused.
            import unicodedata  # noqa: PLC0415 - see above

            name = unicodedata.name(character, "control character").lower()
            cure = "replace it with a space, or remove it"
            return f"a {name} (U+{ord(character):04X})", cure
    return None


def _in_fields(fields: list[str]) -> Mistake | None:
    if len(fields) > 3:  # noqa: PLR2004 - a destination has two or three fields
        for port, host in itertools.pairwise(fields[2:]):
            if port.isdigit() and ("." in host or ":" in host):
                return "several destinations on one line", _FOLDED
    if len(fields) > 1 and not fields[0].isdigit() and fields[1].isdigit():
        return "the host comes before the port", f"write {fields[1]} {fields[0]}"
    return None


def in_text_without_destination(text: str) -> RefusedError | None:
    """The known mistake in a text that holds blanks and comments alone, or None."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) == 1 and _IN_COMMENT.search(lines[0][:_SEARCHED]):
        return RefusedError("no destination: the only line is a comment", _FOLDED)
    return None


def in_file(octets: bytes) -> RefusedError | None:
    """The known mistake in the octets of a destinations file, or None."""
    if octets.startswith((b"\xff\xfe", b"\xfe\xff")):
        return RefusedError("the file is UTF-16", "save it as UTF-8")
    return None
