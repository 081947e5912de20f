"""The commands in Markdown that an operator is told to type: code spans and fenced blocks. Pure.

Only what runs in a container counts: ``kubectl exec``, ``podman run``, and `egress-proxy` itself.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise

_FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_CONTINUED = re.compile(r"\\\n")
# The start of each command, as `occurrences` counts it in text of any form.
_STARTS = ("kubectl exec", "oc exec", "podman run")
# Without an argument these are the names of processes, which nobody types.
_PROCESSES = ("init", "run", "hold")


@dataclass(frozen=True, slots=True)
class Exec:
    """A command for a running container; `container` is empty where any will do."""

    container: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.argv)


def commands(markdown: str) -> list[str]:
    """The code spans, and the lines of code blocks, with continued lines joined."""
    blocks = _FENCE.findall(markdown)
    lines = [line for block in blocks for line in _CONTINUED.sub(" ", block).splitlines()]
    return [" ".join(text.split()) for text in lines + _SPAN.findall(_FENCE.sub("", markdown))]


def occurrences(markdown: str) -> int:
    """How often one of the commands is mentioned, however it is written."""
    return sum(" ".join(markdown.split()).count(start) for start in _STARTS)


def in_containers(markdown: str) -> list[Exec]:
    """What is to be run in a container of a pod. Raises `ValueError` if a command has no ``--``."""
    found = []
    for text in commands(markdown):
        if text.startswith(_STARTS[:2]):
            words = shlex.split(text)
            end = words.index("--")
            found.append(Exec(_container(words[:end]), tuple(words[end + 1 :])))
        elif text.startswith("egress-proxy "):
            words = shlex.split(text)
            if tuple(words[1:]) not in {(name,) for name in _PROCESSES}:
                found.append(Exec("", tuple(words)))
    return found


def of_podman(markdown: str) -> list[str]:
    """The lines that start a container of their own, for a shell."""
    return [text for text in commands(markdown) if text.startswith("podman run")]


def _container(options: list[str]) -> str:
    for option, value in pairwise([*options, ""]):
        name, _, joined = option.partition("=")
        if name in ("-c", "--container"):
            return joined or value
    return ""
