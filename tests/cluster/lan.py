"""The networks of a cluster's nodes, in namespaces: pods and clients on one, a LAN on the other.

::

    client ─── cluster ─── pod ─── macvlan net1 ─── node ─── switch ─── gateway ─── outside

`cluster` has the control plane and kube-proxy, and routes between clients and pods. The switch is a
bridge with an Ethernet address of its own: it must not change when a port leaves.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tests.support.network import Host, Namespace

API = Host.of("192.0.2.1/24", "2001:db8:0:2::1/64")
CLUSTER_TO_CLIENTS = Host.of("198.51.100.129/26", "2001:db8:0:1::1/64")
CLIENT = Host.of("198.51.100.130/26", "2001:db8:0:1::10/64")
GATEWAY = Host.of("203.0.113.1/25", "2001:db8:0:3::1/64")
RESERVED = Host.of("203.0.113.99/25", "2001:db8:0:3::99/64")
GATEWAY_TO_OUTSIDE = Host.of("203.0.113.129/25", "2001:db8:0:4::1/64")
OUTSIDE = Host.of("203.0.113.130/25", "2001:db8:0:4::130/64")
DEFAULT = Host.of("0.0.0.0/0", "::/0")
INTERFACE = "net1"


class Lan(ExitStack):
    """All but the nodes and pods, which come and go; `cluster` is there already."""

    def __init__(self, cluster: Namespace) -> None:
        super().__init__()
        self.cluster = cluster
        with ExitStack() as undo:
            undo.push(self)
            self.client, self.switch, self.gateway, self.outside = (
                self.namespace(name) for name in ("client", "switch", "gateway", "outside")
            )
            self.cluster.sysctl("ipv4/ip_forward", 1)
            self.client.join("eth0", self.cluster, "clients0")
            self.callback(_delete, self.cluster, "clients0")
            self.cluster.configure("clients0", CLUSTER_TO_CLIENTS)
            self.client.configure("eth0", CLIENT)
            self.client.route(DEFAULT, CLUSTER_TO_CLIENTS)
            make_bridge(self.switch, "br0", "02:00:00:00:00:fe")
            plug(self.switch, "gateway", self.gateway, "lan0")
            self.gateway.sysctl("ipv4/ip_forward", 1)
            self.gateway.join("outside0", self.outside, "eth0")
            self.gateway.configure("lan0", GATEWAY)
            self.gateway.configure("outside0", GATEWAY_TO_OUTSIDE)
            self.outside.configure("eth0", OUTSIDE)
            self.outside.route(GATEWAY, GATEWAY_TO_OUTSIDE)
            undo.pop_all()

    def namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self.callback(made.close)
        for which in ("all", "default"):
            made.sysctl(f"ipv4/conf/{which}/rp_filter", 1)
        return made

    def node(self, name: str) -> Namespace:
        """A node: no more than its port of the switch."""
        made = self.namespace(name)
        plug(self.switch, name, made, "lan0")
        made.configure("lan0")
        return made

    def pod(self, number: int, address: Host, node: Namespace) -> Namespace:
        """A pod's network: ``eth0`` in the cluster, and a macvlan on its node's LAN, bare."""
        made = Namespace(f"pod-{number}")
        plug(self.cluster, f"pod{number}", made, "eth0")
        made.configure("eth0", address)
        made.route(DEFAULT, API)
        macvlan: dict[str, Any] = {
            "ifname": INTERFACE,
            "kind": "macvlan",
            "macvlan_mode": "bridge",
            "link": node.index("lan0"),
            "net_ns_fd": made.descriptor,
        }
        node.netlink(lambda ip: ip.link("add", **macvlan))
        return made


def make_bridge(namespace: Namespace, name: str, mac: str, *hosts: Host) -> None:
    namespace.netlink(lambda ip: ip.link("add", ifname=name, kind="bridge", address=mac))
    namespace.configure(name, *hosts)


def plug(switch: Namespace, port: str, other: Namespace, interface: str) -> None:
    """Lay a cable from a new port of the bridge of `switch` to a new interface of `other`."""
    switch.join(port, other, interface)
    index, bridge = switch.index(port), switch.index("br0")
    switch.netlink(lambda ip: ip.link("set", index=index, master=bridge, state="up"))


def _delete(namespace: Namespace, interface: str) -> None:
    index = namespace.index(interface)
    namespace.netlink(lambda ip: ip.link("del", index=index))
