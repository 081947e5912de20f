"""The list of open sessions as an operator asks for it at `/sessions.json`.

It names clients, and the admin port has no login. Therefore it is off unless the administrator
switches it on (`EGRESS_DNS_PROXY_ADMIN_SESSIONS`).
"""

from __future__ import annotations

from typing import Literal, cast, get_args
from urllib.parse import parse_qsl

import msgspec

Order = Literal["age", "idle", "bytes"]
_ORDERS = get_args(Order)
_DEFAULT_LIMIT = 100
# About 200 bytes each.
_LARGEST_LIMIT = 1000
_LARGEST_PORT = 65535


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One client. `address` is the upstream's, empty until there is one; durations in seconds.

    With the kernel as data plane, the age is only known while all connections are recorded.
    """

    listener: int
    destination: str
    client: str
    address: str
    age_s: float | None
    idle_s: float | None
    bytes_to_upstream: int
    bytes_to_client: int


class SessionList(msgspec.Struct, frozen=True, kw_only=True):
    """The first `sessions` in the requested order; `total` is the number of all."""

    total: int
    sessions: tuple[Session, ...]


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which sessions: of one listening port or of all, the largest by `sort` first."""

    listener: int | None = None
    limit: int = _DEFAULT_LIMIT
    sort: Order = "age"


def parse_query(text: str) -> Query:
    """The query of a request. Raises `ValueError` with what is wrong."""
    listener: int | None = None
    limit = _DEFAULT_LIMIT
    sort: Order = "age"
    for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=10):
        if name == "listener":
            listener = _number(name, value, _LARGEST_PORT)
        elif name == "limit":
            limit = _number(name, value, _LARGEST_LIMIT)
        elif name == "sort" and value in _ORDERS:
            sort = cast("Order", value)
        else:
            raise ValueError(f"listener=PORT, limit=1..{_LARGEST_LIMIT}, sort={'|'.join(_ORDERS)}")
    return Query(listener=listener, limit=limit, sort=sort)


def _number(name: str, text: str, most: int) -> int:
    if (
        text.isascii()
        and text.isdecimal()
        and len(text) <= len(str(most))
        and 1 <= int(text) <= most
    ):
        return int(text)
    raise ValueError(f"{name} is a number from 1 to {most}")
