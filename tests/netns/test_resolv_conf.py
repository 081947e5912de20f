"""A resolv.conf that changes under the installed command: what is asked then, and how soon."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import RESOLV_CONF, Deployment, PodSecurity
from tests.support.dns import DnsServer, Name
from tests.support.lab import CLUSTER_DNS, NODE_TO_PODS, OUTSIDE, OUTSIDE_SECOND, POD, RESERVED
from tests.support.namespaces import Container
from tests.support.network import IPV6, Host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab
    from tests.support.processes import Process

PORT = 9000
NAME = "moved.example.com"
# Reachable only through the node, like CLUSTER_DNS, but not in resolv.conf when init runs.
UNKNOWN_TO_INIT = Host.of("198.51.100.252/32", "2001:db8:0:f::54/128")
FAMILIES = pytest.mark.parametrize(
    "version", ["v4", pytest.param("v6", marks=pytest.mark.skipif(not IPV6, reason="no IPv6"))]
)
# The first of the search list in RESOLV_CONF.
SEARCHED = f"{NAME}.egress.svc.cluster.local"
# A change is to be seen after so long.
NOTICED_S = 5.0
# For names that nothing but a change of resolv.conf makes be asked for again.
LONG_S = 3600


def start(deployment: Deployment, *names: str) -> Process:
    lines = [f"{port} {name}" for port, name in enumerate(names or (NAME,), start=PORT)]
    return deployment.start(EGRESS_DNS_PROXY_DESTINATION="\n".join(lines))


def changed(proxy: Process, *addresses: str) -> None:
    proxy.wait_for("destination.changed", addresses=list(addresses))


@pytest.fixture
def second(lab: Lab) -> Iterator[DnsServer]:
    """Another name server of the cluster."""
    address = NODE_TO_PODS.v4, 53
    with DnsServer(lab.node.bind(*address), lab.node.listen(*address)) as serving:
        yield serving


@pytest.fixture(params=["in place", "another file"])
def rewritten(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A pod whose resolv.conf changes in both ways that files do."""
    with Deployment(lab, own_etc=request.param == "another file") as deployed:
        deployed.take_source()
        yield deployed


def test_resolv_conf_names_another_server(rewritten: Deployment, second: DnsServer) -> None:
    rewritten.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=LONG_S)
    second.zone[NAME] = Name(a=(OUTSIDE_SECOND.v4,), ttl_s=LONG_S)
    proxy = start(rewritten)
    changed(proxy, OUTSIDE.v4)
    written_at = monotonic()
    rewritten.change_resolv_conf(RESOLV_CONF.replace(CLUSTER_DNS.v4, NODE_TO_PODS.v4))
    changed(proxy, OUTSIDE_SECOND.v4)
    assert monotonic() - written_at < NOTICED_S


@FAMILIES
def test_a_server_that_init_has_not_known_is_asked_over_the_pod_network(
    rewritten: Deployment, lab: Lab, version: str
) -> None:
    """It is on no network of the pod, and the default route leads to the LAN."""
    lab.node.configure("lo", UNKNOWN_TO_INIT)
    address = getattr(UNKNOWN_TO_INIT, version)
    with DnsServer(lab.node.bind(address, 53), lab.node.listen(address, 53)) as unknown:
        rewritten.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=LONG_S)
        unknown.zone[NAME] = Name(a=(OUTSIDE_SECOND.v4,), ttl_s=LONG_S)
        proxy = start(rewritten)
        changed(proxy, OUTSIDE.v4)
        rewritten.change_resolv_conf(f"nameserver {address}\n")
        changed(proxy, OUTSIDE_SECOND.v4)
        assert {query.client for query in unknown.queries} == {getattr(POD, version)}


def test_servers_of_the_variable_are_asked_where_the_routes_lead(
    rewritten: Deployment, lab: Lab
) -> None:
    with DnsServer(lab.outside.bind(OUTSIDE.v4, 53), lab.outside.listen(OUTSIDE.v4, 53)) as remote:
        remote.zone[NAME] = Name(a=(OUTSIDE_SECOND.v4,))
        proxy = rewritten.start(
            EGRESS_DNS_PROXY_DESTINATION=f"{PORT} {NAME}",
            EGRESS_DNS_PROXY_NAMESERVERS=OUTSIDE.v4,
        )
        changed(proxy, OUTSIDE_SECOND.v4)
        assert {query.client for query in remote.queries} == {RESERVED.v4}
    assert not rewritten.dns.queries


