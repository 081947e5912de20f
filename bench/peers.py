"""What is compared: this project, HAProxy and nginx as TCP proxies, and forwarding without a proxy.

Each proxy gets the configuration that its manual advises for this job: one thread, no log, the
reserved source address without a bound port, TCP keepalive on both sides, an hour of idleness, a
backlog of 4096, and room for the connections of every load. Nagle's algorithm is off in all.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.daemons import Daemon
from bench.descriptors import capacity
from bench.servers import PORTS
from bench.topology import EGRESS_INTERFACE, POD, REMOTE, RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.topology import Topology

EGRESS_PROXY = str(Path(sysconfig.get_path("scripts")) / "egress-proxy")


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the compared. `command` is None for plain forwarding.

    `first_port` is the pod's port for the first of the servers' ports; the next ones follow it.
    All are below the range of ephemeral ports, so that no outgoing connection sits on one.
    """

    name: str
    title: str
    first_port: int
    command: Callable[[Peer, Path], tuple[list[str], Mapping[str, str]]] | None
    # Whether it is this project as it was.
    earlier: bool = False

    def endpoint(self, server: str) -> tuple[str, int]:
        """Where a client connects to reach the server of that name."""
        if self.command is None:
            return REMOTE.v4, PORTS[server]
        return POD.v4, self.first_port + list(PORTS).index(server)

    def listeners(self) -> list[tuple[int, int]]:
        """The pod's port for each of the servers' ports."""
        return [(self.endpoint(server)[1], port) for server, port in PORTS.items()]

    def start(self, topology: Topology, cores: int | str, directory: Path) -> Daemon | None:
        """Start it; its configuration is written to `directory`. None if nothing has to run."""
        if self.command is None:
            return None
        argv, env = self.command(self, directory)
        return Daemon(topology.pod, cores, *argv, env=env)


def _project(peer: Peer, *, debug: bool) -> tuple[list[str], dict[str, str]]:
    destinations = (f"{own} {REMOTE.v4} {remote}" for own, remote in peer.listeners())
    return [EGRESS_PROXY, "run"], {
        "EGRESS_DNS_PROXY_DESTINATION": "\n".join(destinations),
        "EGRESS_DNS_PROXY_DEBUG": "1" if debug else "",
        "EGRESS_INTERFACE": EGRESS_INTERFACE,
        # Several of them run in one pod here.
        "EGRESS_DNS_PROXY_ADMIN_LISTEN": f":{9053 + peer.first_port}",
    }


def _quiet(peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _project(peer, debug=False)


def _logging(peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _project(peer, debug=True)


def earlier(checkout: Path, number: int) -> Peer:
    """This project as it was, from another checkout, with the libraries of today."""

    def command(peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
        argv, env = _project(peer, debug=False)
        return argv, {**env, "PYTHONPATH": str(checkout)}

    title = f"egress-proxy at {checkout.name}"
    return Peer(checkout.name, title, 150 + 10 * number, command, earlier=True)


_HAPROXY = """\
global
    nbthread {threads}
    maxconn {maximum}
    maxpipes 256
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    option clitcpka
    option srvtcpka
    source {source}
{splice}
"""

_HAPROXY_LISTEN = """\
listen port{own}
    bind {pod}:{own} backlog 4096
    server remote {remote}:{port}
"""


def _haproxy(
    peer: Peer, directory: Path, *, splice: bool = False, threads: int = 1
) -> tuple[list[str], Mapping[str, str]]:
    text = _HAPROXY.format(
        threads=threads,
        maximum=capacity(),
        source=RESERVED.v4,
        splice="    option splice-auto" if splice else "",
    ) + "".join(
        _HAPROXY_LISTEN.format(own=own, pod=POD.v4, remote=REMOTE.v4, port=port)
        for own, port in peer.listeners()
    )
    path = directory / f"{peer.name}.cfg"
    path.write_text(text)
    return ["haproxy", "-db", "-q", "-f", str(path)], {}


def _haproxy_copy(peer: Peer, directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _haproxy(peer, directory)


def _haproxy_splice(peer: Peer, directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _haproxy(peer, directory, splice=True)


def _haproxy_threads(peer: Peer, directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _haproxy(peer, directory, threads=2)


_NGINX = """\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
# One process that does what a worker does; a master would outlive a killed benchmark's end.
master_process off;
pid {directory}/nginx-stream.pid;
error_log stderr crit;
events {{
    worker_connections {sockets};
}}
stream {{
    access_log off;
    proxy_connect_timeout 10s;
    proxy_timeout 1h;
    proxy_socket_keepalive on;
    proxy_bind {source};
{servers}
}}
"""


def _nginx(peer: Peer, directory: Path) -> tuple[list[str], Mapping[str, str]]:
    servers = "\n".join(
        f"    server {{ listen {POD.v4}:{own} backlog=4096 so_keepalive=on;"
        f" proxy_pass {REMOTE.v4}:{port}; }}"
        for own, port in peer.listeners()
    )
    path = directory / "nginx-stream.conf"
    path.write_text(
        _NGINX.format(
            directory=directory, sockets=2 * capacity(), source=RESERVED.v4, servers=servers
        )
    )
    return ["nginx", "-c", str(path), "-e", "stderr"], {}


PROJECT = Peer("egress-proxy", "egress-proxy", 100, _quiet)
LOGGING = Peer("egress-proxy-debug", "egress-proxy, a log record per connection", 110, _logging)
HAPROXY = Peer("haproxy", "HAProxy", 120, _haproxy_copy)
HAPROXY_SPLICE = Peer("haproxy-splice", "HAProxy, `option splice-auto`", 130, _haproxy_splice)
NGINX = Peer("nginx", "nginx `stream`", 140, _nginx)
FORWARDING = Peer("forwarding", "IP forwarding, no proxy", 0, None)
# What `scaling` sets beside one process and one thread.
PROJECT_TWICE = (PROJECT, Peer("egress-proxy-2", "a second egress-proxy", 190, _quiet))
HAPROXY_THREADS = Peer("haproxy-2", "HAProxy, two threads", 180, _haproxy_threads)

PEERS = {peer.name: peer for peer in (PROJECT, LOGGING, HAPROXY, HAPROXY_SPLICE, NGINX, FORWARDING)}
