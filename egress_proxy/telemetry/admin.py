"""The HTTP server of the admin port.

Read-only, one request per connection. Any host that reaches the pod may send requests, and no
request may take much time or memory:

- `MAX_CLIENTS` connections, a small request, a few seconds. If all are taken, the oldest is reset,
  so that many slow clients do not block the kubelet's probe.
- Answers that wait to be read hold `MAX_WAITING` bytes at most; the oldest are reset first.
- The body of a request is never read, beyond what came with its head.

h11 parses HTTP. What is answered, and what that costs, is in `pages`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import h11

from egress_proxy.telemetry.pages import Answer, text_answer

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_CLIENTS = 16
# For a request's line and headers together, in bytes; a browser sends about 1000.
_MAX_REQUEST = 8192
# For a whole request: a kubelet's probe waits 1 s by default, a scrape of Prometheus 10 s.
_TIMEOUT_S = 10.0
_BACKLOG = 64
# The metrics of a thousand destinations are 2 MB, their status is 0.5 MB.
MAX_WAITING = 8 << 20
# What the transport and the kernel hold of an answer, each.
_SEND_BUFFER = 1 << 16
# How long a client that sends a body may take to read the answer and close.
_LINGER_S = 1.0


class Site(Protocol):
    """What a server serves."""

    async def answer(self, method: str, target: str) -> Answer: ...

    async def stop(self) -> None: ...


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
            method, answer = (
                "GET",
                text_answer(error.error_status_hint, "not a request for this server"),
            )
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
