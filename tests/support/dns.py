"""A scripted DNS server: a zone that a test changes while it runs, and a list of the queries.

It has one address, on UDP and TCP, and answers from `DnsServer.zone` alone; what the zone does not
have does not exist (NXDOMAIN). That, and what is empty, may be remembered for `NEGATIVE_TTL_S`, as
real zones say in their SOA record. An answer can be held back until the test lets it go, which is
also how a server falls silent. It knows no delegation, no EDNS and no types but A, AAAA and CNAME.
The wire format is dnspython's, so that it is not this project's idea of it.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import dns.flags
import dns.message
import dns.name
import dns.rrset
from dns.rcode import Rcode
from dns.rdatatype import RdataType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

Transport = Literal["udp", "tcp"]

# RFC 2308: for how long "no" may be remembered.
NEGATIVE_TTL_S = 300

# The largest UDP payload there is; a query is far smaller.
_DATAGRAM_BYTES = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """The entry of a name in the zone.

    `rcode` is said to questions of one kind, `failing`, or to all. `truncated` is over UDP only,
    and TCP has the whole answer.
    """

    a: tuple[str, ...] = ()
    aaaa: tuple[str, ...] = ()
    cname: str | None = None
    ttl_s: int = 30
    rcode: Rcode = Rcode.NOERROR
    failing: str | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """One question: `name` in lower case without its last dot, `kind` such as ``AAAA``."""

    name: str
    kind: str
    transport: Transport
    client: str = field(default="", compare=False)


def answer(
    request: dns.message.Message, zone: Mapping[str, Name], transport: Transport
) -> dns.message.Message:
    """The answer of `zone` to `request`, CNAMEs followed; the order of addresses is random."""
    response = dns.message.make_response(request)
    response.flags |= dns.flags.AA | dns.flags.RA
    owner, kind = request.question[0].name, request.question[0].rdtype
    for _ in range(len(zone) + 1):  # each name once: a circle of CNAMEs ends here
        entry = zone.get(_key(owner))
        if entry is None:
            response.set_rcode(Rcode.NXDOMAIN)
            break
        if entry.truncated and transport == "udp":
            response.flags |= dns.flags.TC
            break
        if entry.failing in {None, RdataType(kind).name}:
            response.set_rcode(entry.rcode)
        if entry.cname is None:
            texts = {RdataType.A: entry.a, RdataType.AAAA: entry.aaaa}.get(kind)
            if texts:
                response.answer.append(dns.rrset.from_text(owner, entry.ttl_s, "IN", kind, *texts))
            break
        alias = dns.name.from_text(entry.cname)
        response.answer.append(
            dns.rrset.from_text(owner, entry.ttl_s, "IN", RdataType.CNAME, alias.to_text())
        )
        owner = alias
    if not response.answer and response.rcode() in {Rcode.NOERROR, Rcode.NXDOMAIN}:
        soa = f"ns.invalid. admin.invalid. 1 3600 600 86400 {NEGATIVE_TTL_S}"
        response.authority.append(dns.rrset.from_text(".", NEGATIVE_TTL_S, "IN", "SOA", soa))
    return response


class DnsServer:
    """Serves on two bound sockets, `udp` and a listening `tcp`, and closes them at the end."""

    def __init__(self, udp: socket.socket, tcp: socket.socket) -> None:
        self.zone: dict[str, Name] = {}
        self.queries: list[Query] = []
        self._news = threading.Condition()
        self._held: dict[tuple[str, str | None], list[Callable[[], None]]] = {}
        self._closing = False
        self._sockets = [udp, tcp]
        self._threads: list[threading.Thread] = []
        self._udp = udp
        self._tcp = tcp
        self._spawn(self._serve_udp)
        self._spawn(self._serve_tcp)

    @classmethod
    def on_loopback(cls) -> Self:
        """A server on a free port of 127.0.0.1, see `address`."""
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(tcp.getsockname())
        return cls(udp, tcp)

    @property
    def address(self) -> str:
        """``ip:port``, as a list of name servers wants it."""
        ip, port = self._udp.getsockname()[:2]
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with self._news:
            self._closing = True
        for each in self._sockets:
            # Wakes the thread that waits in it; the kernel does so even where it then complains.
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def asked(self, name: str, kind: str | None = None) -> list[Query]:
        """The queries for `name` so far, of one `kind` or of all."""
        return [
            query for query in self.queries if query.name == name and kind in {None, query.kind}
        ]

    def wait_for(
        self, name: str, kind: str | None = None, *, times: int = 1, timeout_s: float = 10
    ) -> None:
        """Wait until `name` has been asked for so many times in all."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.asked(name, kind)) >= times, timeout_s):
                raise AssertionError(f"no query for {name} in {timeout_s} s, but {self.queries}")

    def hold(self, name: str, kind: str | None = None) -> None:
        """Keep back answers for `name`, of one `kind` or of all, until `release`."""
        with self._news:
            self._held.setdefault((name, kind), [])

    def release(self, name: str, kind: str | None = None) -> None:
        """Send the answers kept back, as the zone has them now, and hold no longer."""
        with self._news:
            replies = self._held.pop((name, kind))
        for reply in replies:
            reply()

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"DNS {self.address}")
        self._threads.append(thread)
        thread.start()

    def _serve_udp(self) -> None:
        while True:
            wire, client = self._udp.recvfrom(_DATAGRAM_BYTES)
            if self._closing:
                return
            self._receive(wire, "udp", client[0], partial(_send_to, self._udp, client))

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, client = self._tcp.accept()
            except OSError:  # shut down
                return
            with self._news:
                self._sockets.append(connection)
                if self._closing:
                    return
                self._spawn(partial(self._serve_connection, connection, client[0]))

    def _serve_connection(self, connection: socket.socket, client: str) -> None:
        with connection.makefile("rb") as stream, suppress(ConnectionError):
            # RFC 1035, 4.2.2: two octets of length before each message.
            while len(length := stream.read(2)) == struct.calcsize("!H"):
                wire = stream.read(*struct.unpack("!H", length))
                self._receive(wire, "tcp", client, partial(_send_framed, connection))

    def _receive(
        self, wire: bytes, transport: Transport, client: str, send: Callable[[bytes], None]
    ) -> None:
        request = dns.message.from_wire(wire)
        question = request.question[0]
        query = Query(_key(question.name), RdataType(question.rdtype).name, transport, client)

        def reply() -> None:
            # What fits a datagram is for the zone to say, not for the size that the client offers.
            send(answer(request, self.zone, transport).to_wire(max_size=_DATAGRAM_BYTES))

        with self._news:
            self.queries.append(query)
            self._news.notify_all()
            for kind in (None, query.kind):
                if (held := self._held.get((query.name, kind))) is not None:
                    held.append(reply)
                    return
        reply()


def _key(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _send_to(udp: socket.socket, client: tuple[str, int], wire: bytes) -> None:
    udp.sendto(wire, client)


def _send_framed(tcp: socket.socket, wire: bytes) -> None:
    with suppress(ConnectionError):  # a client that gave up waiting
        tcp.sendall(struct.pack("!H", len(wire)) + wire)
