"""Health, metrics and the status page, over HTTP.

Read-only, one request per connection. Any host that reaches the pod may send requests, and no
request may stall a connection of the relay or take much memory:

- `MAX_CLIENTS` connections, a small request, a few seconds. If all are taken, the oldest is reset,
  so that many slow clients do not block the kubelet's probe.
- `/livez` and `/readyz` read a few flags. `/metrics` and `/status.json` are made in parts, with
  turns of the event loop between them, at most once per `_FRESH_S`, and shared by all requests.
- Answers that wait to be read hold `MAX_WAITING` bytes at most; the oldest are reset first.
- The body of a request is never read, beyond what came with its head.

h11 parses HTTP; an answer never repeats anything from the request.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import struct
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import h11
import msgspec

from egress_proxy.telemetry import metrics
from egress_proxy.telemetry.process import read_process
from egress_proxy.telemetry.sessions import parse_query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from egress_proxy.telemetry.sessions import Query, SessionList
    from egress_proxy.telemetry.status import Check, Status

MAX_CLIENTS = 16
# For a request's line and headers together, in bytes; a browser sends about 1000.
_MAX_REQUEST = 8192
# For a whole request: a kubelet's probe waits 1 s by default, a scrape of Prometheus 10 s.
_TIMEOUT_S = 10.0
_BACKLOG = 64
# No scrape is more frequent, and the page asks every 2 s.
_FRESH_S = 1.0
# The metrics of a thousand destinations are 2 MB, their status is 0.5 MB.
MAX_WAITING = 8 << 20
# What the transport and the kernel hold of an answer, each.
_SEND_BUFFER = 1 << 16
# How long a client that sends a body may take to read the answer and close.
_LINGER_S = 1.0

_PAGE = Path(__file__).with_name("status.html")

T = TypeVar("T")


class StatusSource(Protocol):
    """Where the pages get their content."""

    @property
    def down(self) -> Sequence[str]: ...

    def readiness(self) -> tuple[Check, ...]: ...

    async def sessions(self, query: Query) -> SessionList | None: ...

    async def take(self) -> Status: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request."""

    status: int
    content_type: str
    body: bytes
    more: tuple[tuple[str, str], ...] = ()


class Site(Protocol):
    """What a server serves."""

    async def answer(self, method: str, target: str) -> Answer: ...

    async def stop(self) -> None: ...


class Shared(Generic[T]):
    """The result of `make`: made at most once per `fresh_s`, and shared by all callers."""

    def __init__(self, make: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._make = make
        self._fresh_s = fresh_s
        self._task: asyncio.Task[T] | None = None
        self._started_at = 0.0

    async def get(self) -> T:
        """Raises what `make` raises; the next call starts it again."""
        now = asyncio.get_running_loop().time()
        task = self._task
        if task is None or (
            task.done() and (task.exception() or now - self._started_at >= self._fresh_s)
        ):
            task = self._task = asyncio.create_task(self._run(), name="make a page")
            self._started_at = now
        # If one caller is cancelled, the others still need the result.
        return await asyncio.shield(task)

    async def _run(self) -> T:
        return await self._make()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


class Pages:
    """The answer to each path."""

    def __init__(self, source: StatusSource, *, fresh_s: float = _FRESH_S) -> None:
        self._source = source
        self._page = _PAGE.read_bytes()
        self._policy = _policy(self._page)
        self._sessions_lock = asyncio.Lock()
        status = self._status = Shared(source.take, fresh_s)
        self._metrics_text = Shared(lambda: _metrics_text(status), fresh_s)
        self._status_text = Shared(lambda: self._encode_status(status), fresh_s)
        self._paths: dict[str, Callable[[str], Awaitable[Answer]]] = {
            "/": self._status_page,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/status.json": self._status_json,
            "/sessions.json": self._sessions_json,
        }

    async def answer(self, method: str, target: str) -> Answer:
        """The answer to a request."""
        path, _, query = target.partition("?")
        page = self._paths.get(path)
        if page is None:
            return _text(404, f"there are {' '.join(self._paths)}")
        if method not in ("GET", "HEAD"):
            return _text(405, "nothing can be changed here", (("Allow", "GET, HEAD"),))
        return await page(query)

    async def stop(self) -> None:
        for shared in (self._metrics_text, self._status_text, self._status):
            await shared.stop()

    async def _livez(self, _query: str) -> Answer:
        down = self._source.down
        if down:
            return _text(503, "\n".join(f"not running: {name}" for name in down))
        return _text(200, "ok")

    async def _readyz(self, query: str) -> Answer:
        checks = self._source.readiness()
        problems = [problem for check in checks for problem in check.problems]
        verbose = "verbose" in query.split("&")
        lines = _verbose(checks) if verbose else problems or ["ok"]
        return _text(503 if problems else 200, "\n".join(lines))

    async def _metrics(self, _query: str) -> Answer:
        return Answer(200, metrics.CONTENT_TYPE, await self._metrics_text.get())

    async def _status_json(self, _query: str) -> Answer:
        return Answer(200, "application/json", await self._status_text.get())

    async def _sessions_json(self, query: str) -> Answer:
        try:
            wanted = parse_query(query)
        except ValueError as error:
            return _text(400, str(error))
        # One after the other: each looks at all connections.
        async with self._sessions_lock:
            found = await self._source.sessions(wanted)
        if found is None:
            return _text(403, "EGRESS_DNS_PROXY_ADMIN_SESSIONS is off: sessions are not listed")
        return Answer(200, "application/json", msgspec.json.encode(found))

    async def _encode_status(self, status: Shared[Status]) -> bytes:
        # A thousand destinations take less than a millisecond.
        return msgspec.json.encode(
            {"ready": self._source.readiness(), "status": await status.get()}
        )

    async def _status_page(self, _query: str) -> Answer:
        policy = ("Content-Security-Policy", self._policy)
        return Answer(200, "text/html; charset=utf-8", self._page, (policy,))


async def _metrics_text(status: Shared[Status]) -> bytes:
    # Before Linux 6.2 counting the descriptors of many connections takes milliseconds.
    process = await asyncio.to_thread(read_process)
    return await join_in_turns(metrics.exposition(await status.get(), process))


async def join_in_turns(parts: Iterable[bytes]) -> bytes:
    """`parts` as one, with a turn of the event loop after each."""
    made = []
    for part in parts:
        made.append(part)
        await asyncio.sleep(0)
    return b"".join(made)


def _text(status: int, text: str, more: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), more)


