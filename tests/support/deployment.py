"""The pod of the README in the laboratory, with the name server it asks and the hosts it leads to.

The three kinds of destination are an address, a name, and a name with another remote port. The
steps are the caller's to take, so that it can look in between: `init` or `take_source`, `start`,
`connect`.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from egress_proxy.init.host_facts import read_name_servers
from egress_proxy.init.netlink import Netlink
from egress_proxy.init.plan import make_plan
from egress_proxy.init.settings import read_settings
from tests.support.dns import DnsServer, Name
from tests.support.lab import (
    CLUSTER_DNS,
    EGRESS_PROXY,
    GATEWAY,
    OUTSIDE,
    OUTSIDE_SECOND,
    POD,
    RESERVED,
    Lab,
)
from tests.support.namespaces import PRIVILEGED, Container
from tests.support.session import Session

if TYPE_CHECKING:
    import socket
    import subprocess

    from egress_proxy.init.state import State
    from tests.support.processes import Process, Record

# As the kubelet writes it; with ndots:5 a name of three dots is first tried below each domain.
RESOLV_CONF = f"""\
search egress.svc.cluster.local svc.cluster.local cluster.local
nameserver {CLUSTER_DNS.v4}
options ndots:5
"""
INIT_ENV = {
    "EGRESS_SOURCE": str(RESERVED.interface4),
    "EGRESS_GATEWAY": GATEWAY.v4,
    "EGRESS_ROUTER_MODE": "dns-proxy",
}
RUN_ENV = {
    "EGRESS_DNS_PROXY_DESTINATION": f"""\
# comments and blank lines are ignored

