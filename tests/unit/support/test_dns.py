"""What the scripted DNS server answers, without a socket."""

from __future__ import annotations

import dns.flags
import dns.message
import pytest
from dns.rcode import Rcode

from tests.support.dns import Name, Transport, answer

ZONE = {
    "example.com": Name(a=("203.0.113.130", "203.0.113.131"), aaaa=("2001:db8::1",), ttl_s=7),
    "www.example.com": Name(cname="example.com", ttl_s=60),
    "dangling.example.com": Name(cname="gone.example.com"),
    "circle.example.com": Name(cname="circle.example.com"),
    "four.example.com": Name(a=("203.0.113.130",)),
    "failing.example.com": Name(rcode=Rcode.SERVFAIL),
    "refused.example.com": Name(rcode=Rcode.REFUSED),
    "half.example.com": Name(a=("203.0.113.130",), rcode=Rcode.SERVFAIL, failing="AAAA"),
    "long.example.com": Name(a=("203.0.113.130",), truncated=True),
}


def ask(name: str, kind: str = "A", transport: Transport = "udp") -> dns.message.Message:
    """The answer as a client reads it from the wire."""
    request = dns.message.from_wire(dns.message.make_query(name, kind).to_wire())
    response = dns.message.from_wire(answer(request, ZONE, transport).to_wire())
    assert request.is_response(response)
    return response


@pytest.mark.parametrize(
    ("name", "kind", "lines"),
    [
        (
            "example.com",
            "A",
            ["example.com. 7 IN A 203.0.113.130", "example.com. 7 IN A 203.0.113.131"],
        ),
        ("example.com", "AAAA", ["example.com. 7 IN AAAA 2001:db8::1"]),
        ("EXAMPLE.com.", "AAAA", ["EXAMPLE.com. 7 IN AAAA 2001:db8::1"]),
        ("four.example.com", "AAAA", []),
        ("example.com", "MX", []),
        (
            "www.example.com",
            "AAAA",
            [
                "example.com. 7 IN AAAA 2001:db8::1",
                "www.example.com. 60 IN CNAME example.com.",
            ],
        ),
    ],
)
def test_it_answers_from_the_zone(name: str, kind: str, lines: list[str]) -> None:
    response = ask(name, kind)
    assert response.rcode() == Rcode.NOERROR
    assert (
        sorted(text for rrset in response.answer for text in rrset.to_text().split("\n")) == lines
    )


@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        ("nowhere.example.com", Rcode.NXDOMAIN),
        ("failing.example.com", Rcode.SERVFAIL),
        ("refused.example.com", Rcode.REFUSED),
    ],
)
def test_the_reason_for_a_missing_answer_is_reported(name: str, rcode: Rcode) -> None:
    response = ask(name)
    assert response.rcode() == rcode
    assert not response.answer


def test_one_kind_may_fail_alone() -> None:
    assert ask("half.example.com").rcode() == Rcode.NOERROR
    assert ask("half.example.com", "AAAA").rcode() == Rcode.SERVFAIL


def test_an_alias_of_nothing_does_not_exist() -> None:
    response = ask("dangling.example.com")
    assert response.rcode() == Rcode.NXDOMAIN
    assert len(response.answer) == 1


def test_a_circle_of_aliases_ends() -> None:
    assert ask("circle.example.com").rcode() == Rcode.NOERROR


def test_a_long_answer_is_cut_over_udp_alone() -> None:
    cut = ask("long.example.com", transport="udp")
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    whole = ask("long.example.com", transport="tcp")
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer) == 1
