"""A LAN with two or more nodes, each with a pod on it, and the API server that they share.

::

    client ─ cluster ─┬─ pod-a ─ macvlan0 ─ node-a ─┬─ switch ─── gateway ─── outside
                      └─ pod-b ─ macvlan0 ─ node-b ─┘    └─── spy

The switch is a bridge with an Ethernet address of its own: it must not change when a port leaves.
The cluster has the API server, and the Service that the client asks. All addresses are reserved for
documentation.
"""

from __future__ import annotations

import struct
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egress_proxy.config.sources import Source
from egress_proxy.pod.rtnetlink import attribute, request
from tests.support.api_process import ApiProcess
from tests.support.lab import EGRESS_PROXY
from tests.support.namespaces import Container
from tests.support.network import Host, Namespace
from tests.support.service import Service
from tests.support.spy import Spy, addresses_of_nobody
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.processes import Process

API = Host.of("192.0.2.1/24", "2001:db8:0:2::1/64")
PODS = {
    name: Host.of(f"192.0.2.{number}/24", f"2001:db8:0:2::{number}/64")
    for number, name in enumerate("abc", 11)
}
GATEWAY = Host.of("203.0.113.1/25", "2001:db8:0:3::1/64")
RESERVED = Host.of("203.0.113.99/25", "2001:db8:0:3::99/64")
CLIENT = Host.of("198.51.100.10/25", "2001:db8:0:1::10/64")
CLUSTER_TO_CLIENT = Host.of("198.51.100.1/25", "2001:db8:0:1::1/64")
# The Service's, behind the cluster for the client.
SERVICE = "198.51.100.200"
GATEWAY_TO_OUTSIDE = Host.of("203.0.113.129/25", "2001:db8:0:4::1/64")
OUTSIDE = Host.of("203.0.113.130/25", "2001:db8:0:4::130/64")
DEFAULT = Host.of("0.0.0.0/0", "::/0")
# Where the pods listen.
PORT = 80
NAMESPACE = "egress"
LEASE = "egress-router"
FAMILIES = ("v4",), ("v6",), ("v4", "v6")

HOLDER = Container(capabilities=("NET_ADMIN", "NET_RAW"))
# linux/rtnetlink.h, linux/if_link.h and linux/if_bridge.h
_RTM_SETLINK, _AF_BRIDGE, _PROTINFO, _NESTED, _BRPORT_STATE = 19, 7, 12, 0x8000, 1
_DISABLED, _FORWARDING = 0, 3
_SWITCH_MAC = "02:00:00:00:00:fe"


def macs(number: int) -> str:
    return f"02:00:00:00:0a:{number:02x}"


@dataclass(slots=True)
class Pod:
    """A pod and its node: `mac` is that of its interface on the LAN."""

    name: str
    mac: str
    node: Namespace
    namespace: Namespace
    hold: Process | None = None
    proxy: Process | None = None

    @property
    def running(self) -> Process:
        assert self.hold is not None
        return self.hold


