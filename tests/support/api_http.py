"""HTTP/1.1 as the stand-in for the Kubernetes API server speaks it: requests in, answers out."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import h11

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True)
class Asked:
    """One request; `connection` is the number of the one that it came over."""

    client: str
    connection: int
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


async def next_request(
    http: h11.Connection, reader: asyncio.StreamReader, client: str, connection: int
) -> Asked | None:
    """The next request; None where the client has closed."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            target = urlsplit(request.target.decode())
            headers = {name.decode(): value.decode() for name, value in request.headers}
            query = dict(parse_qsl(target.query))
            method = request.method.decode()
            return Asked(client, connection, method, target.path, query, headers, bytes(body))
        else:
            return None


async def send(
    http: h11.Connection, writer: asyncio.StreamWriter, status: int, body: bytes
) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        headers.append(("Retry-After", "1"))
    for event in (
        h11.Response(status_code=status, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ):
        writer.write(http.send(event) or b"")
    await writer.drain()
