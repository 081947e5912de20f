"""The admin port with real clients, good, slow and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from contextlib import asynccontextmanager
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.run_variables import AdminListen
from egress_proxy.errors import PlatformError
from egress_proxy.pod.addresses import ListenPoint
from egress_proxy.run.admin_port import AdminPort
from egress_proxy.telemetry.admin import MAX_CLIENTS, MAX_WAITING, AdminServer
from egress_proxy.telemetry.pages import Pages, join_in_turns
from tests.support.peers import Peer
from tests.support.rig import turns
from tests.support.standalone import free_port
from tests.support.statuses import Shown, destination, status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.asyncio

READY = status(destination())
NOT_READY = status(destination(), source="no interface has it")


class Admin:
    """A server on loopback that shows `shown`."""

    def __init__(self, sock: socket.socket) -> None:
        self.source = Shown(READY)
        self.address: tuple[str, int] = sock.getsockname()
        self.server: AdminServer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)

    async def ask(self, octets: bytes) -> tuple[bytes, dict[str, str], bytes]:
        """The status line, the headers and the body of the answer to `octets`."""
        reader, writer = await self.connect()
        writer.write(octets)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        line, *headers = head.split(b"\r\n")
        return line, dict(header.decode().split(": ", 1) for header in headers), body

    async def get(self, target: str, method: str = "GET") -> tuple[bytes, dict[str, str], bytes]:
        return await self.ask(f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


@asynccontextmanager
async def serving(
    timeout_s: float = 60, *, fresh_s: float = 60, large_per_s: float = 1 << 40
) -> AsyncIterator[Admin]:
    sock = socket.create_server(("127.0.0.1", 0))
    admin = Admin(sock)
    server = admin.server = AdminServer(
        Pages(admin.source, fresh_s=fresh_s), timeout_s=timeout_s, large_per_s=large_per_s
    )
    await server.start([sock])
    try:
        yield admin
    finally:
        await server.stop()


async def test_the_kubelets_questions() -> None:
    async with serving() as admin:
        assert (await admin.get("/livez"))[::2] == (b"HTTP/1.1 200 OK", b"ok\n")
        assert (await admin.get("/readyz"))[::2] == (b"HTTP/1.1 200 OK", b"ok\n")
        admin.source.status = NOT_READY
        assert (await admin.get("/livez"))[0] == b"HTTP/1.1 200 OK"
        assert (await admin.get("/readyz"))[::2] == (
            b"HTTP/1.1 503 Service Unavailable",
            b"source address 192.0.2.99: no interface has it\n",
        )
        assert (await admin.get("/readyz?verbose"))[2] == (
            b"[+]drain ok\n"
            b"[-]source failed: source address 192.0.2.99: no interface has it\n"
            b"[+]destinations ok\n"
            b"[+]reload ok\n"
        )


async def test_the_daemon_is_not_alive_while_a_task_of_it_is_not_running() -> None:
    async with serving() as admin:
        admin.source.down = ("reload", "resolve a.example")
        assert (await admin.get("/livez"))[::2] == (
            b"HTTP/1.1 503 Service Unavailable",
            b"not running: reload\nnot running: resolve a.example\n",
        )


async def test_readiness_lists_what_needs_attention() -> None:
    async with serving() as admin:
        admin.source.status = status(destination(), destination("failed", port=81))
        assert (await admin.get("/readyz"))[::2] == (b"HTTP/1.1 200 OK", b"ok\n")
        assert (await admin.get("/readyz?verbose"))[2] == (
            b"[+]drain ok\n"
            b"[+]source ok\n"
            b"[!]destinations warning: port 81 cannot listen: Address already in use\n"
            b"[+]reload ok\n"
        )


async def test_the_pages() -> None:
    async with serving() as admin:
        _, headers, body = await admin.get("/metrics")
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b'egress_proxy_listener_up{listener="80"} 1\n' in body
        _, headers, body = await admin.get("/status.json")
        assert headers["Content-Type"] == "application/json"
        assert json.loads(body)["status"]["destinations"][0]["destination"] == "192.0.2.1:80"
        _, headers, body = await admin.get("/")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert body.startswith(b"<!doctype html>")
        # Nothing from anywhere else, and no script but its own.
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"http://" not in body
        assert b"https://" not in body


async def test_an_answer_has_its_length_and_closes_the_connection() -> None:
    async with serving() as admin:
        _, headers, body = await admin.get("/livez")
        assert headers == {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }
        line, head_headers, nothing = await admin.get("/livez", "HEAD")
        assert (line, head_headers, nothing) == (b"HTTP/1.1 200 OK", headers, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_nothing_can_be_changed(method: str) -> None:
    async with serving() as admin:
        line, headers, _ = await admin.get("/livez", method)
        assert line == b"HTTP/1.1 405 Method Not Allowed"
        assert headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("target", ["/nothing", "/livez/", "//livez", "/../livez", "*"])
async def test_there_is_nothing_else(target: str) -> None:
    async with serving() as admin:
        line, _, body = await admin.get(target)
        assert (line, body) == (
            b"HTTP/1.1 404 Not Found",
            b"there are / /livez /readyz /metrics /status.json /sessions.json\n",
        )


HOSTILE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "a blank in the target": b"GET /li vez HTTP/1.1\r\nHost: a\r\n\r\n",
    "an octet beyond ASCII": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long header": b"GET /livez HTTP/1.1\r\nHost: " + b"a" * 100_000 + b"\r\n\r\n",
    "endless headers": b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 10_000,
}


@pytest.mark.parametrize("octets", HOSTILE.values(), ids=HOSTILE)
async def test_what_is_no_request_is_refused_without_an_echo(octets: bytes) -> None:
    async with serving() as admin:
        line, _, body = await admin.ask(octets)
        assert line.startswith(b"HTTP/1.1 4")
        assert body == b"not a request for this server\n"
        assert (await admin.get("/livez"))[2] == b"ok\n"


async def test_a_request_body_that_is_not_read_does_not_destroy_the_answer() -> None:
    async with serving() as admin:
        length = 1_000_000
        head = f"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        line, _, _ = await admin.ask(head.encode() + b"a" * length)
        assert line == b"HTTP/1.1 405 Method Not Allowed"


async def test_a_crowd_of_silent_clients_does_not_keep_a_probe_out() -> None:
    async with serving() as admin:
        crowd = [await admin.connect() for _ in range(MAX_CLIENTS)]
        for _, writer in crowd:
            writer.write(b"GET /livez HTTP/1.1\r\nHost:")
        assert (await admin.get("/livez"))[2] == b"ok\n"
        # The one that was there longest had to go; the last one may go on.
        with pytest.raises(ConnectionResetError):
            await crowd[0][0].read()
        reader, writer = crowd[-1]
        writer.write(b" a\r\n\r\n")
        assert (await reader.read()).endswith(b"ok\n")
        for _, writer in crowd:
            writer.close()


@pytest.mark.parametrize("octets", [b"", b"GET /livez HTTP/1.1\r\nHost:"], ids=["silent", "slow"])
async def test_a_client_that_takes_too_long_is_reset(octets: bytes) -> None:
    async with serving(timeout_s=0.05) as admin:
        reader, writer = await admin.connect()
        writer.write(octets)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_client_that_reads_nothing_is_reset() -> None:
    async with serving(timeout_s=0.2) as admin:
        # More than the kernel's buffers hold.
        admin.source.status = status(*(destination(port=port) for port in range(1, 20_000)))
        # A peer whose kernel takes little.
        client = await Peer.connect(admin.address)
        await client.send(b"GET /status.json HTTP/1.1\r\nHost: a\r\n\r\n")
        # An answer to a later client: the one before it has been accepted.
        assert (await admin.get("/livez"))[2] == b"ok\n"
        while client.connected:
            await turns()
        octets, was_reset = await client.receive_all()
        assert was_reset
        assert len(octets) < 1_000_000
        client.close()


async def test_all_who_ask_within_a_second_share_one_snapshot() -> None:
    async with serving() as admin:
        targets = ["/metrics", "/status.json"] * (MAX_CLIENTS // 2)
        answers = await asyncio.gather(*map(admin.get, targets))
        assert {line for line, _, _ in answers} == {b"HTTP/1.1 200 OK"}
        assert len({body for _, _, body in answers}) == 2
        assert admin.source.taken == 1


async def test_an_older_snapshot_is_not_shown() -> None:
    async with serving(fresh_s=0) as admin:
        for number in (1, 2):
            admin.source.status = status(destination(port=number))
            assert (
                f'listener_up{{listener="{number}"}} 1\n'.encode()
                in ((await admin.get("/metrics"))[2])
            )
        assert admin.source.taken == 2


async def test_probes_take_no_snapshot() -> None:
    async with serving() as admin:
        for target in ("/livez", "/readyz", "/readyz?verbose", "/"):
            assert (await admin.get(target))[0] == b"HTTP/1.1 200 OK"
        assert admin.source.taken == 0


async def test_a_page_that_could_not_be_made_is_made_again() -> None:
    async with serving() as admin:
        admin.source.fail = True
        reader, writer = await admin.connect()
        told = list[dict[str, object]]()
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: told.append(context)
        )
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        # The loop's handler makes a record of it.
        assert [str(context["exception"]) for context in told] == ["no snapshot"]
        admin.source.fail = False
        assert (await admin.get("/metrics"))[0] == b"HTTP/1.1 200 OK"


async def test_the_event_loop_turns_after_each_part_of_the_metrics() -> None:
    made = 0

    def parts() -> Iterator[bytes]:
        nonlocal made
        for _ in range(20):
            made += 1
            yield b"part"

    joining = asyncio.create_task(join_in_turns(parts()))
    seen = [0]
    while not joining.done():
        await asyncio.sleep(0)
        seen.append(made)
    assert await joining == b"part" * 20
    assert max(after - before for before, after in pairwise(seen)) == 1


async def test_answers_that_are_not_read_hold_a_bounded_number_of_bytes() -> None:
    async with serving(fresh_s=0) as admin:
        admin.source.status = status(*(destination(port=port) for port in range(1, 1001)))
        clients = []
        for _ in range(3 * MAX_CLIENTS):
            # A peer whose kernel takes little. Each gets a text of its own.
            client = await Peer.connect(admin.address)
            await client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            clients.append(client)
            assert (await admin.get("/livez"))[2] == b"ok\n"
            assert admin.server.waiting <= MAX_WAITING
        # The last one is served, and others were reset for it.
        octets, was_reset = await clients[-1].receive_all()
        assert (octets[-1:], was_reset) == (b"\n", False)
        assert admin.server.waiting > 0
        for client in clients:
            client.close()


async def test_large_answers_are_limited_and_probes_are_not() -> None:
    async with serving(large_per_s=1000) as admin:
        admin.source.status = status(*(destination(port=port) for port in range(1, 101)))
        assert (await admin.get("/metrics"))[0] == b"HTTP/1.1 200 OK"
        # Thousands of times the rate.
        line, headers, body = await admin.get("/metrics")
        assert line == b"HTTP/1.1 429 Too Many Requests"
        assert headers["Retry-After"] == "1"
        assert body == b"too many large answers; ask again in a second\n"
        assert (await admin.get("/metrics", "HEAD"))[0] == b"HTTP/1.1 200 OK"
        for target in ("/livez", "/readyz", "/"):
            assert (await admin.get(target))[0] == b"HTTP/1.1 200 OK"


async def test_an_endless_body_is_not_read() -> None:
    async with serving() as admin:
        _, writer = await admin.connect()
        head = b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n"
        writer.write(head)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000:
                writer.write(b"a" * 65536)
                await writer.drain()
                sent += 65536
        # What the buffers of both kernels take.
        assert sent < 20_000_000
        writer.close()


async def test_stopping_leaves_no_client() -> None:
    async with serving() as admin:
        reader, writer = await admin.connect()
        writer.write(b"GET /livez HTTP/1.1\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_port_that_can_not_listen_is_reported() -> None:
    """Another process of the pod has taken it since it was bound."""
    port = free_port()
    admin_port = AdminPort(AdminListen(ip_address("127.0.0.1"), port), ())
    assert admin_port.bind() == []
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        with pytest.raises(PlatformError) as caught:
            await admin_port.serve(Shown(READY))
    await admin_port.stop()
    assert str(caught.value) == (
        f"EGRESS_DNS_PROXY_ADMIN_LISTEN: '127.0.0.1:{port}': can't listen on 127.0.0.1: "
        "Address already in use; another process of the pod listens there: use another port"
    )


async def test_a_port_that_can_not_be_bound_is_reported_and_no_port_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        inside = [ListenPoint(ip_address(address), "") for address in ("127.0.0.2", "127.0.0.1")]
        admin_port = AdminPort(AdminListen(None, port), inside)
        [problem] = admin_port.bind()
        assert str(problem) == (
            f"EGRESS_DNS_PROXY_ADMIN_LISTEN: ':{port}': can't listen on 127.0.0.1: Address already "
            "in use; another process of the pod listens there: use another port"
        )
        await admin_port.stop()
        socket.create_server(("127.0.0.2", port)).close()
