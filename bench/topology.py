"""Three network namespaces: the clients, the pod, and the remote servers.

::

    client ──── pod ──── remote
        cluster     egress

Two veth pairs and nothing else, so that the measurement contains little but the pod. The pod also
forwards IP packets, and each end has a route to the other: a connection from the client to the
remote's own address shows the cost of the same path without a proxy. All addresses are reserved
for documentation (RFC 5737, RFC 3849).
"""

from __future__ import annotations

from contextlib import ExitStack

from tests.support.network import Host, Namespace

CLIENT = Host.of("198.51.100.10/24", "2001:db8:0:1::10/64")
POD = Host.of("198.51.100.1/24", "2001:db8:0:1::1/64")
# The reserved address (EGRESS_SOURCE): every proxy connects from here.
RESERVED = Host.of("203.0.113.99/24", "2001:db8:0:3::99/64")
REMOTE = Host.of("203.0.113.130/24", "2001:db8:0:3::130/64")
EGRESS_INTERFACE = "egress0"

_SYSCTLS = {
    # A new connection per request uses tens of thousands of ports within a minute.
    "ipv4/ip_local_port_range": "1024 65535",
    "ipv4/tcp_tw_reuse": "1",
    "ipv4/ip_forward": "1",
}


class Topology(ExitStack):
    """The three namespaces. The kernel removes them when the process ends."""

    def __init__(self) -> None:
        super().__init__()
        with ExitStack() as undo:
            undo.push(self)
            self.client, self.pod, self.remote = (
                self._namespace(name) for name in ("client", "pod", "remote")
            )
            self.client.join("eth0", self.pod, "eth0")
            self.pod.join(EGRESS_INTERFACE, self.remote, "eth0")
            self.client.configure("eth0", CLIENT)
            self.pod.configure("eth0", POD)
            self.pod.configure(EGRESS_INTERFACE, RESERVED)
            self.remote.configure("eth0", REMOTE)
            self.client.route(REMOTE, POD)
            self.remote.route(CLIENT, RESERVED)
            undo.pop_all()

    def _namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self.callback(made.close)
        for key, value in _SYSCTLS.items():
            made.sysctl(key, value)
        return made
