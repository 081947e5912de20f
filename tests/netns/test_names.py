"""Names as the installed command resolves them, from real servers too."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from dns.rcode import Rcode

from tests.support.deployment import BOTH_DATA_PLANES, TIMEOUT_S, Deployment
from tests.support.dns import Name
from tests.support.dns_daemons import DnsDaemons, find
from tests.support.lab import (
    GATEWAY,
    NODE_TO_LAN,
    NODE_TO_PODS,
    OUTSIDE,
    OUTSIDE_SECOND,
    POD,
    RESERVED,
)
from tests.support.needs import do_without
from tests.support.network import IPV6

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab
    from tests.support.processes import Process

PORT = 9000
NAME = "late.example.com"
OWN_LISTENER = "one of the proxy's own listeners"
# No host has it at first; later the pod does.
LATE = "192.0.2.77"


needs_ipv6 = pytest.mark.skipif(not IPV6, reason="the kernel has no IPv6")


@pytest.fixture(params=BOTH_DATA_PLANES)
def deployment(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with Deployment(lab, BOTH_DATA_PLANES[request.param]) as deployed:
        deployed.take_source()
        yield deployed


def start(deployment: Deployment, **env: str) -> Process:
    return deployment.start(EGRESS_DNS_PROXY_DESTINATION=f"{PORT} {NAME}", **env)


def changed(proxy: Process, *addresses: str) -> None:
    proxy.wait_for("destination.changed", timeout_s=20, addresses=list(addresses))


@pytest.mark.parametrize("kind", ["dnsmasq", "unbound"])
def test_a_real_name_server_changes_is_restarted_and_stays_away(
    deployment: Deployment, tmp_path: Path, kind: str
) -> None:
    for daemon in {"dnsmasq", kind}:
        if find(daemon) is None:
            do_without(f"{daemon} is not installed: apt-get install dnsmasq-base unbound")
    address, delegated = NODE_TO_PODS.v4, NODE_TO_LAN.v4
    with DnsDaemons(kind, deployment.lab.node, address, delegated, tmp_path) as daemons:
        with daemons.serving({"other.example.com": OUTSIDE.v4}):
            proxy = start(deployment, EGRESS_DNS_PROXY_NAMESERVERS=address)
            proxy.wait_for("destination.unresolved", timeout_s=20)
            with pytest.raises(ConnectionRefusedError):
                deployment.lab.client.connect(POD.v4, PORT)
        with daemons.serving({NAME: OUTSIDE.v4}):
            # A late name, which both c-ares and unbound could remember as one that does not exist.
            changed(proxy, OUTSIDE.v4)
            proxy.wait_for("listener.opened", listener=PORT)
            resolved = proxy.wait_for("destination.resolved", destination=NAME)
            assert 0 <= resolved["ttl_s"] <= 1
            assert resolved["addresses"] == [OUTSIDE.v4]
        proxy.wait_for("destination.stale", timeout_s=20, addresses=[OUTSIDE.v4])
        with daemons.serving({NAME: OUTSIDE_SECOND.v4}):
            changed(proxy, OUTSIDE_SECOND.v4)
    proxy.wait_for("destination.stale", timeout_s=20, addresses=[OUTSIDE_SECOND.v4])
    proxy.terminate()
    assert proxy.stop() == 0
    assert proxy.stderr == ""


def test_names_that_exist_are_asked_for_once(deployment: Deployment) -> None:
    """With ndots:5, as Kubernetes has it, others ask for each domain of the search list first."""
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,))
    changed(start(deployment), OUTSIDE.v4)
    assert {query.name for query in deployment.dns.queries} == {NAME}


def test_a_name_that_leads_to_the_pod_itself_serves_no_client(deployment: Deployment) -> None:
    """By any of its addresses, the proxy would connect to itself for as long as it can."""
    deployment.dns.zone[NAME] = Name(a=(POD.v4, "127.0.0.1", "169.254.169.254"))
    proxy = start(deployment)
    for address, reason in (
        (POD.v4, OWN_LISTENER),
        ("127.0.0.1", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
    ):
        proxy.wait_for("destination.denied", address=address, error=reason)
    proxy.wait_for("destination.unresolved", destination=NAME)
    with pytest.raises(ConnectionRefusedError):
        deployment.lab.client.connect(POD.v4, PORT)


def sources(*families: str) -> dict[str, str]:
    """The environment of `init` with the reserved address of each of `families`."""
    reserved = {"v4": RESERVED.interface4, "v6": RESERVED.interface6}
    return {
        "EGRESS_SOURCE": ",".join(str(reserved[family]) for family in families),
        "EGRESS_GATEWAY": ",".join(getattr(GATEWAY, family) for family in families),
    }


@needs_ipv6
@pytest.mark.parametrize("families", [("v4",), ("v6",), ("v4", "v6")], ids="+".join)
def test_remotes_are_reached_by_the_families_that_have_a_source(
    lab: Lab, families: tuple[str, ...]
) -> None:
    with Deployment(lab) as deployment, ExitStack() as stack:
        deployment.take_source(**sources(*families))
        deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), aaaa=(OUTSIDE.v6,))
        listeners = {
            family: stack.enter_context(lab.outside.listen(getattr(OUTSIDE, family), PORT))
            for family in ("v4", "v6")
        }
        proxy = start(deployment)
        usable = proxy.wait_for("destination.changed")["addresses"]
        assert set(usable) == {getattr(OUTSIDE, family) for family in families}
        proxy.wait_for("listener.opened")
        # Addresses take turns, so each of them gets one of so many clients.
        for _ in families:
            stack.enter_context(lab.client.connect(POD.v4, PORT))
        for family in families:
            listeners[family].settimeout(TIMEOUT_S)
            upstream, (seen, *_) = listeners[family].accept()
            upstream.close()
            assert seen == getattr(RESERVED, family)
        kinds = {"v4": "A", "v6": "AAAA"}
        asked = {query.kind for query in deployment.dns.asked(NAME)}
        assert asked == {kinds[family] for family in families}


@needs_ipv6
def test_one_family_of_a_name_fails_and_comes_back(lab: Lab) -> None:
    both = Name(a=(OUTSIDE.v4,), aaaa=(OUTSIDE.v6,), ttl_s=0)
    with Deployment(lab) as deployment:
        deployment.take_source(**sources("v4", "v6"))
        deployment.dns.zone[NAME] = replace(both, rcode=Rcode.SERVFAIL, failing="AAAA")
        proxy = start(deployment)
        for _ in range(2):
            resolved = proxy.wait_for("destination.resolved")
            assert resolved["addresses"] == [OUTSIDE.v4]
        deployment.dns.zone[NAME] = both
        changed(proxy, OUTSIDE.v4)
        usable = proxy.wait_for("destination.changed")["addresses"]
        assert set(usable) == {OUTSIDE.v4, OUTSIDE.v6}
        assert "destination.stale" not in {record["event"] for record in proxy.records}


def give_pod(lab: Lab, address: str) -> None:
    index = lab.pod.index("eth0")
    lab.pod.netlink(lambda ip: ip.addr("add", index=index, address=address, prefixlen=32))


def test_a_name_turns_to_an_address_that_the_pod_got_late(deployment: Deployment) -> None:
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=0)
    # By default a later address is not listened on; with LISTEN=0.0.0.0 it is.
    proxy = start(deployment, EGRESS_DNS_PROXY_LISTEN="0.0.0.0")
    changed(proxy, OUTSIDE.v4)
    give_pod(deployment.lab, LATE)
    deployment.dns.zone[NAME] = Name(a=(LATE,), ttl_s=0)
    proxy.wait_for("destination.denied", destination=NAME, address=LATE, error=OWN_LISTENER)
    proxy.wait_for("destination.stale", addresses=[OUTSIDE.v4])


def test_a_remote_address_that_becomes_the_pods_own_makes_no_loop(
    deployment: Deployment,
) -> None:
    deployment.dns.zone[NAME] = Name(a=(LATE,))
    proxy = deployment.start(
        EGRESS_DNS_PROXY_DESTINATION=f"{PORT} {NAME}\n{PORT + 1} {LATE}",
        EGRESS_DNS_PROXY_LISTEN="0.0.0.0",
    )
    proxy.wait_for("daemon.ready", listeners=2)
    give_pod(deployment.lab, LATE)
    for port, destination in ((PORT, NAME), (PORT + 1, f"{LATE}:{PORT + 1}")):
        proxy.wait_for(
            "destination.denied", destination=destination, address=LATE, error=OWN_LISTENER
        )
        proxy.wait_for("listener.closed", listener=port)
        with pytest.raises(ConnectionRefusedError):
            deployment.lab.client.connect(POD.v4, port)
    proxy.wait_for("destination.unresolved", destination=NAME)
    assert proxy.stop() == 0
    assert [each for each in proxy.records if each["event"] == "connection.closed"] == []


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (POD.v4, f"'{POD.v4}:{PORT}': {OWN_LISTENER} is never connected to; "),
        (OUTSIDE.v6, f"'{OUTSIDE.v6}': there is no IPv6 source address to reach it from; "),
    ],
    ids=["the pod's own", "without a source"],
)
def test_an_address_that_leads_nowhere_is_refused_at_start(
    deployment: Deployment, address: str, problem: str
) -> None:
    proxy = deployment.start(EGRESS_DNS_PROXY_DESTINATION=f"{PORT} {address}")
    assert proxy.wait() == 1
    assert proxy.stderr.startswith(f"EGRESS_DNS_PROXY_DESTINATION line 1: {problem}")


def test_sessions_to_a_withdrawn_address_end_if_that_is_wanted(deployment: Deployment) -> None:
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=0)
    proxy = start(deployment, EGRESS_DNS_PROXY_WITHDRAWN_TIMEOUT="500ms")
    proxy.wait_for("listener.opened", listener=PORT)
    with (
        deployment.lab.outside.listen(OUTSIDE.v4, PORT),
        deployment.lab.client.connect(POD.v4, PORT, timeout_s=20) as client,
    ):
        deployment.dns.zone[NAME] = Name(a=(OUTSIDE_SECOND.v4,))
        closed = proxy.wait_for("connection.closed", listener=PORT, timeout_s=20)
        assert (closed["reason"], closed["address"]) == ("withdrawn", f"{OUTSIDE.v4}:{PORT}")
        if deployment.by_kernel:
            # It resets who sends, and nobody before.
            client.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_denied_addresses_are_never_reached(deployment: Deployment) -> None:
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4, OUTSIDE_SECOND.v4))
    proxy = start(deployment, EGRESS_DNS_PROXY_DENY=f"{OUTSIDE.v4}/32")
    reason = f"an address of the denied network {OUTSIDE.v4}/32"
    proxy.wait_for("destination.denied", address=OUTSIDE.v4, error=reason)
    changed(proxy, OUTSIDE_SECOND.v4)
