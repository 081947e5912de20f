"""Rules as pyroute2 reads them."""

from __future__ import annotations

import socket
from ipaddress import ip_network
from typing import Any

import pytest

from egress_proxy.init.messages import read_rules
from egress_proxy.init.state import IPV4, IPV6, Rule


class Message(dict[str, Any]):
    """A message of pyroute2: a dictionary that knows attributes by their full name too."""

    def get_attr(self, name: str) -> object:
        return self.get(name)


def message(**fields: object) -> Message:
    usual = {
        "family": socket.AF_INET,
        "table": 1091,
        "action": 1,
        "tos": 0,
        "flags": 0,
        "src_len": 0,
        "priority": 1091,
    }
    return Message(usual | fields)


@pytest.mark.parametrize(
    ("read", "rule"),
    [
        (
            message(src="192.0.2.10", src_len=32),
            Rule(version=IPV4, priority=1091, source=ip_network("192.0.2.10/32")),
        ),
        (
            message(family=socket.AF_INET6, iifname="net1"),
            Rule(version=IPV6, priority=1091, interface="net1"),
        ),
        (message(tos=8), Rule(version=IPV4, priority=1091, foreign=True)),
        # For instance "not from".
        (message(flags=2), Rule(version=IPV4, priority=1091, foreign=True)),
        (message(FRA_FWMARK=7), Rule(version=IPV4, priority=1091, foreign=True)),
        (message(FRA_OIFNAME="eth0"), Rule(version=IPV4, priority=1091, foreign=True)),
    ],
)
def test_a_rule_of_the_reply_table(read: Message, rule: Rule) -> None:
    assert list(read_rules(read)) == [rule]


@pytest.mark.parametrize("other", [{"table": 254}, {"action": 6}])
def test_other_rules_are_left_out(other: dict[str, int]) -> None:
    assert list(read_rules(message(**other))) == []
