"""What a look-up of a name returns or raises, whoever does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from egress_proxy.ip import Address


class LookupFailedError(Exception):
    """A name has no address now; the text says why."""


class FamilyFailure(NamedTuple):
    """Why the addresses of IP `version` (4 or 6) are not known."""

    version: int
    error: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a name, IPv4 first, good for `ttl_s` seconds.

    Where a family is in `failed`, the other one was answered; an empty family that is not in it
    has no address.
    """

    addresses: tuple[Address, ...]
    ttl_s: float
    failed: tuple[FamilyFailure, ...] = ()


class Lookup(Protocol):
    """Looks up a name once."""

    async def __call__(self, name: str) -> Answer:
        """The answer; raises `LookupFailedError`."""
