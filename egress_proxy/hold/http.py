"""HTTP/1.1 to the Kubernetes API server: one connection, one request at a time, over TLS.

h11 parses, asyncio transports. Left out: redirects, compression, pipelining, proxies and HTTP/2,
which the API server offers and does not need.

Trust boundary: the server is the cluster's, proven by its certificate. Still, no answer may be
larger than `MAX_BODY`, and the caller must limit every wait (``asyncio.timeout``). A request that
fails or is cancelled half way closes its connection: an answer that still arrives must not be taken
for the next one's.
"""

from __future__ import annotations

import asyncio
import select
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from egress_proxy.hold.api_server import ApiServer

# In octets: a list of a few hundred pods, and one event of a watch.
MAX_BODY = 8 * 1024 * 1024
# For an answer's status line and headers, in octets.
_MAX_HEAD = 64 * 1024
_READ = 64 * 1024
# The API server closes a connection that has been idle for 90 s; middle boxes for less.
MAX_IDLE_S = 30.0


class HttpError(Exception):
    """The connection broke, or the answer is not HTTP, or is too large.

    `unheard`: no octet of an answer came, for example because the server was closing the
    connection.
    """

    def __init__(self, reason: str, *, unheard: bool = False) -> None:
        super().__init__(reason)
        self.unheard = unheard


@dataclass(frozen=True, slots=True)
class Request:
    """A request; `body` is sent as `content_type`, and nothing where that is empty."""

    method: str
    target: str
    body: bytes = b""
    content_type: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.target.partition('?')[0]}"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; the names in `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One connection to an API server; `fresh` until its first request is sent."""

    def __init__(
        self,
        server: ApiServer,
        agent: str,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._server = server
        self._agent = agent
        self._reader, self._writer = streams
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._used_at = time.monotonic()
        self._heard = False
        self.fresh = True

    @classmethod
    async def open(cls, server: ApiServer, agent: str) -> Connection:
        """Connect. Raises OSError (with it, ssl.SSLError) or ValueError for a useless file."""
        streams = await asyncio.open_connection(
            server.host,
            server.port,
            ssl=server.tls(),
            server_hostname=server.host,
            local_addr=(server.source, 0) if server.source else None,
        )
        return cls(server, agent, streams)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: all was read, and the server has not closed.

        This asks the socket itself, because a process that was frozen has not seen the close yet.
        """
        if self._http.our_state is not h11.IDLE or self._writer.transport.is_closing():
            return False
        if time.monotonic() - self._used_at > MAX_IDLE_S:
            return False
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    def close(self) -> None:
        """Close at once, without waiting for the TLS shutdown, which may never come."""
        self._writer.transport.abort()

    async def exchange(self, request: Request) -> Answer:
        """Send `request` and read the answer to its end. Raises `HttpError`."""
        try:
            head = await self._ask(request)
            answer = Answer(head.status_code, _headers(head), await self._whole_body())
            self._finish()
        except BaseException:
            self.close()
            raise
        return answer

    async def stream(self, request: Request) -> tuple[Answer, AsyncIterator[bytes]]:
        """Send `request`; the answer's head, and its body's lines as they come.

        The body of an answer other than 200 is read whole, and there are no lines. The lines may
        raise `HttpError`; to stop reading them closes the connection.
        """
        try:
            head = await self._ask(request)
            body = b"" if head.status_code == HTTPStatus.OK else await self._whole_body()
        except BaseException:
            self.close()
            raise
        return Answer(head.status_code, _headers(head), body), self._lines()

    async def _ask(self, request: Request) -> h11.Response:
        self.fresh = False
        self._heard = False
        headers = [
            ("Host", self._server.authority),
            ("User-Agent", self._agent),
            ("Accept", "application/json"),
            ("Authorization", self._server.authorization()),
        ]
        if request.content_type:
            headers.append(("Content-Type", request.content_type))
            headers.append(("Content-Length", str(len(request.body))))
        octets = self._http.send(
            h11.Request(method=request.method, target=request.target, headers=headers)
        )
        octets += self._http.send(h11.Data(data=request.body)) if request.body else b""
        octets += self._http.send(h11.EndOfMessage())
        try:
            self._writer.write(octets)
            await self._writer.drain()
        except OSError as error:
            raise HttpError(_reason(error), unheard=True) from error
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise HttpError("the answer has no status line")

    async def _body(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    async def _whole_body(self) -> bytes:
        body = bytearray()
        async for data in self._body():
            body += data
            if len(body) > MAX_BODY:
                raise HttpError(f"the answer is larger than {MAX_BODY} octets")
        return bytes(body)

    async def _lines(self) -> AsyncIterator[bytes]:
        rest = bytearray()
        async for data in self._body():
            rest += data
            *lines, last = rest.split(b"\n")
            for line in lines:
                yield bytes(line)
            rest = last
            if len(rest) > MAX_BODY:
                raise HttpError(f"a line of the answer is larger than {MAX_BODY} octets")

    async def _next_event(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
                if isinstance(event, h11.Event):
                    return event
                data = await self._reader.read(_READ)
                self._http.receive_data(data)
            except h11.RemoteProtocolError as error:
                raise HttpError(str(error), unheard=not self._heard) from error
            except OSError as error:
                raise HttpError(_reason(error), unheard=not self._heard) from error
            self._heard = self._heard or bool(data)

    def _finish(self) -> None:
        """Make ready for the next request, if the server keeps the connection open."""
        self._used_at = time.monotonic()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()


def _headers(head: h11.Response) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in head.headers}


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
