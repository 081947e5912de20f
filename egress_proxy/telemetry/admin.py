"""Health, metrics and the status page, over HTTP.

Read only, one request a connection. Whoever reaches the pod may ask, so a client is given little:
`MAX_CLIENTS` connections, a small request, a few seconds. When all are taken the one that has been
there longest goes: a crowd of slow clients can't keep the kubelet's probe out.

HTTP is h11's to judge; no octet of a request comes back in an answer.
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
from typing import TYPE_CHECKING, Protocol

import h11
import msgspec

from egress_proxy.telemetry import metrics
from egress_proxy.telemetry.status import Check, Status, readiness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_CLIENTS = 16
# For a request's line and headers together, in octets; a browser sends about 1000.
_MAX_REQUEST = 8192
# For everything: a kubelet's probe waits 1 s by default, Prometheus scrapes for 10 s.
_TIMEOUT_S = 10.0
_BACKLOG = 64

_PAGE = Path(__file__).with_name("status.html")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path has to say."""

    status: int
    content_type: str
    body: bytes
    more: tuple[tuple[str, str], ...] = ()


class Site(Protocol):
    """What the server serves."""

    def answer(self, method: str, target: str) -> Answer: ...


class Pages:
    """The answer to each path; `take` makes a snapshot."""

    def __init__(self, take: Callable[[], Status]) -> None:
        self._take = take
        self._page = _PAGE.read_bytes()
        self._policy = _policy(self._page)
        self._paths: dict[str, Callable[[str], Answer]] = {
            "/": self._status_page,
            "/livez": lambda _query: _text(200, "ok"),
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/status.json": self._status_json,
        }

    def answer(self, method: str, target: str) -> Answer:
        """The answer to a request."""
        path, _, query = target.partition("?")
        page = self._paths.get(path)
        if page is None:
            return _text(404, f"there are {' '.join(self._paths)}")
        if method not in ("GET", "HEAD"):
            return _text(405, "nothing can be changed here", (("Allow", "GET, HEAD"),))
        return page(query)

    def _readyz(self, query: str) -> Answer:
        checks = readiness(self._take())
        problems = [problem for check in checks for problem in check.problems]
        verbose = "verbose" in query.split("&")
        lines = _verbose(checks) if verbose else problems or ["ok"]
        return _text(503 if problems else 200, "\n".join(lines))

    def _metrics(self, _query: str) -> Answer:
        return Answer(200, metrics.CONTENT_TYPE, metrics.exposition(self._take()))

    def _status_json(self, _query: str) -> Answer:
        status = self._take()
        told = {"ready": readiness(status), "status": status}
        return Answer(200, "application/json", msgspec.json.encode(told))

    def _status_page(self, _query: str) -> Answer:
        policy = ("Content-Security-Policy", self._policy)
        return Answer(200, "text/html; charset=utf-8", self._page, (policy,))


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
    """What the browser may do with `page`: its own script and style, and asking here."""

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
        # In the order in which they came.
        self._clients: dict[asyncio.Task[None], None] = {}

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        self._servers = [
            await asyncio.start_server(self._serve, sock=sock, backlog=_BACKLOG, limit=_MAX_REQUEST)
            for sock in sockets
        ]

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of start_server's runs in one
        if len(self._clients) >= MAX_CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.cancel()
        self._clients[task] = None
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._converse(reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            # Too slow, gone, or one too many: nobody is left to be told, and nothing waits in
            # the kernel to be read.
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        finally:
            self._clients.pop(task, None)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST)
        try:
            method, answer = await self._hear(connection, reader)
        except h11.RemoteProtocolError as error:
            method, answer = "GET", _text(error.error_status_hint, "not a request for this server")
        writer.write(_answer(connection, method, answer))
        await writer.drain()
        writer.write_eof()
        # Closing with octets unread would send a RST, and the peer could lose the answer by that.
        while await reader.read(_MAX_REQUEST):
            pass

    async def _hear(
        self, connection: h11.Connection, reader: asyncio.StreamReader
    ) -> tuple[str, Answer]:
        """The request's method, and the answer to it. Raises `h11.RemoteProtocolError`."""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_MAX_REQUEST))
            elif isinstance(event, h11.Request):
                method = event.method.decode("ascii")
                return method, self._pages.answer(method, event.target.decode("ascii"))
            else:
                raise ConnectionResetError


def _answer(connection: h11.Connection, method: str, answer: Answer) -> bytes:
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *answer.more,
    ]
    head = (
        connection.send(
            h11.Response(
                status_code=answer.status, headers=headers, reason=HTTPStatus(answer.status).phrase
            )
        )
        or b""
    )
    return head if method == "HEAD" else head + answer.body