def test_resolv_conf_becomes_a_fifo(lab: Lab) -> None:
    """Who opens it waits for ever; the event loop, the shutdown and another file do not."""
    with Deployment(lab, own_etc=True) as deployed:
        deployed.take_source()
        deployed.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=5)
        proxy = start(deployed)
        changed(proxy, OUTSIDE.v4)
        deployed.replace_resolv_conf_by_fifo()
        # Answers go on, from the servers of before.
        for _ in range(2):
            proxy.wait_for("destination.resolved")
        assert proxy.stop() == 0
        assert proxy.stderr == ""


def test_resolv_conf_loses_its_search_list(rewritten: Deployment, second: DnsServer) -> None:
    """The name exists below a domain of the search list alone, and is asked for by itself first."""
    rewritten.dns.zone[SEARCHED] = Name(a=(OUTSIDE.v4,), ttl_s=LONG_S)
    second.zone[SEARCHED] = Name(a=(OUTSIDE_SECOND.v4,), ttl_s=LONG_S)
    proxy = start(rewritten)
    changed(proxy, OUTSIDE.v4)
    assert [query.name for query in rewritten.dns.queries if query.kind == "A"] == [NAME, SEARCHED]
    rewritten.change_resolv_conf(f"nameserver {NODE_TO_PODS.v4}\n")
    proxy.wait_for("destination.stale", addresses=[OUTSIDE.v4])
    assert second.asked(NAME)
    assert not second.asked(SEARCHED)


def test_resolv_conf_has_a_shorter_timeout(rewritten: Deployment) -> None:
    """Left to itself, c-ares would ask three times, in 14 s."""
    rewritten.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=LONG_S)
    proxy = start(rewritten)
    proxy.wait_for("destination.resolved")
    rewritten.dns.hold(NAME)
    written_at = monotonic()
    rewritten.change_resolv_conf(
        RESOLV_CONF.replace("ndots:5", "ndots:2 timeout:1 attempts:1 rotate")
    )
    stale = proxy.wait_for("destination.stale", addresses=[OUTSIDE.v4])
    assert monotonic() - written_at < NOTICED_S
    assert stale["error"].startswith("Timeout while contacting DNS servers")
    # Whatever ndots it has, a name is asked for as it is before the search list.
    assert [query.name for query in rewritten.dns.queries] == [NAME, NAME]


def test_resolv_conf_has_the_option_rotate(rewritten: Deployment, second: DnsServer) -> None:
    # c-ares throws dice: with so many names, no server is left out in a million years.
    names = [f"{number}.example.com" for number in range(40)]
    for server in (rewritten.dns, second):
        server.zone.update(dict.fromkeys(names, Name(a=(OUTSIDE.v4,), ttl_s=LONG_S)))
    servers = f"nameserver {CLUSTER_DNS.v4}\nnameserver {NODE_TO_PODS.v4}\n"
    rewritten.change_resolv_conf(servers)
    proxy = start(rewritten, *names)
    for rotate in (False, True):
        for name in names:
            proxy.wait_for("destination.resolved", destination=name)
        assert bool(second.queries) is rotate
        rewritten.change_resolv_conf(f"{servers}options rotate\n")
    assert len(rewritten.dns.queries) + len(second.queries) == 2 * len(names)


def holds_inotify(proxy: Process) -> bool:
    links = [str(entry.readlink()) for entry in Path(f"/proc/{proxy.pid}/fd").iterdir()]
    return "anon_inode:inotify" in links


@pytest.mark.parametrize("inotify", [True, False])
def test_inotify_is_used_up(lab: Lab, second: DnsServer, *, inotify: bool) -> None:
    """By the pods of a node, which share what their user may have."""
    main = Container(uid=10001, read_only=True, inotify=inotify)
    with Deployment(lab, PodSecurity(main=main)) as deployment:
        deployment.take_source()
        deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=LONG_S)
        second.zone[NAME] = Name(a=(OUTSIDE_SECOND.v4,), ttl_s=LONG_S)
        proxy = start(deployment)
        changed(proxy, OUTSIDE.v4)
        # Else there is nothing to do without.
        assert holds_inotify(proxy) is inotify
        written_at = monotonic()
        deployment.change_resolv_conf(f"nameserver {NODE_TO_PODS.v4}\n")
        changed(proxy, OUTSIDE_SECOND.v4)
        assert monotonic() - written_at < NOTICED_S
        assert proxy.stop() == 0
        assert proxy.stderr == ""
