"""How the tests of init start it, and how they look at what it has done."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from egress_proxy.init.netlink import Netlink
from egress_proxy.init.state import MAIN_TABLE
from egress_proxy.nft.command import list_table
from tests.support.lab import EGRESS_PROXY, GATEWAY, OUTSIDE, POD, RESERVED
from tests.support.log_schema import violations
from tests.support.namespaces import Container

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from egress_proxy.init.state import State
    from tests.support.lab import Lab
    from tests.support.network import Namespace

Record = dict[str, Any]

_COMMON = {"EGRESS_ROUTER_MODE": "dns-proxy", "EGRESS_DNS_PROXY_LOG_FORMAT": "json"}
V4 = {
    **_COMMON,
    "EGRESS_SOURCE": str(RESERVED.interface4),
    "EGRESS_GATEWAY": GATEWAY.v4,
}
V6 = {
    **_COMMON,
    "EGRESS_SOURCE": str(RESERVED.interface6),
    "EGRESS_GATEWAY": GATEWAY.v6,
}
DUAL = {name: f"{V4[name]},{V6[name]}" for name in ("EGRESS_SOURCE", "EGRESS_GATEWAY")} | _COMMON


# linux/socket.h and linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
# linux/rtnetlink.h, RTNLGRP_*: links, and for both families addresses, routes, rules and sysctls.
_CHANGES = (1, 5, 7, 8, 9, 11, 19, 24, 25)

# All that init may need.
NEEDED = ("NET_ADMIN", "NET_RAW")


@dataclass(frozen=True, slots=True)
class Result:
    """How a run of init ended, and what it said; `stderr` should be empty, as the log is JSON."""

    status: int
    records: tuple[Record, ...]
    stderr: str

    @property
    def failure(self) -> str:
        """The problems of a failed run, one per line."""
        assert self.stderr == "", self
        [record] = [record for record in self.records if record["event"] == "init.failed"]
        return "".join(f"{problem}\n" for problem in record["problems"])

    def expect_done(self) -> Record:
        """The record of its success."""
        assert (self.status, self.stderr) == (0, ""), self
        assert self.records[-1]["event"] == "init.done"
        return self.records[-1]

    @property
    def warnings(self) -> list[Record]:
        return [record for record in self.records if record["event"] == "init.warning"]


def init(
    lab: Lab,
    env: dict[str, str],
    *,
    resolv_conf: Path | None = None,
    capabilities: tuple[str, ...] = NEEDED,
    read_only: bool = False,
) -> Result:
    """Run the installed command in the pod, with no more than it asks for."""
    container = Container(
        resolv_conf="/dev/null" if resolv_conf is None else str(resolv_conf),
        capabilities=capabilities,
        read_only=read_only,
    )
    return run_in_pod(lab, EGRESS_PROXY, "init", env=env, container=container)


def run_in_pod(lab: Lab, *command: str, env: dict[str, str], container: Container) -> Result:
    """Run a command whose output is that of init."""
    done = lab.pod.run(*command, env=env, container=container)
    records = tuple(map(json.loads, done.stdout.splitlines()))
    assert violations(records) == []
    return Result(done.returncode, records, done.stderr)


def observe(namespace: Namespace) -> State:
    def look() -> State:
        with Netlink() as netlink:
            return netlink.observe()

    return namespace.call(look)


def snapshot(namespace: Namespace) -> tuple[object, ...]:
    """All that init could change, and nothing that changes by itself.

    The kernel tells an interface's link-local address as tentative for a second or two.
    """
    state = observe(namespace)
    return (
        {(link.name, link.up, link.ipv4, link.ipv6) for link in state.links},
        {str(assigned) for assigned in state.addresses if not assigned.address.is_link_local},
        {str(route) for route in state.routes if not route.destination.is_link_local},
        {str(rule) for rule in state.rules},
        namespace.call(list_table),
    )


def default_routes(namespace: Namespace, version: int) -> list[str]:
    return [str(route) for route in observe(namespace).table(MAIN_TABLE, version) if route.default]


def routes(namespace: Namespace) -> set[str]:
    return {str(route) for route in observe(namespace).routes}


def seen_outside(lab: Lab, outside: str) -> str:
    """The address that a server outside, on `outside`, sees the pod at."""
    with (
        lab.outside.listen(outside, 80) as listener,
        lab.pod.connect(outside, 80),
        listener.accept()[0] as accepted,
    ):
        return str(accepted.getpeername()[0])


def answered(lab: Lab, client: Namespace, pod: str) -> str:
    """The address that a server in the pod, on `pod`, sees `client` at; its answer gets there."""
    with (
        lab.pod.listen(pod, 80) as listener,
        client.connect(pod, 80) as connected,
        listener.accept()[0] as accepted,
    ):
        accepted.sendall(b"hello")
        assert connected.recv(5) == b"hello"
        return str(accepted.getpeername()[0])


def assert_works(lab: Lab, env: dict[str, str], *, read_only: bool = False) -> None:
    """The outside sees the reserved address, every client gets replies, and init has finished."""
    version6 = ":" in env["EGRESS_SOURCE"]
    for outside, reserved in ((OUTSIDE.v4, RESERVED.v4), (OUTSIDE.v6, RESERVED.v6)):
        if ":" in outside and not version6:
            continue
        assert seen_outside(lab, outside) == reserved
    for pod in (POD.v4, POD.v6) if version6 else (POD.v4,):
        for client in (lab.client, lab.node):
            assert answered(lab, client, pod)
    assert init(lab, env, read_only=read_only).expect_done()["steps"] == 0


def settle(lab: Lab) -> None:
    """Wait until the kernel is done with the link-local addresses that came with the link."""

    def settled(state: State) -> bool | None:
        return None if any(assigned.tentative for assigned in state.addresses) else True

    def wait() -> bool | None:
        with Netlink() as netlink:
            return netlink.wait(settled, 10)

    assert lab.pod.call(wait)


@contextmanager
def monitor(namespace: Namespace) -> Iterator[socket.socket]:
    """A socket that hears of every change, as ``ip monitor`` does."""
    with namespace.open_socket(socket.AF_NETLINK, socket.SOCK_RAW) as opened:
        # The kernel sends to none that has no address.
        opened.bind((0, 0))
        for group in _CHANGES:
            opened.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        yield opened


def drain(opened: socket.socket) -> int:
    """How many messages came in so far."""
    opened.setblocking(False)
    for number in count():
        try:
            opened.recv(1 << 16)
        except BlockingIOError:
            return number
    raise AssertionError
