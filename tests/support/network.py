"""A network namespace of this process: interfaces, sockets and commands inside it."""

from __future__ import annotations

import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyroute2 import IPRoute

from tests.support.namespaces import CLONE_NEWNET, PRIVILEGED, Container, setns, unshare
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

IPV6 = Path("/proc/sys/net/ipv6").is_dir()

# What lets a run of coverage.py see the commands too; empty otherwise.
COVERAGE = {key: value for key, value in os.environ.items() if key.startswith("COVERAGE_")}

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


class Namespace:
    """A network namespace, held by one open descriptor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.descriptor = _in_thread(_make_network)
        self.netlink(lambda ip: ip.link("set", index=1, state="up"))

    def close(self) -> None:
        """Release it: the kernel removes it once no process and no socket is left in it."""
        os.close(self.descriptor)

    def enter(self) -> None:
        """Move the calling thread inside, and all that it starts from now on."""
        setns(self.descriptor, CLONE_NEWNET)

    def call(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread that is inside; sockets it makes stay inside for ever."""

        def inside() -> T:
            self.enter()
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

    def bind(self, address: str, port: int) -> socket.socket:
        """A UDP socket on `address` and `port`."""
        bound = self.open_socket(_family(address), socket.SOCK_DGRAM)
        bound.bind((address, port))
        return bound

    def listen(self, address: str, port: int) -> socket.socket:
        """A TCP socket that listens on `address` and `port`; port 0 is any free one."""
        return self.call(lambda: socket.create_server((address, port), family=_family(address)))

    def connect(self, address: str, port: int, *, timeout_s: float = 10) -> socket.socket:
        """A TCP connection from this namespace; `timeout_s` is also that of its later calls."""
        return self.call(lambda: socket.create_connection((address, port), timeout_s))

    def sysctl(self, key: str, value: object) -> None:
        """Set ``net.<key>``, such as ``ipv4/ip_forward``."""
        self.call(lambda: Path("/proc/sys/net", key).write_text(str(value)))

    def start(self, *argv: str, env: dict[str, str], container: Container = PRIVILEGED) -> Process:
        """Start a command inside with exactly the environment `env`."""
        launcher = container.launcher(self.descriptor, *argv)
        return Process(launcher, env=_observed(env, container), descriptors=(self.descriptor,))

    def run(
        self,
        *argv: str,
        env: dict[str, str],
        container: Container = PRIVILEGED,
        timeout_s: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; its output is text."""
        return subprocess.run(
            container.launcher(self.descriptor, *argv),
            env=_observed(env, container),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(self.descriptor,),
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def index(self, interface: str) -> int:
        """The kernel's number of `interface`."""
        return self.call(lambda: socket.if_nametoindex(interface))

    def join(self, interface: str, other: Namespace, other_interface: str) -> None:
        """Make a veth pair: two connected interfaces, both down."""
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
        """Add routes to the networks of `destination` by `gateway`."""

        def ask(ip: IPRoute) -> None:
            for target, hop in zip(destination.interfaces, gateway.interfaces, strict=True):
                ip.route("add", dst=str(target.network), gateway=str(hop.ip))

        self.netlink(ask)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _observed(env: dict[str, str], container: Container) -> dict[str, str]:
    """`env`, and what makes a command report its coverage if it can write a file."""
    return env if container.read_only else COVERAGE | env


def _make_network() -> int:
    unshare(CLONE_NEWNET)
    # /proc/self would be the main thread's.
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _in_thread(function: Callable[[], T]) -> T:
    """What `function` returns or raises, called in a thread that ends after it."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()
