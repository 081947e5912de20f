"""A cluster and the world around it in network namespaces, with a pod that has a real macvlan.

::

    client ──── node ──── pod
                 │ lan0     │ macvlan0, a child of the node's lan0
                 └──── gateway ──── outside

The node routes between its clients, the cluster's services and its pods. The gateway knows the LAN
and the outside and has no way back to the cluster, as a firewall that lets one reserved address
through: only a connection from an address of the LAN gets an answer from outside.

Everything is Python, netlink and system calls; nothing has a name outside this process, and all of
it vanishes with the process. All addresses are reserved for documentation (RFC 5737, RFC 3849).
"""

from __future__ import annotations

import errno
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyroute2 import NetlinkError

from tests.support.namespaces import LabUnavailableError
from tests.support.network import IPV6, Host, Namespace

# The command as it is installed beside the interpreter of the tests.
EGRESS_PROXY = str(Path(sysconfig.get_path("scripts")) / "egress-proxy")

CLIENT = Host.of("198.51.100.10/25", "2001:db8:0:1::10/64")
NODE_TO_CLIENTS = Host.of("198.51.100.1/25", "2001:db8:0:1::1/64")
# The cluster's DNS service: no subnet that a pod is on, reachable only through the node.
CLUSTER_DNS = Host.of("198.51.100.253/32", "2001:db8:0:f::53/128")
NODE_TO_PODS = Host.of("192.0.2.1/24", "2001:db8:0:2::1/64")
POD = Host.of("192.0.2.10/24", "2001:db8:0:2::10/64")
NODE_TO_LAN = Host.of("203.0.113.2/25", "2001:db8:0:3::2/64")
GATEWAY = Host.of("203.0.113.1/25", "2001:db8:0:3::1/64")
# On the LAN, and no other host has it: what EGRESS_SOURCE reserves.
RESERVED = Host.of("203.0.113.99/25", "2001:db8:0:3::99/64")
GATEWAY_TO_OUTSIDE = Host.of("203.0.113.129/25", "2001:db8:0:4::1/64")
OUTSIDE = Host.of("203.0.113.130/25", "2001:db8:0:4::130/64")
OUTSIDE_SECOND = Host.of("203.0.113.131/25", "2001:db8:0:4::131/64")
# Everywhere: the destination of a default route.
DEFAULT = Host.of("0.0.0.0/0", "::/0")


class Lab(ExitStack):
    """The topology of this module, ready for traffic; ``macvlan0`` is down, without address.

    `rp_filter` is the reverse-path filter of every namespace: 1 is strict (RFC 3704), which
    distributions differ in and which drops what returns over another interface. Raises
    `LabUnavailableError` where the kernel lacks a kind of interface.
    """

    def __init__(self, *, rp_filter: int = 1) -> None:
        super().__init__()
        with ExitStack() as undo:
            undo.push(self)
            self.client, self.node, self.pod, self.gateway, self.outside = (
                self._namespace(name, rp_filter)
                for name in ("client", "node", "pod", "gateway", "outside")
            )
            try:
                self._build_cluster()
                self._build_lan()
                self._add_macvlan()
            except NetlinkError as error:
                if error.code != errno.EOPNOTSUPP:
                    raise
                reason = "this kernel has no veth or no macvlan; load the modules of these names"
                raise LabUnavailableError(reason) from error
            undo.pop_all()

    def _namespace(self, name: str, rp_filter: int) -> Namespace:
        made = Namespace(name)
        self.callback(made.close)
        for which in ("all", "default"):
            made.sysctl(f"ipv4/conf/{which}/rp_filter", rp_filter)
        _set_duplicate_detection(made, on=False)
        return made

    def _build_cluster(self) -> None:
        _forward(self.node)
        self.client.join("eth0", self.node, "clients0")
        self.pod.join("eth0", self.node, "pods0")
        self.node.configure("lo", CLUSTER_DNS)
        self.node.configure("clients0", NODE_TO_CLIENTS)
        self.node.configure("pods0", NODE_TO_PODS)
        self.client.configure("eth0", CLIENT)
        self.client.route(DEFAULT, NODE_TO_CLIENTS)
        self.pod.configure("eth0", POD)
        self.pod.route(DEFAULT, NODE_TO_PODS)

    def _build_lan(self) -> None:
        _forward(self.gateway)
        self.node.join("lan0", self.gateway, "lan0")
        self.gateway.join("outside0", self.outside, "eth0")
        self.node.configure("lan0", NODE_TO_LAN)
        self.node.route(DEFAULT, GATEWAY)
        self.gateway.configure("lan0", GATEWAY)
        self.gateway.configure("outside0", GATEWAY_TO_OUTSIDE)
        self.outside.configure("eth0", OUTSIDE, OUTSIDE_SECOND)
        self.outside.route(GATEWAY, GATEWAY_TO_OUTSIDE)

    def _add_macvlan(self) -> None:
        _set_duplicate_detection(self.pod, on=True)
        request: dict[str, Any] = {
            "ifname": "macvlan0",
            "kind": "macvlan",
            "macvlan_mode": "bridge",
            "link": self.node.index("lan0"),
            "net_ns_fd": self.pod.descriptor,
        }
        self.node.netlink(lambda ip: ip.link("add", **request))


def _forward(router: Namespace) -> None:
    router.sysctl("ipv4/ip_forward", 1)
    if IPV6:
        router.sysctl("ipv6/conf/all/forwarding", 1)


def _set_duplicate_detection(namespace: Namespace, *, on: bool) -> None:
    """Whether interfaces made from now on wait a second or two before IPv6 works on them."""
    if IPV6:
        namespace.sysctl("ipv6/conf/default/accept_dad", int(on))
