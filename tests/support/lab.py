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

import os
import socket
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pyroute2 import IPRoute  # type: ignore[import-untyped]

from tests.support.namespaces import CLONE_NEWNET, Placement, setns, unshare
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

T = TypeVar("T")

# The command as it is installed beside the interpreter of the tests.
EGRESS_PROXY = str(Path(sysconfig.get_path("scripts")) / "egress-proxy")

IPV6 = Path("/proc/sys/net/ipv6").is_dir()

# linux/if_addr.h: an address that needs no duplicate-address detection, so that it works at once.
_IFA_F_NODAD = 0x02


@dataclass(frozen=True, slots=True)
class Host:
    """An interface's two addresses, with the lengths of their prefixes."""

    interface4: IPv4Interface
    interface6: IPv6Interface

    @classmethod
    def of(cls, interface4: str, interface6: str) -> Host:
        return cls(IPv4Interface(interface4), IPv6Interface(interface6))

    @property
    def v4(self) -> str:
        return str(self.interface4.ip)

    @property
    def v6(self) -> str:
        return str(self.interface6.ip)

    @property
    def interfaces(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Both, or the first alone where the kernel has no IPv6."""
        return (self.interface4, self.interface6) if IPV6 else (self.interface4,)


CLIENT = Host.of("198.51.100.10/25", "2001:db8:0:1::10/64")
NODE_TO_CLIENTS = Host.of("198.51.100.1/25", "2001:db8:0:1::1/64")
# The cluster's DNS service: no subnet that a pod is on, reachable only through the node.
CLUSTER_DNS = Host.of("198.51.100.253/32", "2001:db8:0:f::53/128")
NODE_TO_PODS = Host.of("192.0.2.1/24", "2001:db8:0:2::1/64")
POD = Host.of("192.0.2.10/24", "2001:db8:0:2::10/64")
NODE_TO_LAN = Host.of("203.0.113.2/25", "2001:db8:0:3::2/64")
GATEWAY = Host.of("203.0.113.1/25", "2001:db8:0:3::1/64")
# On the LAN and nobody's: what EGRESS_SOURCE reserves.
RESERVED = Host.of("203.0.113.99/25", "2001:db8:0:3::99/64")
GATEWAY_TO_OUTSIDE = Host.of("203.0.113.129/25", "2001:db8:0:4::1/64")
OUTSIDE = Host.of("203.0.113.130/25", "2001:db8:0:4::130/64")
OUTSIDE_SECOND = Host.of("203.0.113.131/25", "2001:db8:0:4::131/64")
# Everywhere: the destination of a default route.
DEFAULT = Host.of("0.0.0.0/0", "::/0")


class Namespace:
    """A network namespace, held by one open descriptor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.descriptor = _in_thread(_make_network)
        self.netlink(lambda ip: ip.link("set", index=1, state="up"))

    def close(self) -> None:
        """Let go of it: the kernel removes it once no process and no socket is left in it."""
        os.close(self.descriptor)

    def call(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread that is inside; sockets it makes stay inside for ever."""

        def inside() -> T:
            setns(self.descriptor, CLONE_NEWNET)
            return function()

        return _in_thread(inside)

    def netlink(self, ask: Callable[[IPRoute], T]) -> T:
        """What `ask` returns, given an `IPRoute` of this namespace."""

        def inside() -> T:
            with IPRoute() as ip:
                return ask(ip)

        return self.call(inside)

    def open_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """A socket of this namespace, for use from any thread."""
        return self.call(lambda: socket.socket(family, kind))

    def listen(self, address: str, port: int) -> socket.socket:
        """A TCP socket that listens on `address` and `port`; port 0 is any free one."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.call(lambda: socket.create_server((address, port), family=family))

    def connect(self, address: str, port: int, *, timeout_s: float = 10) -> socket.socket:
        """A TCP connection from this namespace; `timeout_s` is also that of its later calls."""
        return self.call(lambda: socket.create_connection((address, port), timeout_s))

    def sysctl(self, key: str, value: object) -> None:
        """Set ``net.<key>``, such as ``ipv4/ip_forward``."""
        self.call(lambda: Path("/proc/sys/net", key).write_text(str(value)))

    def start(
        self,
        *argv: str,
        env: Mapping[str, str],
        resolv_conf: Path | None = None,
        capabilities: tuple[str, ...] | None = None,
        uid: int = 0,
    ) -> Process:
        """Start a command inside with exactly the environment `env`; see `Placement`."""
        placement = self._placement(resolv_conf, capabilities, uid)
        return Process(placement.launcher(*argv), env=env, descriptors=(self.descriptor,))

    def run(
        self,
        *argv: str,
        env: Mapping[str, str],
        resolv_conf: Path | None = None,
        capabilities: tuple[str, ...] | None = None,
        uid: int = 0,
        timeout_s: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end, like `start`; its output is text."""
        placement = self._placement(resolv_conf, capabilities, uid)
        return subprocess.run(
            placement.launcher(*argv),
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(self.descriptor,),
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def _placement(
        self, resolv_conf: Path | None, capabilities: tuple[str, ...] | None, uid: int
    ) -> Placement:
        return Placement(
            network=self.descriptor,
            resolv_conf=None if resolv_conf is None else str(resolv_conf),
            capabilities=capabilities,
            uid=uid,
        )

    def index(self, interface: str) -> int:
        """The kernel's number of `interface`."""
        return self.call(lambda: socket.if_nametoindex(interface))

    def join(self, interface: str, other: Namespace, other_interface: str) -> None:
        """Lay a cable (veth) between two new interfaces, both down."""
        peer = {"ifname": other_interface, "net_ns_fd": other.descriptor}
        self.netlink(lambda ip: ip.link("add", ifname=interface, kind="veth", peer=peer))

    def configure(self, interface: str, *hosts: Host) -> None:
        """Take `interface` up with the addresses of `hosts`."""
        index = self.index(interface)

        def ask(ip: IPRoute) -> None:
            ip.link("set", index=index, state="up")
            for address in (entry for host in hosts for entry in host.interfaces):
                ip.addr(
                    "add",
                    index=index,
                    address=str(address.ip),
                    prefixlen=address.network.prefixlen,
                    flags=_IFA_F_NODAD if address.version == 6 else 0,
                )

        self.netlink(ask)

    def route(self, destination: Host, gateway: Host) -> None:
        """Send what goes to the networks of `destination` over `gateway`."""

        def ask(ip: IPRoute) -> None:
            for target, hop in zip(destination.interfaces, gateway.interfaces, strict=True):
                ip.route("add", dst=str(target.network), gateway=str(hop.ip))

        self.netlink(ask)


class Lab:
    """The topology of this module, ready for traffic; the pod's ``macvlan0`` is down and bare.

    `rp_filter` is the reverse-path filter of every namespace: 1 is strict (RFC 3704), which
    distributions differ in and which drops what returns over another interface.
    """

    def __init__(self, *, rp_filter: int = 1) -> None:
        with ExitStack() as stack:

            def namespace(name: str) -> Namespace:
                made = Namespace(name)
                stack.callback(made.close)
                for which in ("all", "default"):
                    made.sysctl(f"ipv4/conf/{which}/rp_filter", rp_filter)
                _set_duplicate_detection(made, on=False)
                return made

            self.client = namespace("client")
            self.node = namespace("node")
            self.pod = namespace("pod")
            self.gateway = namespace("gateway")
            self.outside = namespace("outside")
            self._build_cluster()
            self._build_lan()
            self._add_macvlan()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stack.close()

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


def _make_network() -> int:
    unshare(CLONE_NEWNET)
    # /proc/self would be the main thread's.
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _in_thread(function: Callable[[], T]) -> T:
    """What `function` returns or raises, called in a thread that ends after it."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()
