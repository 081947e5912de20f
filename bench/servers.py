"""The remote servers: nginx, which answers from memory, and iperf3."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.daemons import BenchError, Daemon
from bench.topology import REMOTE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.topology import Topology
    from tests.support.network import Namespace

# `kept` keeps a connection until the client closes it; `new` closes each after one answer.
PORTS = {"kept": 8080, "new": 8081, "bulk": 5201}

_NGINX = """\
daemon off;
master_process off;
pid {directory}/nginx-server.pid;
error_log stderr crit;
events {{
    worker_connections 40000;
}}
http {{
    access_log off;
    client_header_timeout 1h;
    keepalive_requests 1000000000;
    default_type text/plain;
    # nginx makes these at its start; Debian's default is a directory of the installed package.
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {address}:{kept} backlog=4096;
        keepalive_timeout 1h;
        location = / {{ return 200 "{body}"; }}
        location = /client {{ return 200 "$remote_addr"; }}
        location = /status {{ stub_status; }}
    }}
    server {{
        listen {address}:{new} backlog=4096;
        keepalive_timeout 0;
        location = / {{ return 200 "{body}"; }}
    }}
}}
"""


@contextmanager
def running(topology: Topology, cores: int | str, directory: Path) -> Iterator[list[int]]:
    """Start both servers on `cores`. Yields their process identifiers."""
    path = directory / "nginx-server.conf"
    path.write_text(
        _NGINX.format(
            directory=directory,
            address=REMOTE.v4,
            kept=PORTS["kept"],
            new=PORTS["new"],
            body="0123456789abcdef" * 8,
        )
    )
    with (
        Daemon(topology.remote, cores, "nginx", "-c", str(path), "-e", "stderr") as web,
        Daemon(topology.remote, cores, "iperf3", "--server", "--bind", REMOTE.v4) as iperf3,
    ):
        web.wait_for_ports([PORTS["kept"], PORTS["new"]])
        iperf3.wait_for_ports([PORTS["bulk"]])
        yield [web.pid, iperf3.pid]


def get(namespace: Namespace, endpoint: tuple[str, int], path: str) -> str:
    """The body of `path` at `endpoint`, requested from inside `namespace`."""
    with namespace.connect(*endpoint) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(4096), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    if " 200 " not in head.split("\r\n", 1)[0]:
        raise BenchError(f"GET {path} at {endpoint}: {head!r}")
    return body


class Status:
    """The web server's own counters, requested without passing through the pod."""

    def __init__(self, topology: Topology) -> None:
        text = get(topology.remote, (REMOTE.v4, PORTS["kept"]), "/status")
        counts = [int(number) for number in re.findall(r"\d+", text)]
        # Active connections, then the line "accepts handled requests" (ngx_http_stub_status).
        self.active, self.requests = counts[0], counts[3]