class TwoNodes(ExitStack):
    """The topology, the API server, its objects of the pods; `families` are the source's."""

    def __init__(
        self, names: str = "ab", families: tuple[str, ...] = ("v4",), command: str = EGRESS_PROXY
    ) -> None:
        super().__init__()
        self.families = families
        self.command = command
        # Of `hold` in every pod, a replaced one included.
        self.hold_variables: dict[str, str] = {}
        with ExitStack() as undo:
            undo.push(self)
            self.switch, self.gateway, self.outside, self.spying, self.cluster, self.client = (
                self._namespace(name)
                for name in ("switch", "gateway", "outside", "spy", "cluster", "client")
            )
            self._bridge(self.switch, "br0", _SWITCH_MAC)
            self._bridge(self.cluster, "br0", "02:00:00:00:00:fd")
            self.cluster.configure("br0", API)
            self._plug(self.switch, "gateway", self.gateway, "lan0")
            self._plug(self.switch, "spy", self.spying, "lan0")
            self.gateway.join("outside0", self.outside, "eth0")
            self.gateway.sysctl("ipv4/ip_forward", 1)
            self.gateway.sysctl("ipv6/conf/all/forwarding", 1)
            self.gateway.configure("lan0", GATEWAY)
            self.gateway.configure("outside0", GATEWAY_TO_OUTSIDE)
            self.outside.configure("eth0", OUTSIDE)
            self.outside.route(GATEWAY, GATEWAY_TO_OUTSIDE)
            self.spying.configure("lan0")
            self.cluster.join("clients0", self.client, "eth0")
            self.cluster.sysctl("ipv4/ip_forward", 1)
            self.cluster.sysctl("ipv6/conf/all/forwarding", 1)
            self.cluster.configure("clients0", CLUSTER_TO_CLIENT)
            self.client.configure("eth0", CLIENT)
            self.client.route(DEFAULT, CLUSTER_TO_CLIENT)
            self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
            self.api = self.enter_context(
                ApiProcess(self.folder, address=API.v4, port=6443, namespace=self.cluster)
            )
            self.pods = {name: self._pod(name) for name in names}
            undo.pop_all()

    @property
    def sources(self) -> list[Source]:
        """The reserved addresses, in the families that were asked for."""
        every = (
            Source(RESERVED.interface4.ip, 25, ip_address(GATEWAY.v4)),
            Source(RESERVED.interface6.ip, 64, ip_address(GATEWAY.v6)),
        )
        return [source for source in every if f"v{source.version}" in self.families]

    def environment(self, name: str) -> dict[str, str]:
        """Of every container of the pod."""
        return {
            **self.api.environment,
            "EGRESS_HA": "lease",
            "EGRESS_SOURCE": ",".join(map(str, self.sources)),
            "EGRESS_GATEWAY": ",".join(str(source.gateway) for source in self.sources),
            "EGRESS_DNS_PROXY_LOG_FORMAT": "json",
            "POD_NAME": name,
            "POD_NAMESPACE": NAMESPACE,
            "POD_IP": PODS[name].v4,
        }

    def start(self, name: str, **variables: str) -> Process:
        """Run `init` in the pod to its end, and start `hold`."""
        namespace, env = self.pods[name].namespace, self.environment(name)
        done = namespace.run(self.command, "init", env=env, container=HOLDER)
        assert (done.returncode, done.stderr) == (0, ""), done
        return self.start_hold(name, **variables)

    def start_hold(self, name: str, **variables: str) -> Process:
        """Start `hold` alone, as the kubelet restarts a container."""
        pod = self.pods[name]
        container = Container(capabilities=HOLDER.capabilities, service_account=str(self.folder))
        env = self.environment(name) | self.hold_variables | variables
        pod.hold = self.enter_context(
            pod.namespace.start(self.command, "hold", env=env, container=container)
        )
        return pod.hold

    def run(self, name: str, **variables: str) -> Process:
        """Start `egress-proxy run` in the pod, and wait until it serves: port 80 of the outside."""
        pod = self.pods[name]
        outside = OUTSIDE.v4 if self.families[0] == "v4" else OUTSIDE.v6
        pod.namespace.sysctl("ipv4/ip_unprivileged_port_start", 0)
        environment = self.environment(name) | {
            "EGRESS_DNS_PROXY_DESTINATION": f"{PORT} {outside} 80",
            "EGRESS_DNS_PROXY_DEBUG": "1",
        }
        pod.proxy = self.enter_context(
            pod.namespace.start(
                self.command,
                "run",
                env=environment | variables,
                container=Container(uid=10001, read_only=True),
            )
        )
        pod.proxy.wait_for("daemon.ready", listeners=1)
        return pod.proxy

    def roll(self, name: str) -> None:
        """Delete the pod as the kubelet does it, all containers at once, and start another one."""
        pod = self.pods[name]
        self.api.delete_pod(NAMESPACE, name)
        ending = [process for process in (pod.hold, pod.proxy) if process is not None]
        for process in ending:
            process.terminate()
        for process in ending:
            assert process.wait(timeout_s=30) == 0
        self.api.delete_pod(NAMESPACE, name, grace_s=0)
        self._create(name)
        self.start(name).wait_for("hold.started")
        if pod.proxy is not None:
            self.run(name, EGRESS_DNS_PROXY_DEBUG="0")

    def service(self) -> Service:
        """The Service that leads to the active pod, at `SERVICE` and `PORT`."""
        return Service(self.cluster, self.api, pods=NAMESPACE, address=SERVICE, port=PORT)

    def spy(self, family: str = "v4") -> Spy:
        """A host that asks the LAN for the reserved address all the time."""
        source = next(s for s in self.sources if s.version == int(family[1]))
        first = ip_address("203.0.113.10" if family == "v4" else "2001:db8:0:3::1000")
        return Spy(self.spying, "lan0", source.address, addresses_of_nobody(first))

    def active(self, spy: Spy) -> tuple[str, str]:
        """The pod that answers on the LAN, once there is one, and another one."""
        names = {pod.mac: name for name, pod in self.pods.items()}
        wait_until(lambda: spy.owner() in names)
        active = names[spy.owner() or ""]
        return active, next(name for name in self.pods if name != active)

    def kill_node(self, name: str) -> None:
        """Power off: the pod's processes, its cables, its kernel."""
        pod = self.pods[name]
        self.set_port(name, up=False)
        self.cluster.netlink(lambda ip: ip.link("set", ifname=f"pod-{name}", state="down"))
        pod.running.kill()
        if pod.proxy is not None:
            pod.proxy.kill()

    def revive(self, name: str) -> None:
        """Power on: the cables, a new pod, its containers."""
        self.cluster.netlink(lambda ip: ip.link("set", ifname=f"pod-{name}", state="up"))
        self.set_port(name, up=True)
        self.api.delete_pod(NAMESPACE, name, grace_s=0)
        self._create(name)
        self.start(name).wait_for("hold.started")
        if self.pods[name].proxy is not None:
            self.run(name, EGRESS_DNS_PROXY_DEBUG="0")

    def wait_for_gateway(self, name: str) -> None:
        """Wait until the pod says that it hears the gateway."""
        wait_until(lambda: self.annotation(name) == "heard")

    def annotation(self, name: str) -> str:
        """What the pod says about the gateway."""
        found = self.api.pod(NAMESPACE, name)["metadata"].get("annotations", {})
        return str(found.get("egress-proxy/gateway", ""))

    def set_port(self, name: str, *, up: bool, carrier: bool = False) -> None:
        """The node's port of the switch; with `carrier` the node notices.

        Without it the port still has a link, and forwards nothing.
        """
        state = "up" if up else "down"
        if carrier:
            self.switch.netlink(lambda ip: ip.link("set", ifname=f"node-{name}", state=state))
        else:
            self._forward(self.switch, f"node-{name}", on=up)

    def _forward(self, namespace: Namespace, port: str, *, on: bool) -> None:
        index = namespace.index(port)
        # struct ifinfomsg of the family AF_BRIDGE; pyroute2 takes "state" for that of the link.
        link = struct.pack("=BxHiII", _AF_BRIDGE, 0, index, 0, 0)
        state = attribute(_BRPORT_STATE, bytes([_FORWARDING if on else _DISABLED]))
        body = link + attribute(_PROTINFO | _NESTED, state)
        namespace.call(lambda: request(_RTM_SETLINK, body))

    def _namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self.callback(made.close)
        for which in ("all", "default"):
            made.sysctl(f"ipv4/conf/{which}/rp_filter", 1)
        made.sysctl("ipv6/conf/default/accept_dad", 0)
        return made

    def _bridge(self, namespace: Namespace, name: str, mac: str) -> None:
        namespace.netlink(lambda ip: ip.link("add", ifname=name, kind="bridge", address=mac))
        index = namespace.index(name)
        namespace.netlink(lambda ip: ip.link("set", index=index, state="up"))

    def _plug(self, switch: Namespace, port: str, other: Namespace, interface: str) -> None:
        """Lay a cable from a new port of the bridge of `switch` to a new interface of `other`."""
        switch.join(port, other, interface)
        index, bridge = switch.index(port), switch.index("br0")
        switch.netlink(lambda ip: ip.link("set", index=index, master=bridge, state="up"))

    def _pod(self, name: str) -> Pod:
        node, inside = self._namespace(f"node-{name}"), self._namespace(f"pod-{name}")
        mac = macs(ord(name))
        self._plug(self.switch, f"node-{name}", node, "lan0")
        self._plug(self.cluster, f"pod-{name}", inside, "eth0")
        node.configure("lan0")
        inside.configure("eth0", PODS[name])
        inside.route(DEFAULT, API)
        request: dict[str, Any] = {
            "ifname": "macvlan0",
            "kind": "macvlan",
            "macvlan_mode": "bridge",
            "address": mac,
            "link": node.index("lan0"),
            "net_ns_fd": inside.descriptor,
        }
        node.netlink(lambda ip: ip.link("add", **request))
        inside.configure("macvlan0")
        self._create(name)
        return Pod(name, mac, node, inside)

    def _create(self, name: str) -> None:
        labels = {"egress-proxy/lease": LEASE, "egress-proxy/role": "standby"}
        self.api.create_pod(NAMESPACE, name, labels=labels, ip=PODS[name].v4)
