"""Clients of a Service that come one after the other, and the remote host that answers them.

A client connects, sends an octet and waits for one: it is served, or it failed. Each has a place in
the order of time, so that a test knows who waited how long.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from tests.support.network import Namespace

# A client that is not served by then has failed.
PATIENCE_S = 15.0
# How often that is looked at: hundreds may wait.
_LOOK_S = 0.1


class _Thread:
    """Runs until it is left; what it raises is raised there."""

    def __init__(self, name: str) -> None:
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - raised again where the test sees it
            self._failure = error

    def _run(self) -> None:
        raise NotImplementedError


class Remote(_Thread):
    """Answers each client of `listener` with an octet; `sources` are their addresses."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__("remote")
        self.sources: set[str] = set()
        self._listener = listener

    def _run(self) -> None:
        # All that waited in a pod come at once.
        self._listener.listen(socket.SOMAXCONN)
        self._listener.settimeout(0.1)
        while not self._ended.is_set():
            try:
                accepted, address = self._listener.accept()
            except TimeoutError:
                continue
            self.sources.add(address[0])
            with accepted:
                accepted.settimeout(1)
                try:
                    accepted.recv(1)
                    accepted.sendall(b"!")
                except OSError:
                    # The pod in between has ended.
                    continue


@dataclass(slots=True)
class Client:
    """One attempt; `error` is empty while it waits and once it is served."""

    began_at: float
    ended_at: float | None = None
    error: str = ""

    @property
    def wait_s(self) -> float:
        return (self.ended_at or monotonic()) - self.began_at


class Clients(_Thread):
    """One client every `interval_s` from `namespace` to `address`."""

    def __init__(
        self, namespace: Namespace, address: tuple[str, int], interval_s: float = 0.02
    ) -> None:
        super().__init__("clients")
        self.all: list[Client] = []
        self._namespace = namespace
        self._address = address
        self._interval_s = interval_s
        self._look_at = 0.0
        self._selector = selectors.DefaultSelector()

    @property
    def failed(self) -> list[Client]:
        return [client for client in self.all if client.error]

    @property
    def served(self) -> int:
        return sum(client.ended_at is not None and not client.error for client in self.all)

    def _run(self) -> None:
        self._namespace.enter()
        next_at = monotonic()
        try:
            while not self._ended.is_set():
                now = monotonic()
                if now >= next_at:
                    next_at += self._interval_s
                    self._begin(now)
                for key, _ in self._selector.select(max(next_at - monotonic(), 0)):
                    self._go_on(*key.data)
                self._give_up()
        finally:
            for key in list(self._selector.get_map().values()):
                key.data[0].close()
            self._selector.close()

    def _begin(self, now: float) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET)
        sock.setblocking(False)
        client = Client(now)
        self.all.append(client)
        self._selector.register(sock, selectors.EVENT_WRITE, (sock, client))
        error = sock.connect_ex(self._address)
        if error not in (0, errno.EINPROGRESS):
            self._end(sock, client, errno.errorcode[error])

    def _go_on(self, sock: socket.socket, client: Client) -> None:
        try:
            if self._selector.get_key(sock).events == selectors.EVENT_WRITE:
                sock.send(b"?")
                self._selector.modify(sock, selectors.EVENT_READ, (sock, client))
            else:
                self._end(sock, client, "" if sock.recv(1) else "no answer")
        except OSError as error:
            self._end(sock, client, errno.errorcode.get(error.errno or 0, str(error)))

    def _give_up(self) -> None:
        now = monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        for key in list(self._selector.get_map().values()):
            sock, client = key.data
            if now - client.began_at > PATIENCE_S:
                self._end(sock, client, "not served")

    def _end(self, sock: socket.socket, client: Client, error: str) -> None:
        self._selector.unregister(sock)
        sock.close()
        client.ended_at, client.error = monotonic(), error
