"""The compared peers: this project, HAProxy and nginx as TCP proxies, and no proxy at all.

HAProxy and nginx are the newest that Debian offers: see `daemons.SUITE`. HAProxy has
``option splice-auto``, because this project splices too; nginx can only copy. Each proxy has one
thread, no log, the reserved source address without a bound port, TCP keepalive on both sides, an
idle timeout of an hour, a backlog of 4096, and enough connections for every load. Nagle's algorithm
is off in all.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.daemons import UNPACKED, Daemon
from bench.descriptors import capacity
from bench.servers import PORTS
from bench.topology import EGRESS_INTERFACE, POD, REMOTE, RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.topology import Topology

EGRESS_PROXY = str(Path(sysconfig.get_path("scripts")) / "egress-proxy")


@dataclass(frozen=True, slots=True)
class Peer:
    """One compared proxy. `command` is None for IP forwarding without a proxy.

    `first_port` is the pod's port for the first of the servers' ports; the next ones follow it.
    All are below the range of ephemeral ports, so that no outgoing connection can use one.
    """

    name: str
    title: str
    first_port: int
    command: Callable[[Peer, Path], tuple[list[str], Mapping[str, str]]] | None
    # Whether it is an earlier commit of this project.
    earlier: bool = False
    # Whether the kernel accepts its clients: no socket listens.
    by_kernel: bool = False

    def endpoint(self, server: str) -> tuple[str, int]:
        """The address and port where a client reaches `server`, a key of `PORTS`."""
        if self.command is None:
            return REMOTE.v4, PORTS[server]
        return POD.v4, self.first_port + list(PORTS).index(server)

    def listeners(self) -> list[tuple[int, int]]:
        """Pairs of the pod's port and the server's port that it leads to."""
        return [(self.endpoint(server)[1], port) for server, port in PORTS.items()]

    def start(self, topology: Topology, cores: int | str, directory: Path) -> Daemon | None:
        """Write its configuration to `directory` and start it. None if there is no proxy."""
        if self.command is None:
            return None
        argv, env = self.command(self, directory)
        return Daemon(topology.pod, cores, *argv, env=env)

    def wait_until_serving(self, daemon: Daemon) -> None:
        """Raises BenchError if that takes too long."""
        if self.by_kernel:
            daemon.wait_for_output(b'"daemon.ready"')
        else:
            daemon.wait_for_ports(own for own, _ in self.listeners())


def _project(peer: Peer, *, debug: bool) -> tuple[list[str], dict[str, str]]:
    destinations = (f"{own} {REMOTE.v4} {remote}" for own, remote in peer.listeners())
    return [EGRESS_PROXY, "run"], {
        "EGRESS_DNS_PROXY_DESTINATION": "\n".join(destinations),
        "EGRESS_DNS_PROXY_DEBUG": "1" if debug else "",
        "EGRESS_INTERFACE": EGRESS_INTERFACE,
        # Several instances run in one pod.
        "EGRESS_DNS_PROXY_ADMIN_LISTEN": f":{9053 + peer.first_port}",
    }


def _quiet(peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _project(peer, debug=False)


def _logging(peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _project(peer, debug=True)


def _kernel(peer: Peer, _directory: Path) -> tuple[list[str], Mapping[str, str]]:
    argv, env = _project(peer, debug=False)
    return argv, {**env, "EGRESS_DNS_PROXY_DATAPLANE": "kernel"}


def earlier(checkout: Path, number: int) -> Peer:
    """An earlier commit of this project, from another checkout, with the same libraries."""

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
    option splice-auto
"""

_HAPROXY_LISTEN = """\
listen port{own}
    bind {pod}:{own} backlog 4096
    server remote {remote}:{port}
"""


def _haproxy(peer: Peer, directory: Path, *, threads: int) -> tuple[list[str], Mapping[str, str]]:
    text = _HAPROXY.format(threads=threads, maximum=capacity(), source=RESERVED.v4) + "".join(
        _HAPROXY_LISTEN.format(own=own, pod=POD.v4, remote=REMOTE.v4, port=port)
        for own, port in peer.listeners()
    )
    path = directory / f"{peer.name}.cfg"
    path.write_text(text)
    return ["haproxy", "-db", "-q", "-f", str(path)], {}


def _haproxy_one_thread(peer: Peer, directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _haproxy(peer, directory, threads=1)


def _haproxy_two_threads(peer: Peer, directory: Path) -> tuple[list[str], Mapping[str, str]]:
    return _haproxy(peer, directory, threads=2)


_NGINX = """\
load_module {modules}/ngx_stream_module.so;
daemon off;
# One process that does a worker's job: a master's workers would outlive a killed benchmark.
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
            modules=UNPACKED / "usr/lib/nginx/modules",
            directory=directory,
            sockets=2 * capacity(),
            source=RESERVED.v4,
            servers=servers,
        )
    )
    return ["nginx", "-c", str(path), "-e", "stderr"], {}


PROJECT = Peer("egress-proxy", "egress-proxy", 100, _quiet)
LOGGING = Peer("egress-proxy-debug", "egress-proxy, a log record per connection", 110, _logging)
KERNEL = Peer(
    "egress-proxy-kernel", "egress-proxy, kernel data plane", 170, _kernel, by_kernel=True
)
HAPROXY = Peer("haproxy", "HAProxy, `option splice-auto`", 120, _haproxy_one_thread)
NGINX = Peer("nginx", "nginx `stream`", 140, _nginx)
FORWARDING = Peer("forwarding", "IP forwarding, no proxy", 0, None)
# `scaling` compares them with one process and with one thread.
PROJECT_TWICE = (PROJECT, Peer("egress-proxy-2", "a second egress-proxy", 190, _quiet))
HAPROXY_THREADS = Peer("haproxy-2", "HAProxy, two threads", 180, _haproxy_two_threads)

PEERS = {peer.name: peer for peer in (PROJECT, LOGGING, HAPROXY, NGINX, FORWARDING)}