def _verbose(checks: Iterable[Check]) -> list[str]:
    """One line per condition and problem, in the form of Kubernetes' own components."""
    lines = []
    for check in checks:
        lines += [f"[-]{check.name} failed: {problem}" for problem in check.problems]
        lines += [f"[!]{check.name} warning: {warning}" for warning in check.warnings]
        if not check.problems and not check.warnings:
            lines.append(f"[+]{check.name} ok")
    return lines


def _policy(page: bytes) -> str:
    """The browser may run the script and style of `page`, and send requests to this port."""

    def digest(tag: bytes) -> str:
        inside = page.partition(b"<" + tag + b">")[2].partition(b"</" + tag + b">")[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(inside).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class AdminServer:
    """Serves `pages` on sockets that are bound already."""

    def __init__(self, pages: Site, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._pages = pages
        self._timeout_s = timeout_s
        self._servers: list[asyncio.Server] = []
        # In the order in which they connected, with the answer that each has not read yet.
        self._clients: dict[asyncio.Task[None], bytes] = {}

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        for sock in sockets:
            # Accepted sockets inherit it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._servers.append(
                await asyncio.start_server(
                    self._serve, sock=sock, backlog=_BACKLOG, limit=_MAX_REQUEST
                )
            )

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await self._pages.stop()

    @property
    def waiting(self) -> int:
        """Bytes of answers that have not been read; one that is shared counts once."""
        return sum(map(len, {id(body): body for body in self._clients.values()}.values()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of start_server's runs in one
        while len(self._clients) >= MAX_CLIENTS:
            self._reset_oldest()
        self._clients[task] = b""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._converse(task, reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            # Too slow, gone, or one too many: with a RST nothing waits in the kernel to be read.
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        finally:
            self._clients.pop(task, None)
            writer.transport.abort()

    def _reset_oldest(self) -> None:
        oldest = next(iter(self._clients))
        del self._clients[oldest]
        oldest.cancel()

    async def _converse(
        self,
        task: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST)
        try:
            method, answer = await self._read_request(connection, reader)
        except h11.RemoteProtocolError as error:
            method, answer = "GET", _text(error.error_status_hint, "not a request for this server")
        writer.write(_head(connection, answer))
        if method != "HEAD":
            await self._send(task, writer, answer.body)
        await writer.drain()
        writer.write_eof()
        # Closing while there are unread bytes sends a RST, which may destroy the answer on its way
        # (RFC 9112 section 9.6). What a client sends after its request is not read: that costs
        # nothing.
        if await reader.read(_MAX_REQUEST):
            await asyncio.sleep(_LINGER_S)

    async def _read_request(
        self, connection: h11.Connection, reader: asyncio.StreamReader
    ) -> tuple[str, Answer]:
        """The request's method, and the answer to it. Raises `h11.RemoteProtocolError`."""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_MAX_REQUEST))
            elif isinstance(event, h11.Request):
                method = event.method.decode("ascii")
                return method, await self._pages.answer(method, event.target.decode("ascii"))
            else:
                raise ConnectionResetError

    async def _send(
        self, task: asyncio.Task[None], writer: asyncio.StreamWriter, body: bytes
    ) -> None:
        """Send `body` as fast as the client reads it."""
        self._clients[task] = body
        while self.waiting > MAX_WAITING and next(iter(self._clients)) is not task:
            self._reset_oldest()
        rest = memoryview(body)
        while rest:
            writer.write(rest[:_SEND_BUFFER])
            rest = rest[_SEND_BUFFER:]
            await writer.drain()


def _head(connection: h11.Connection, answer: Answer) -> bytes:
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *answer.more,
    ]
    response = h11.Response(
        status_code=answer.status, headers=headers, reason=HTTPStatus(answer.status).phrase
    )
    return connection.send(response) or b""
