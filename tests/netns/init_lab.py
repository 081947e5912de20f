"""How the tests of init start it, and how they look at what it has done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from egress_proxy.init.netlink import Netlink
from egress_proxy.init.state import MAIN_TABLE
from tests.support.lab import EGRESS_PROXY, GATEWAY, RESERVED
from tests.support.namespaces import Container

if TYPE_CHECKING:
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


# All that init may need.
NEEDED = ("NET_ADMIN", "NET_RAW")


@dataclass(frozen=True, slots=True)
class Result:
    """How a run of init ended, and what it said."""

    status: int
    records: tuple[Record, ...]
    stderr: str

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
        {(link.name, link.up, link.ipv6) for link in state.links},
        {str(held) for held in state.addresses if not held.address.is_link_local},
        {str(route) for route in state.routes if not route.destination.is_link_local},
        {str(rule) for rule in state.rules},
    )


def default_routes(namespace: Namespace, version: int) -> list[str]:
    return [str(route) for route in observe(namespace).table(MAIN_TABLE, version) if route.default]
