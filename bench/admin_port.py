"""What requests to the admin port cost the relay: ``python -m bench.admin_port``.

1,000 destinations, idle connections, one bulk stream and one connection with a round trip after the
other; then, one after the other, loads of the admin port. Prints one line per load: the bulk stream
in MiB/s, the slowest round trip in ms, and the growth of resident memory in MiB. Needs as many
descriptors as there are idle connections, twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREFIX = "EGRESS_DNS_PROXY_"
ADMIN = ("127.0.0.1", 29153)
FIRST_PORT = 21000
DESTINATIONS = 1000
CHUNK = bytes(1 << 16)


class Upstream:
    """Accepts everything on one port; reads what comes, and echoes the bytes of round trips."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.idle: list[socket.socket] = []
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            accepted, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        kind = accepted.recv(1)
        if kind == b"i":
            self.idle.append(accepted)
            return
        while data := accepted.recv(1 << 18):
            if kind == b"e":
                accepted.sendall(data)
            else:
                self.received += len(data)


def connect(number: int, kind: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", FIRST_PORT + number % DESTINATIONS))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(kind)
    return sock


def send_bulk(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(CHUNK)


def request(target: str) -> socket.socket:
    sock = socket.create_connection(ADMIN)
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return sock


def scrape(target: str, per_second: int, stop: threading.Event) -> None:
    """Ask `per_second` times per second, and read every answer."""
    while not stop.wait(1 / per_second):
        with contextlib.suppress(OSError), request(target) as sock:
            while sock.recv(1 << 18):
                pass


def leave_unread(stop: threading.Event) -> None:
    """300 requests whose answers nobody reads."""
    with contextlib.ExitStack() as stack:
        for number in range(300):
            with contextlib.suppress(OSError):
                stack.enter_context(request(("/metrics", "/status.json")[number % 2]))
            if stop.wait(0.01):
                return
        stop.wait()


def post_for_ever(stop: threading.Event) -> None:
    """Four bodies without an end."""

    def post() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(ADMIN) as sock:
                sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n")
                while not stop.is_set():
                    sock.sendall(CHUNK)

    for _ in range(4):
        threading.Thread(target=post, daemon=True).start()
    stop.wait()


def ask_nothing(stop: threading.Event) -> None:
    stop.wait()


LOADS: dict[str, Callable[[threading.Event], None]] = {
    "nothing": ask_nothing,
    "/readyz 100/s": lambda stop: scrape("/readyz", 100, stop),
    "/metrics 100/s": lambda stop: scrape("/metrics", 100, stop),
    "/status.json 100/s": lambda stop: scrape("/status.json", 100, stop),
    "300 unread answers": leave_unread,
    "4 endless bodies": post_for_ever,
    "nothing again": ask_nothing,
}


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextlib.contextmanager
def proxy(upstream: Upstream) -> Iterator[int]:
    lines = (f"{FIRST_PORT + number} 127.0.0.1 {upstream.port}" for number in range(DESTINATIONS))
    environ = {
        f"{PREFIX}DESTINATION": "\n".join(lines),
        f"{PREFIX}SOURCE": "any",
        f"{PREFIX}LISTEN": "127.0.0.1",
        f"{PREFIX}ADMIN_LISTEN": f"{ADMIN[0]}:{ADMIN[1]}",
    }
    command = [sys.executable, "-m", "egress_proxy", "run"]
    with subprocess.Popen(command, env=os.environ | environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            if b"daemon.ready" in line:
                break
        try:
            yield process.pid
        finally:
            process.kill()


def measure(
    load: Callable[[threading.Event], None], upstream: Upstream, echo: socket.socket, seconds: float
) -> tuple[float, float]:
    """MiB/s of bulk, and the slowest round trip in ms."""
    stop = threading.Event()
    asking = threading.Thread(target=load, args=(stop,), daemon=True)
    asking.start()
    time.sleep(0.5)  # the load has begun
    before, began, slowest = upstream.received, time.monotonic(), 0.0
    while (now := time.monotonic()) < began + seconds:
        echo.sendall(b"x")
        echo.recv(1)
        slowest = max(slowest, time.monotonic() - now)
        time.sleep(0.001)
    rate = (upstream.received - before) / (1 << 20) / (time.monotonic() - began)
    stop.set()
    asking.join(15)
    return rate, slowest * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    upstream = Upstream()
    with proxy(upstream) as pid:
        idle = [connect(number, b"i") for number in range(options.idle)]
        bulk, echo = connect(0, b"b"), connect(1, b"e")
        threading.Thread(target=send_bulk, args=(bulk,), daemon=True).start()
        at_first = resident_mib(pid)
        for name, load in LOADS.items():
            rate, slowest_ms = measure(load, upstream, echo, options.seconds)
            grown = resident_mib(pid) - at_first
            print(f"{name:20} {rate:8.0f} MiB/s {slowest_ms:8.1f} ms {grown:+8.1f} MiB")
        for sock in (*idle, bulk, echo):
            sock.close()


if __name__ == "__main__":
    main()
