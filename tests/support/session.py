"""A client and the upstream that another process has connected it to, as a test plays both."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

from tests.support.waiting import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator


class Session:
    """Two blocking sockets, closed at the end of a ``with`` block.

    It is also the two of them, for ``client, upstream = session``.
    """

    def __init__(self, client: socket.socket, upstream: socket.socket) -> None:
        self.client = client
        self.upstream = upstream

    @classmethod
    def on_loopback(cls, port: int, listener: socket.socket) -> Self:
        """A new client of 127.0.0.1 and `port`, and the upstream that reaches `listener` then."""
        client = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        return cls.accepted(client, listener)

    @classmethod
    def accepted(cls, client: socket.socket, listener: socket.socket) -> Self:
        """`client`, and the next upstream that reaches `listener`."""
        try:
            upstream, _ = listener.accept()
        except BaseException:
            client.close()
            raise
        upstream.settimeout(TIMEOUT_S)
        return cls(client, upstream)

    def __iter__(self) -> Iterator[socket.socket]:
        return iter((self.client, self.upstream))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self) -> None:
        self.client.sendall(b"?")

    def answer(self) -> None:
        assert self.upstream.recv(1) == b"?"
        self.upstream.sendall(b"!")
        assert self.client.recv(1) == b"!"

    def round_trip(self) -> None:
        """An octet there and one back: what was ready in the proxy before has had its turn."""
        self.ask()
        self.answer()

    def finish(self) -> None:
        """The client has said all, then the upstream has; each sees that of the other."""
        for one, other in ((self.client, self.upstream), (self.upstream, self.client)):
            one.shutdown(socket.SHUT_WR)
            assert other.recv(1) == b""
        self.close()

    def close(self) -> None:
        self.client.close()
        self.upstream.close()