80 {OUTSIDE.v4}
100 example.com
8443 web.example.com 443
""",
    "EGRESS_DNS_PROXY_DEBUG": "1",
}
# What the lines above lead to: listening port, then the outside's address and port.
ENDPOINTS = {
    80: (OUTSIDE.v4, 80),
    100: (OUTSIDE.v4, 100),
    8443: (OUTSIDE_SECOND.v4, 443),
}
ZONE = {
    "example.com": Name(a=(OUTSIDE.v4,)),
    "web.example.com": Name(a=(OUTSIDE_SECOND.v4,)),
}

# How long a step may take before the laboratory is broken.
TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class PodSecurity:
    """What the pod spec's security contexts give to each container; `sysctls` are the pod's.

    `env` is what the main container's environment has because of it.
    """

    init: Container = PRIVILEGED
    main: Container = PRIVILEGED
    sysctls: dict[str, int] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


AS_DOCUMENTED = PodSecurity()
LEAST_PRIVILEGE = PodSecurity(
    init=Container(capabilities=("NET_ADMIN", "NET_RAW")),
    main=Container(uid=10001, read_only=True),
    sysctls={"ipv4/ip_unprivileged_port_start": 0},
)
# The pod of deploy/overlays/kernel, on a node whose kubelet allows the sysctl for IPv6.
KERNEL = PodSecurity(
    init=LEAST_PRIVILEGE.init,
    main=Container(capabilities=("NET_ADMIN",), read_only=True),
    sysctls=LEAST_PRIVILEGE.sysctls | {"ipv6/conf/all/forwarding": 1},
    env={"EGRESS_DNS_PROXY_DATAPLANE": "kernel"},
)
BOTH_DATA_PLANES = {"splice": LEAST_PRIVILEGE, "kernel": KERNEL}


class Deployment(ExitStack):
    """The pod in `lab`, its name server on the node, and a listener for each destination.

    The pod's resolv.conf is mounted by itself, as the kubelet does it, or with `own_etc` is a file
    of its /etc, where another one can take its place.
    """

    def __init__(
        self, lab: Lab, security: PodSecurity = AS_DOCUMENTED, *, own_etc: bool = False
    ) -> None:
        super().__init__()
        self.lab = lab
        self._security = security
        self._own_etc = own_etc
        with ExitStack() as undo:
            undo.push(self)
            self._etc = Path(self.enter_context(tempfile.TemporaryDirectory()))
            self._resolv_conf = self._etc / "resolv.conf"
            self._resolv_conf.write_text(RESOLV_CONF)
            address = CLUSTER_DNS.v4, 53
            self.dns = self.enter_context(
                DnsServer(lab.node.bind(*address), lab.node.listen(*address))
            )
            self.dns.zone.update(ZONE)
            self._listeners = {
                port: self.enter_context(lab.outside.listen(*endpoint))
                for port, endpoint in ENDPOINTS.items()
            }
            for listener in self._listeners.values():
                listener.settimeout(TIMEOUT_S)
            for key, value in security.sysctls.items():
                lab.pod.sysctl(key, value)
            undo.pop_all()

    @property
    def by_kernel(self) -> bool:
        """Whether the kernel is the data plane."""
        return self._security is KERNEL

    def change_resolv_conf(self, text: str) -> None:
        """Write `text` in place, or with an /etc of its own into a file that takes the place."""
        if not self._own_etc:
            self._resolv_conf.write_text(text)
            return
        successor = self._etc / "successor"
        successor.write_text(text)
        successor.rename(self._resolv_conf)

    def replace_resolv_conf_by_fifo(self) -> None:
        """Only with an /etc of its own."""
        successor = self._etc / "successor"
        os.mkfifo(successor)
        successor.rename(self._resolv_conf)

    def take_source(self, **more_env: str) -> None:
        """Change the pod's network as init does, by its plan, without sending on the LAN.

        For tests of the main container: init asks and tells for two seconds.
        """
        settings = read_settings(INIT_ENV | more_env)

        def settled(state: State) -> bool | None:
            return None if any(address.tentative for address in state.addresses) else True

        def take() -> None:
            with Netlink() as netlink:
                state = replace(
                    netlink.observe(),
                    name_servers=read_name_servers(self._resolv_conf),
                    sysctls_writable=True,
                )
                plan = make_plan(state, settings)
                for step in plan.link + plan.ipv6_addresses + plan.ipv4_addresses:
                    netlink.apply(step.change)
                assert netlink.wait(settled, TIMEOUT_S)
                for step in plan.routes:
                    netlink.apply(step.change)

        self.lab.pod.call(take)

    def init(self, **more_env: str) -> list[Record]:
        """Run the init container to its end, which must be a good one; its records."""
        done = self.lab.pod.run(
            EGRESS_PROXY,
            "init",
            env=INIT_ENV | more_env,
            container=self._container(self._security.init),
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, *wrapper: str, **more_env: str) -> Process:
        """Start the main container; it ends with the deployment at the latest.

        `wrapper` is the beginning of a command line that starts it, such as a tracer's.
        """
        return self.enter_context(
            self.lab.pod.start(
                *wrapper,
                EGRESS_PROXY,
                "run",
                env=RUN_ENV | self._security.env | more_env,
                container=self._container(self._security.main),
            )
        )

    def check(
        self, *options: str, in_main: bool = False, **more_env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the preflight of both containers, in one of them, to its end."""
        container = self._security.main if in_main else self._security.init
        return self.lab.pod.run(
            EGRESS_PROXY,
            "check",
            *options,
            env=INIT_ENV | RUN_ENV | self._security.env | more_env,
            container=self._container(container),
        )

    def connect(self, port: int) -> Session:
        """A client of the pod's `port`, and its upstream outside."""
        client = self.lab.client.connect(POD.v4, port, timeout_s=TIMEOUT_S)
        return Session.accepted(client, self._listeners[port])

    def accept(self, port: int) -> socket.socket:
        """The outside's end of the next connection to where `port` leads."""
        upstream, _ = self._listeners[port].accept()
        upstream.settimeout(TIMEOUT_S)
        return upstream

    def _container(self, container: Container) -> Container:
        if self._own_etc:
            return replace(container, etc=str(self._etc))
        return replace(container, resolv_conf=str(self._resolv_conf))
