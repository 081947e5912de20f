"""The HTTP server of the admin port.

Read-only, one request per connection. Any host that reaches the pod may send requests, and no
request may take much time or memory:

- `MAX_CLIENTS` connections, a small request, a few seconds. If all are taken, the oldest is reset,
  so that many slow clients do not block the kubelet's probe.
- Answers that wait to be read hold `MAX_WAITING` bytes at most; the oldest are reset first.
- Large answers are limited to a rate, because sending them takes the relay's time. Probes, whose
  answers are small, are never refused.
- The body of a request is never read, beyond what came with its head.

h11 parses HTTP. What is answered, and what that costs, is in `pages`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from http import HTTPStatus
from time import monotonic
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
BACKLOG = 64
# The metrics of a thousand destinations are 2 MB, their status is 0.5 MB.
MAX_WAITING = 8 << 20
# What the transport and the kernel hold of an answer, each.
_SEND_BUFFER = 1 << 16
# For large answers, in bytes per second: 1 % of a core. This is the metrics of a thousand
# destinations 8 times per second.
LARGE_PER_S = 16 << 20
LARGE = 1 << 16
# How long a client that sends a body may take to read the answer and close.
_LINGER_S = 1.0


_TOO_MANY = text_answer(
    429, "too many large answers; ask again in a second", (("Retry-After", "1"),)
)


class Site(Protocol):
    """What a server serves."""

    async def answer(self, method: str, target: str) -> Answer: ...

    async def stop(self) -> None: ...


class Allowance:
    """`per_s` bytes per second, of which those of one second can be saved up.

    The last answer may exceed it, so an answer of any size can be sent; later ones wait for it.
    """

    def __init__(self, per_s: float, now: float) -> None:
        self._per_s = per_s
        self._saved = per_s
        self._at = now

    def take(self, size: int, now: float) -> bool:
        """Whether `size` bytes may be sent at `now` (seconds of a monotonic clock)."""
        self._saved = min(self._saved + (now - self._at) * self._per_s, self._per_s)
        self._at = now
        if self._saved <= 0:
            return False
        self._saved -= size
        return True


class AdminServer:
    """Serves `pages` on sockets that are bound already."""

    def __init__(
        self, pages: Site, *, timeout_s: float = _TIMEOUT_S, large_per_s: float = LARGE_PER_S
    ) -> None:
        self._pages = pages
        self._timeout_s = timeout_s
        self._allowance = Allowance(large_per_s, monotonic())
        self._servers: list[asyncio.Server] = []
        # In the order in which they connected, with the answer that each has not read yet.
        self._clients: dict[asyncio.Task[None], bytes] = {}

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        for sock in sockets:
            # Accepted sockets inherit it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._servers.append(
                await asyncio.start_server(
                    self._serve, sock=sock, backlog=BACKLOG, limit=_MAX_REQUEST
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
        except Exception as error:  # noqa: BLE001 - a defect, of which the loop's handler makes a record
            asyncio.get_running_loop().call_exception_handler(
                {"message": "the admin port could not answer", "exception": error}
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
        body = b"" if method == "HEAD" else answer.body
        if len(body) >= LARGE and not self._allowance.take(len(body), monotonic()):
            answer = _TOO_MANY
            body = answer.body
        await self._send(task, writer, _head(answer), body)
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
        self, task: asyncio.Task[None], writer: asyncio.StreamWriter, head: bytes, body: bytes
    ) -> None:
        """Send the answer as fast as the client reads it."""
        self._clients[task] = body
        while self.waiting > MAX_WAITING and next(iter(self._clients)) is not task:
            self._reset_oldest()
        writer.write(head + body[:_SEND_BUFFER])
        await writer.drain()
        rest = memoryview(body)[_SEND_BUFFER:]
        while rest:
            writer.write(rest[:_SEND_BUFFER])
            rest = rest[_SEND_BUFFER:]
            await writer.drain()


# RFC 9112 section 4. h11 would check the values, which are all this program's own, and take a third
# of the time of a whole request.
def _head(answer: Answer) -> bytes:
    headers = (
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *answer.more,
    )
    lines = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        *(f"{name}: {value}" for name, value in headers),
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")
