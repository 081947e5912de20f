"""What requests to the admin port cost the relay: ``python -m bench.admin_port``.

1,000 destinations and as many idle connections as the limit of open files allows. Beside them run
a bulk stream and a connection with one round trip after the other, and somebody asks the admin
port. On a machine with few cores whoever asks takes time from the bulk stream too, so each load is
compared with a control: the same requests go to another process, which answers with the same
octets at the same rate (`ControlServer`). Only the place of the work differs.

Prints a table with one line per load:

- the share of a core that the requests take in the proxy, without the bulk stream;
- the bulk stream during the control and during the load, and the loss: the median of all rounds;
- the slowest round trip during both, and the growth of the proxy's resident memory since the start.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from egress_proxy.telemetry.admin import LARGE, LARGE_PER_S, Allowance

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    Load = Callable[[tuple[str, int], threading.Event], None]

PREFIX = "EGRESS_DNS_PROXY_"
ADMIN, CONTROL = ("127.0.0.1", 29153), ("127.0.0.1", 29154)
FIRST_PORT = 21000
DESTINATIONS = 1000
ECHO, BULK = DESTINATIONS - 1, 0
CHUNK = bytes(1 << 16)
PAGES = ("/livez", "/readyz", "/metrics", "/status.json", "/sessions.json")
PER_SECOND = 100
# Until a load has its full effect.
BEGIN_S = 0.5

FORK = multiprocessing.get_context("fork")


def serve(listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    """A thread per connection, for ever."""
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=answer, args=(accepted,), daemon=True).start()


idle_upstreams: list[socket.socket] = []


def be_upstream(accepted: socket.socket) -> None:
    """The first octet says what the client is: idle, bulk, or one of round trips."""
    kind = accepted.recv(1)
    if kind == b"i":
        idle_upstreams.append(accepted)
        return
    while data := accepted.recv(1 << 18):
        if kind == b"e":
            accepted.sendall(data)


class ControlServer:
    """Answers as the admin port does, with the pages that it had at the start."""

    def __init__(self) -> None:
        self._pages: dict[str, bytes] = {}
        self._allowance = Allowance(LARGE_PER_S, time.monotonic())

    def run(self) -> None:
        self._pages = {page: fetch(ADMIN, page) for page in PAGES}
        # Fetching took of the proxy's allowance.
        time.sleep(1)
        serve(socket.create_server(CONTROL, backlog=64), self._answer)

    def _answer(self, accepted: socket.socket) -> None:
        with accepted, contextlib.suppress(OSError):
            page = accepted.recv(8192).split()[1].decode()
            octets = self._pages[page]
            if len(octets) >= LARGE and not self._allowance.take(len(octets), time.monotonic()):
                octets = self._pages["/livez"]
            accepted.sendall(octets)
            accepted.shutdown(socket.SHUT_WR)
            if accepted.recv(8192):
                # As the admin port does, so that the client's buffers stay full.
                time.sleep(1)


def connect(number: int, kind: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", FIRST_PORT + number))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(kind)
    return sock


def send_bulk(sent: ctypes.c_longlong, sending: ctypes.c_bool) -> None:
    with connect(BULK, b"b") as sock:
        while True:
            if sending.value:
                sock.sendall(CHUNK)
                sent.value += len(CHUNK)
            else:
                time.sleep(0.01)


def request(address: tuple[str, int], target: str) -> socket.socket:
    sock = socket.create_connection(address)
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return sock


def fetch(address: tuple[str, int], target: str) -> bytes:
    with request(address, target) as sock:
        return b"".join(iter(lambda: sock.recv(1 << 18), b""))


def scrape(target: str) -> Load:
    """Ask `PER_SECOND` times per second, whatever one answer takes, and read every answer."""

    def ask(address: tuple[str, int], stop: threading.Event) -> None:
        due = time.monotonic()
        while not stop.wait(max(due - time.monotonic(), 0)):
            due += 1 / PER_SECOND
            with contextlib.suppress(OSError), request(address, target) as sock:
                while sock.recv(1 << 18):
                    pass

    return ask


def leave_unread(address: tuple[str, int], stop: threading.Event) -> None:
    """300 requests whose answers nobody reads."""
    with contextlib.ExitStack() as stack:
        for number in range(300):
            with contextlib.suppress(OSError):
                stack.enter_context(request(address, ("/metrics", "/status.json")[number % 2]))
            if stop.wait(1 / PER_SECOND):
                return
        stop.wait()


def post_for_ever(address: tuple[str, int], stop: threading.Event) -> None:
    """Four bodies without an end, again and again."""
    head = b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n"

    def post() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(address) as sock:
                sock.sendall(head)
                while not stop.is_set():
                    sock.sendall(CHUNK)

    for _ in range(4):
        threading.Thread(target=post, daemon=True).start()
    stop.wait()


def ask_nothing(_address: tuple[str, int], stop: threading.Event) -> None:
    stop.wait()


LOADS: dict[str, Load] = {
    "nothing": ask_nothing,
    **{f"{page} {PER_SECOND}/s": scrape(page) for page in PAGES},
    "300 unread answers": leave_unread,
    "4 endless bodies": post_for_ever,
}


def be_asker(commands: Connection) -> None:
    """Carry out loads by name, each until the next command: a process of its own."""
    while True:
        load, address = commands.recv()
        stop = threading.Event()
        asking = threading.Thread(target=LOADS[load], args=(address, stop))
        asking.start()
        commands.recv()
        stop.set()
        asking.join()
        commands.send("done")


@contextlib.contextmanager
def process(target: Callable[..., object], *args: object) -> Iterator[None]:
    started = FORK.Process(target=target, args=args, daemon=True)
    started.start()
    try:
        yield
    finally:
        started.kill()
        started.join()


class Proxy:
    """The daemon, and what the kernel says of its process."""

    def __init__(self, stack: contextlib.ExitStack, upstreams: list[int]) -> None:
        remote = dict.fromkeys(range(DESTINATIONS), upstreams[0]) | {ECHO: upstreams[1]}
        environ = {
            f"{PREFIX}DESTINATION": "\n".join(
                f"{FIRST_PORT + number} 127.0.0.1 {port}" for number, port in remote.items()
            ),
            f"{PREFIX}SOURCE": "any",
            f"{PREFIX}LISTEN": "127.0.0.1",
            f"{PREFIX}ADMIN_LISTEN": f"{ADMIN[0]}:{ADMIN[1]}",
            f"{PREFIX}ADMIN_SESSIONS": "on",
        }
        command = [sys.executable, "-m", "egress_proxy", "run"]
        with contextlib.ExitStack() as undo:
            started = undo.enter_context(
                subprocess.Popen(command, env=os.environ | environ, stdout=subprocess.PIPE)
            )
            undo.callback(started.kill)
            assert started.stdout is not None  # noqa: S101 - it is a pipe
            for line in started.stdout:
                if b"daemon.ready" in line:
                    break
            stack.push(undo.pop_all())
        self._proc = Path(f"/proc/{started.pid}")

    def cpu_s(self) -> float:
        """The CPU time of all its threads so far (proc(5), schedstat)."""
        schedstats = self._proc.glob("task/*/schedstat")
        return sum(int(path.read_text().split()[0]) for path in schedstats) / 1e9

    def resident_mib(self) -> float:
        pages = int((self._proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Figures(NamedTuple):
    """Of one load: bulk in MiB/s, the slowest round trip in ms, CPU time of the proxy in s/s."""

    bulk: float
    slowest_ms: float
    cpu: float


class Bench:
    """Everything that runs beside the proxy."""

    def __init__(self, stack: contextlib.ExitStack, idle: int) -> None:
        listeners = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in range(2)]
        for listener in listeners:
            stack.enter_context(process(serve, listener, be_upstream))
        self._commands, commands = FORK.Pipe()
        stack.enter_context(process(be_asker, commands))
        self.proxy = Proxy(stack, [listener.getsockname()[1] for listener in listeners])
        stack.enter_context(process(ControlServer().run))
        self._sent, self._sending = RawValue("q", 0), RawValue("b", 0)
        stack.enter_context(process(send_bulk, self._sent, self._sending))
        for number in range(idle):
            stack.enter_context(connect(number % ECHO, b"i"))
        self._echo = stack.enter_context(connect(ECHO, b"e"))
        time.sleep(2)

    def measure(
        self, load: str, address: tuple[str, int], seconds: float, *, bulk: bool
    ) -> Figures:
        self._sending.value = bulk
        self._commands.send((load, address))
        time.sleep(BEGIN_S)
        sent, cpu_s, began = self._sent.value, self.proxy.cpu_s(), time.monotonic()
        slowest = 0.0
        while (now := time.monotonic()) < began + seconds:
            self._echo.sendall(b"x")
            self._echo.recv(1)
            slowest = max(slowest, time.monotonic() - now)
            time.sleep(0.001)
        took = time.monotonic() - began
        rate = (self._sent.value - sent) / (1 << 20) / took
        used = (self.proxy.cpu_s() - cpu_s) / took
        self._commands.send("stop")
        self._commands.recv()
        return Figures(rate, slowest * 1000, used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The proxy's own share: two per connection, and the rest (egress_proxy/pod/descriptors.py).
    parser.add_argument("--idle", type=int, default=(limit - DESTINATIONS) // 2 - 300)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, options.idle)
        at_first = bench.proxy.resident_mib()
        alone = {load: bench.measure(load, ADMIN, options.seconds, bulk=False) for load in LOADS}
        rounds: dict[str, list[tuple[Figures, Figures]]] = {load: [] for load in LOADS}
        for number in range(options.rounds):
            for load, measured in rounds.items():
                order = (CONTROL, ADMIN) if number % 2 else (ADMIN, CONTROL)
                found = {
                    address: bench.measure(load, address, options.seconds, bulk=True)
                    for address in order
                }
                measured.append((found[CONTROL], found[ADMIN]))
        print(f"{options.idle} idle connections, {options.rounds} rounds; medians, slowest of all")
        print("| load | of a core | bulk: control | load | loss | slowest: control | load |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for load, measured in rounds.items():
            extra = alone[load].cpu - alone["nothing"].cpu
            control, asked = (median(each[i].bulk for each in measured) for i in (0, 1))
            loss = median(1 - each[1].bulk / each[0].bulk for each in measured)
            slowest = [max(each[i].slowest_ms for each in measured) for i in (0, 1)]
            print(
                f"| {load} | {extra:.1%} | {control:.0f} MiB/s | {asked:.0f} MiB/s | {loss:.1%} "
                f"| {slowest[0]:.1f} ms | {slowest[1]:.1f} ms |"
            )
        grown = bench.proxy.resident_mib() - at_first
        print(f"memory of the proxy: {at_first:.0f} MiB at first, {grown:+.1f} MiB at the end")


if __name__ == "__main__":
    main()
