"""The scripted DNS server on the wire; what it answers is tested without a network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.query
import pytest
from dns.rcode import Rcode

from tests.support.dns import DnsServer, Name, Query
from tests.support.lab import CLUSTER_DNS, POD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab


@pytest.fixture
def cluster_dns(lab: Lab) -> Iterator[DnsServer]:
    address = CLUSTER_DNS.v4, 53
    with DnsServer(lab.node.bind(*address), lab.node.listen(*address)) as server:
        yield server


def query(lab: Lab, name: str, *, over_tcp: bool = False) -> list[str]:
    """The addresses of `name`, asked for by the pod, without a retry; or the reason of none."""
    message = dns.message.make_query(name, "A")
    # dnspython keeps its time limit only on sockets that do not block.
    if over_tcp:
        with lab.pod.connect(CLUSTER_DNS.v4, 53) as tcp:
            tcp.setblocking(False)
            response = dns.query.tcp(message, CLUSTER_DNS.v4, sock=tcp, timeout=10)
    else:
        with lab.pod.bind(POD.v4, 0) as udp:
            udp.setblocking(False)
            response = dns.query.udp(message, CLUSTER_DNS.v4, sock=udp, timeout=10)
    if response.flags & dns.flags.TC:
        return ["truncated"]
    if response.rcode() != Rcode.NOERROR:
        return [response.rcode().name]
    return sorted(record.to_text() for rrset in response.answer for record in rrset)


def test_the_zone_can_change_between_two_answers(lab: Lab, cluster_dns: DnsServer) -> None:
    assert query(lab, "example.com") == ["NXDOMAIN"]
    cluster_dns.zone["example.com"] = Name(a=("203.0.113.130",))
    assert query(lab, "Example.com") == ["203.0.113.130"]
    assert cluster_dns.asked("example.com") == [Query("example.com", "A", "udp")] * 2


def test_a_truncated_answer_is_whole_over_tcp(lab: Lab, cluster_dns: DnsServer) -> None:
    cluster_dns.zone["example.com"] = Name(a=("203.0.113.130",), truncated=True)
    assert query(lab, "example.com") == ["truncated"]
    assert query(lab, "example.com", over_tcp=True) == ["203.0.113.130"]
    assert [each.transport for each in cluster_dns.queries] == ["udp", "tcp"]


@pytest.mark.parametrize("over_tcp", [False, True])
def test_an_answer_waits_until_it_is_released(
    lab: Lab, cluster_dns: DnsServer, *, over_tcp: bool
) -> None:
    cluster_dns.hold("example.com")
    cluster_dns.zone["other.example.com"] = Name(a=("203.0.113.131",))
    with ThreadPoolExecutor(max_workers=1) as pool:
        held = pool.submit(query, lab, "example.com", over_tcp=over_tcp)
        cluster_dns.wait_for("example.com")
        assert query(lab, "other.example.com") == ["203.0.113.131"]
        assert not held.done()
        cluster_dns.zone["example.com"] = Name(a=("203.0.113.130",))
        cluster_dns.release("example.com")
        assert held.result() == ["203.0.113.130"]


def test_a_server_ends_with_a_client_still_connected(lab: Lab) -> None:
    address = CLUSTER_DNS.v4, 53
    with DnsServer(lab.node.bind(*address), lab.node.listen(*address)) as server:
        server.hold("example.com")
        client = lab.pod.connect(*address)
        message = dns.message.make_query("example.com", "A")
        dns.query.send_tcp(client, message)
        server.wait_for("example.com")
    with client:
        assert client.recv(1) == b""


def test_a_server_on_loopback_has_its_address() -> None:
    with DnsServer.on_loopback() as server:
        server.zone["example.com"] = Name(a=("203.0.113.130",))
        ip, port = server.address.split(":")
        message = dns.message.make_query("example.com", "A")
        assert dns.query.udp(message, ip, port=int(port), timeout=10).answer
