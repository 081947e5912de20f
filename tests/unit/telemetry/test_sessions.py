"""What may be asked of the list of sessions."""

from __future__ import annotations

import re

import pytest

from egress_proxy.telemetry.sessions import Query, parse_query


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", Query()),
        ("listener=5432", Query(listener=5432)),
        ("limit=1000&sort=bytes", Query(limit=1000, sort="bytes")),
        ("sort=idle&listener=65535&limit=1", Query(listener=65535, limit=1, sort="idle")),
    ],
)
def test_good_queries(text: str, query: Query) -> None:
    assert parse_query(text) == query


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limit=0", "limit is a number from 1 to 1000"),
        ("limit=1001", "limit is a number from 1 to 1000"),
        ("listener=", "listener is a number from 1 to 65535"),
        ("listener=-1", "listener is a number from 1 to 65535"),
        ("listener=99999999999999999999", "listener is a number from 1 to 65535"),
        ("listener=%D9%A3", "listener is a number from 1 to 65535"),
        ("sort=name", "listener=PORT, limit=1..1000, sort=age|idle|bytes"),
        ("verbose", "listener=PORT, limit=1..1000, sort=age|idle|bytes"),
        ("&".join(["limit=1"] * 11), "Max number of fields exceeded"),
    ],
)
def test_bad_queries(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_query(text)
