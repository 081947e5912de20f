"""A stand-in for the Kubernetes API server, as a process: leases and pods, and faults on demand.

``python -m tests.support.api_server FOLDER ADDRESS PORT`` serves TLS with the certificate in
FOLDER, and takes orders at ``FOLDER/control``: one JSON object per line, answered with one.
`tests.support.api_process` starts it and gives the orders.

An order has fields of `Faults`, which stay as they are until the next order, or one of these:
``compact`` makes watches start over; ``hang_up`` closes all connections; ``deaf`` makes the
watches that there are stand still for ever; ``port`` is answered with the port; ``requests`` with
all that was asked so far; ``ask`` is a request of the administrator, whom no fault concerns.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
import msgspec

from tests.support.api_http import Asked, next_request, send
from tests.support.api_selectors import Selector
from tests.support.api_store import Json, Place, StatusError, Store, target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BOOKMARK_S = 1.0
_MAX_WATCH_S = 600


@dataclass
class Faults:
    """What goes wrong. `cut` are the client addresses that get no answer; none is everybody.

    `silent`: requests are read and not answered, watches stand still, as in a network that drops.
    `delay_s`: before each request is carried out. `lose`: so many writes are carried out and their
    connections closed without an answer. `busy`: so many requests are refused for a second.
    `drop`: so many requests end their connection, without having been carried out. `broken`: so
    many are answered with 500. `tokens`: those that are good.
    """

    silent: bool = False
    cut: tuple[str, ...] = ()
    delay_s: float = 0.0
    lose: int = 0
    busy: int = 0
    drop: int = 0
    broken: int = 0
    tokens: tuple[str, ...] = ("token",)

    def mute(self, client: str) -> bool:
        return self.silent or client in self.cut


@dataclass
class StandIn:
    """All that connections share; `news` is replaced and set at every change."""

    store: Store = field(default_factory=Store)
    faults: Faults = field(default_factory=Faults)
    asked: list[Json] = field(default_factory=list)
    clients: dict[int, asyncio.StreamWriter] = field(default_factory=dict)
    watches: set[int] = field(default_factory=set)
    deaf: set[int] = field(default_factory=set)
    connections: int = 0
    port: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, to its end."""
        self.connections += 1
        number, client = self.connections, writer.get_extra_info("peername")[0]
        self.clients[number] = writer
        with contextlib.suppress(OSError, h11.RemoteProtocolError):
            http = h11.Connection(h11.SERVER)
            while (asked := await next_request(http, reader, client, number)) is not None:
                if not await self._answer(http, writer, asked):
                    break
                http.start_next_cycle()
        writer.transport.abort()
        del self.clients[number]
        self.watches.discard(number)

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The orders of a test."""
        while line := await reader.readline():
            order = msgspec.json.decode(line)
            answer: Any = {}
            if order.pop("hang_up", False):
                doomed = list(self.clients.values())
                for client in doomed:
                    client.transport.abort()
                await asyncio.gather(*(it.wait_closed() for it in doomed), return_exceptions=True)
            if order.pop("deaf", False):
                self.deaf |= self.watches
            if order.pop("compact", False):
                self.store.compact()
            if order.pop("port", False):
                answer = self.port
            if order.pop("requests", False):
                answer = self.asked
            if (asked := order.pop("ask", None)) is not None:
                answer = self._serve_administrator(asked)
            self.faults = msgspec.convert(vars(self.faults) | order, Faults)
            self.wake()
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        writer.close()

    def _serve_administrator(self, asked: Json) -> Json:
        headers = {"content-type": asked["type"]}
        body = msgspec.json.encode(asked["body"]) if asked["body"] is not None else b""
        try:
            status, answer = self._carry_out(
                Asked("", 0, asked["method"], asked["path"], {}, headers, body)
            )
        except StatusError as error:
            status, answer = error.code, error.status()
        return {"status": status, "body": answer}

    async def _answer(
        self, http: h11.Connection, writer: asyncio.StreamWriter, asked: Asked
    ) -> bool:
        """Whether the connection lives on."""
        await self._until_heard(asked)
        await asyncio.sleep(self.faults.delay_s)
        watched = asked.query.get("watch") in ("1", "true")
        self.asked.append(
            {
                "client": asked.client,
                "connection": asked.connection,
                "method": asked.method,
                "path": asked.path,
                "query": asked.query,
                "agent": asked.headers.get("user-agent", ""),
            }
        )
        if self.faults.drop > 0:
            self.faults.drop -= 1
            return False
        try:
            self._authorize(asked)
            if watched:
                self.watches.add(asked.connection)
                await self._watch(http, writer, asked)
                return False
            status, body = self._carry_out(asked)
        except StatusError as error:
            status, body = error.code, error.status()
        if asked.method != "GET" and self.faults.lose > 0:
            self.faults.lose -= 1
            return False
        await self._until_heard(asked)
        await send(http, writer, status, msgspec.json.encode(body))
        return True

    async def _until_heard(self, asked: Asked) -> None:
        while self.faults.mute(asked.client) or asked.connection in self.deaf:
            await self.news.wait()

    def _authorize(self, asked: Asked) -> None:
        kind, _, token = asked.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or token not in self.faults.tokens:
            raise StatusError(401, "Unauthorized", "Unauthorized")
        if self.faults.busy > 0:
            self.faults.busy -= 1
            raise StatusError(429, "TooManyRequests", "too many requests, try again later")
        if self.faults.broken > 0:
            self.faults.broken -= 1
            raise StatusError(500, "InternalError", "etcdserver: request timed out")

    def _carry_out(self, asked: Asked) -> tuple[int, Json]:
        place, name, subresource = target(asked.path)
        version = self.store.version
        try:
            answer = self._operate(asked, place, name, subresource)
        finally:
            if self.store.version != version:
                self.wake()
        return answer

    def _operate(self, asked: Asked, place: Place, name: str, subresource: str) -> tuple[int, Json]:
        body = _body(asked)
        match asked.method, bool(name), subresource:
            case "GET", True, "":
                return 200, self.store.get(place, name)
            case "GET", False, "":
                items = self.store.select(place, _selector(asked))
                metadata = {"resourceVersion": str(self.store.version)}
                return 200, {"kind": "List", "metadata": metadata, "items": items}
            case "POST", False, "":
                return 201, self.store.create(place, body)
            case "PUT", True, "":
                return 200, self.store.update(place, name, body)
            case "PATCH", True, "status":
                if asked.headers.get("content-type") != "application/merge-patch+json":
                    raise StatusError(415, "UnsupportedMediaType", "only merge patches")
                return 200, self.store.patch_status(place, name, body)
            case "DELETE", True, "":
                grace_s = body.get("gracePeriodSeconds", 30)
                return 200, self.store.delete(place, name, grace_s=grace_s)
        raise StatusError(405, "MethodNotAllowed", "the server does not allow this method")

    async def _watch(
        self, http: h11.Connection, writer: asyncio.StreamWriter, asked: Asked
    ) -> None:
        place, _, _ = target(asked.path)
        selector = _selector(asked)
        version = int(asked.query.get("resourceVersion") or 0)
        limit_s = min(int(asked.query.get("timeoutSeconds") or _MAX_WATCH_S), _MAX_WATCH_S)
        headers = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
        writer.write(http.send(h11.Response(status_code=200, headers=headers)) or b"")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                async for event in self._events(place, selector, version, asked):
                    line = msgspec.json.encode(event) + b"\n"
                    writer.write(http.send(h11.Data(data=line)) or b"")
                    await writer.drain()
        writer.write(http.send(h11.EndOfMessage()) or b"")
        await writer.drain()

    async def _events(
        self, place: Place, selector: Selector, version: int, asked: Asked
    ) -> AsyncIterator[Json]:
        bookmarks = asked.query.get("allowWatchBookmarks") in ("1", "true")
        while True:
            await self._until_heard(asked)
            news = self.news
            try:
                changes = self.store.since(place, version)
            except StatusError as error:
                yield {"type": "ERROR", "object": error.status()}
                return
            for change in changes:
                version = change.version
                event = change.seen_by(selector)
                if event is not None:
                    yield event
            if news is not self.news:
                continue
            try:
                async with asyncio.timeout(_BOOKMARK_S):
                    await news.wait()
            except TimeoutError:
                await self._until_heard(asked)
                if bookmarks and news is self.news:
                    version = self.store.version
                    metadata = {"resourceVersion": str(version)}
                    yield {"type": "BOOKMARK", "object": {"metadata": metadata}}


def _selector(asked: Asked) -> Selector:
    try:
        return Selector.of(asked.query)
    except ValueError as error:
        raise StatusError(400, "BadRequest", str(error)) from error


def _body(asked: Asked) -> Json:
    if not asked.body:
        return {}
    try:
        return msgspec.json.decode(asked.body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise StatusError(400, "BadRequest", str(error)) from error


async def main(folder: Path, address: str, port: int) -> None:
    """Serve until killed; ``control`` is there once all the rest is."""
    server = StandIn()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    listening = await asyncio.start_server(server.serve, address, port, ssl=context)
    server.port = listening.sockets[0].getsockname()[1]
    await asyncio.start_unix_server(server.obey, folder / "control.new")
    # From here on it is there for a test that waits for it.
    (folder / "control.new").rename(folder / "control")
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
