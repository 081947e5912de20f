"""Attributes and messages of netlink, whole and cut off."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.netlink import NESTED, attribute, attributes, messages


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40)))
def test_attributes_come_back(values: dict[int, bytes]) -> None:
    octets = b"".join(attribute(kind | NESTED, value) for kind, value in values.items())
    assert len(octets) % 4 == 0
    assert attributes(octets) == values


@given(st.binary(max_size=80))
def test_any_octets_end(octets: bytes) -> None:
    attributes(octets)
    list(messages(octets))


@pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
def test_an_attribute_of_a_wrong_length_ends_the_list(length: int) -> None:
    assert attributes(attribute(1, b"good") + struct.pack("=HH", length, 2) + b"bad!") == {
        1: b"good"
    }


def test_messages_of_one_packet() -> None:
    header = struct.pack("=IHHII", 17, 256, 0, 1, 0)
    assert list(messages(header + b"a\0\0\0" + header + b"b")) == [(256, b"a"), (256, b"b")]
