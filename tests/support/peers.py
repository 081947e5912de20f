"""The two ends of a relayed connection, as a test plays them."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Self

# Small, so that a test need not send megabytes to stall a direction.
BUFFER = 16 * 1024
# include/net/tcp_states.h
_TCP_ESTABLISHED = 1


def reset(sock: socket.socket) -> None:
    """Close with a RST (SO_LINGER in socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Peer:
    """One end: a non-blocking socket on the running loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> Self:
        peer = cls.unconnected(":" in address[0])
        try:
            await peer._loop.sock_connect(peer.sock, address)
        except BaseException:
            peer.close()
            raise
        return peer

    @classmethod
    def unconnected(cls, ipv6: bool = False) -> Self:
        sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        return cls(sock)

    @property
    def connected(self) -> bool:
        """Whether the kernel has this end connected: no RST has come (tcpi_state, linux/tcp.h)."""
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_ESTABLISHED

    async def send(self, octets: bytes) -> None:
        await self._loop.sock_sendall(self.sock, octets)

    def send_what_fits(self, octets: bytes | memoryview) -> int:
        """Send without waiting; the number of octets that the kernel took."""
        try:
            return self.sock.send(octets)
        except BlockingIOError:
            return 0

    async def receive(self, count: int) -> bytes:
        """Exactly `count` octets; fewer only before the end of the stream."""
        received = bytearray()
        while len(received) < count:
            octets = await self._loop.sock_recv(self.sock, count - len(received))
            if not octets:
                break
            received += octets
        return bytes(received)

    async def receive_all(self) -> tuple[bytes, bool]:
        """Everything until the stream ends, and whether it ended with a reset."""
        received = bytearray()
        while True:
            try:
                octets = await self._loop.sock_recv(self.sock, 1 << 16)
            except (ConnectionResetError, BrokenPipeError):
                return bytes(received), True
            if not octets:
                return bytes(received), False
            received += octets

    def finish(self) -> None:
        """Send a FIN; go on receiving."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send a RST and close."""
        reset(self.sock)

    def close(self) -> None:
        self.sock.close()


class Listener:
    """An upstream that accepts."""

    def __init__(self, address: str = "127.0.0.1", backlog: int = 128, port: int = 0) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.sock.bind((address, port))
        self.sock.listen(backlog)
        self.address: tuple[str, int] = self.sock.getsockname()[:2]

    async def accept(self) -> Peer:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        return Peer(sock)

    def close(self) -> None:
        self.sock.close()
