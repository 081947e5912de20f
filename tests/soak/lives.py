"""Random lives of connections: both ends check every octet and every ending.

The claim that holds whatever fails: a stream that ends with a FIN is whole. One that ends with a
RST or falls silent may have lost its end, and says so by that.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.support.peers import reset

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# The octet at position n of a stream is NOISE[n % len(NOISE)], so that a lost or doubled one shows.
NOISE = random.Random(0).randbytes(1 << 20)  # noqa: S311 - test data
_NOISE_TWICE = memoryview(NOISE * 2)
_HEADER = struct.Struct("!I")
_SIZES = (0, 1, 100, 5_000, 65_536, 1 << 18, 3 << 20)
_CHUNK = 1 << 16
# A slow reader takes so little at a time, and rests after each.
_SLOW_CHUNK = 1 << 14
_SLOW_PAUSE_S = 0.005
# linux/tcp.h
_TCP_CLOSE = 7
# A life that hangs longer, because a RST was lost with the link, is abandoned.
_PATIENCE_S = 20.0

Kind = Literal["duplex", "client first", "upstream first", "client resets", "upstream resets"]
_KINDS: tuple[Kind, ...] = (
    "duplex",
    "client first",
    "upstream first",
    "client resets",
    "upstream resets",
)


class Violation(AssertionError):  # noqa: N818 - it is no error of this program
    """The command broke its promise."""


@dataclass(slots=True)
class Plan:
    """What both ends do; `to_upstream` and `to_client` are octets."""

    kind: Kind
    to_upstream: int
    to_client: int
    slow: bool

    @classmethod
    def of(cls, dice: random.Random) -> Plan:
        return cls(
            kind=dice.choice(_KINDS),
            to_upstream=dice.choice(_SIZES),
            to_client=dice.choice(_SIZES),
            slow=dice.random() < 0.2,
        )


class End:
    """One end of a connection; `finished` once it has sent its FIN after `planned` octets."""

    def __init__(self, sock: socket.socket, planned: int, *, slow: bool) -> None:
        self.sock = sock
        self.planned = planned
        self.finished = False
        self._slow = slow
        self._loop = asyncio.get_running_loop()

    async def send(self, count: int) -> None:
        sent = 0
        while sent < count:
            start = sent % len(NOISE)
            chunk = _NOISE_TWICE[start : start + min(_CHUNK, count - sent)]
            await self._loop.sock_sendall(self.sock, chunk)
            sent += len(chunk)

    async def finish(self) -> None:
        await self.send(self.planned)
        # Before the call, which the other end may notice first.
        self.finished = True
        self.sock.shutdown(socket.SHUT_WR)

    async def read(self, sender: Callable[[], End | None]) -> None:
        """Read to the end of the stream, which must be what the sender sent."""
        count = 0
        while octets := await self._loop.sock_recv(
            self.sock, _SLOW_CHUNK if self._slow else _CHUNK
        ):
            start = count % len(NOISE)
            if octets != _NOISE_TWICE[start : start + len(octets)]:
                raise Violation(f"other octets than were sent, after {count}")
            count += len(octets)
            if self._slow:
                await asyncio.sleep(_SLOW_PAUSE_S)
        if self._was_reset():
            raise ConnectionResetError
        end = sender()
        if end is None or not end.finished or count != end.planned:
            raise Violation(f"a FIN after {count} octets, and the sender had not finished there")

    def _was_reset(self) -> bool:
        """Whether the end that was read is a RST whose error the kernel has reported to a send."""
        state = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return not self.finished and state == _TCP_CLOSE


class Lives:
    """Lives clients through `connect` with upstreams that `serve` takes; `ended` counts them."""

    def __init__(self, dice: random.Random) -> None:
        self.ended: Counter[str] = Counter()
        self.violations: list[str] = []
        self._dice = dice
        self._number = 0
        self._plans: dict[int, Plan] = {}
        self._clients: dict[int, End] = {}
        self._upstreams: dict[int, End] = {}

    async def live(
        self, connect: Callable[[], Awaitable[socket.socket]], plan: Plan | None = None
    ) -> bool:
        """One client's life; whether it went as planned."""
        self._number += 1
        number, plan = self._number, plan or Plan.of(self._dice)
        self._plans[number] = plan
        try:
            async with asyncio.timeout(_PATIENCE_S):
                sock = await connect()
                with sock:
                    await self._be_client(sock, number, plan)
            outcome = "as planned"
        except TimeoutError:
            outcome = "abandoned"
        except OSError:
            outcome = "reset"
        except Violation as violation:
            self.violations.append(f"client, {plan}: {violation}")
            outcome = "violation"
        self.ended[outcome] += 1
        return outcome == "as planned"

    async def _be_client(self, sock: socket.socket, number: int, plan: Plan) -> None:
        end = self._clients[number] = End(sock, plan.to_upstream, slow=plan.slow)
        try:
            await asyncio.get_running_loop().sock_sendall(sock, _HEADER.pack(number))
            if plan.kind == "client resets":
                await end.send(plan.to_upstream // 2)
                reset(sock)
                return
            await self._converse(
                end, lambda: self._upstreams.get(number), first=plan.kind != "upstream first"
            )
        except BaseException:
            _reset_quietly(sock)
            raise

    async def serve(self, sock: socket.socket) -> None:
        """The upstream's part of a life."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                with sock:
                    await self._be_upstream(sock)
        except (TimeoutError, OSError):
            pass
        except Violation as violation:
            self.violations.append(f"upstream: {violation}")

    async def _be_upstream(self, sock: socket.socket) -> None:
        loop, header = asyncio.get_running_loop(), b""
        try:
            while len(header) < _HEADER.size:
                octets = await loop.sock_recv(sock, _HEADER.size - len(header))
                header += octets or _refuse_fin()
            (number,) = _HEADER.unpack(header)
            plan = self._plans[number]
            end = self._upstreams[number] = End(sock, plan.to_client, slow=plan.slow)
            if plan.kind == "upstream resets":
                await end.send(plan.to_client // 2)
                reset(sock)
                return
            await self._converse(
                end, lambda: self._clients.get(number), first=plan.kind != "client first"
            )
        except BaseException:
            _reset_quietly(sock)
            raise

    async def _converse(self, end: End, other: Callable[[], End | None], *, first: bool) -> None:
        """Send and read: at once, or only once the other side has finished."""
        if first:
            tasks = [asyncio.create_task(end.finish()), asyncio.create_task(end.read(other))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        else:
            await end.read(other)
            await end.finish()


def _refuse_fin() -> bytes:
    raise Violation("a FIN before the first octet of a client")


def _reset_quietly(sock: socket.socket) -> None:
    """Prevents a FIN, which would mean a complete transfer."""
    if sock.fileno() >= 0:
        reset(sock)
