"""c-ares against a scripted name server: what is asked, in which order, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dns.rcode import Rcode

from egress_proxy.dns.answer import Answer, LookupFailedError
from egress_proxy.dns.resolver import MAX_ADDRESSES, Bounds, Resolver
from tests.support.dns import DnsServer, Name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.asyncio

NAME = "web.example.com"
BOUNDS = Bounds()
BOTH = {socket.AF_INET, socket.AF_INET6}


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer.on_loopback() as serving:
        yield serving


@pytest.fixture
def second() -> Iterator[DnsServer]:
    with DnsServer.on_loopback() as serving:
        yield serving


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


@asynccontextmanager
async def resolving(
    *servers: DnsServer, families: set[int] | None = None, bounds: Bounds = BOUNDS
) -> AsyncIterator[Resolver]:
    resolver = Resolver(
        tuple(server.address for server in servers), families or BOTH, bounds=bounds
    )
    try:
        yield resolver
    finally:
        await resolver.close()


async def asked(server: DnsServer, name: str) -> None:
    """Wait until `name` has been asked for."""
    await asyncio.to_thread(server.wait_for, name)


def addresses(answer: Answer) -> set[str]:
    return set(map(str, answer.addresses))


async def test_both_families_with_the_shortest_ttl(server: DnsServer) -> None:
    server.zone[NAME] = Name(a=("192.0.2.1", "192.0.2.2"), aaaa=("2001:db8::1",), ttl_s=77)
    async with resolving(server) as resolver:
        answer = await resolver.lookup(NAME)
    assert addresses(answer) == {"192.0.2.1", "192.0.2.2", "2001:db8::1"}
    assert answer.ttl_s == 77


async def test_without_an_ipv6_source_there_is_no_ipv6_query(server: DnsServer) -> None:
    server.zone[NAME] = Name(a=("192.0.2.1",), aaaa=("2001:db8::1",))
    async with resolving(server, families={socket.AF_INET}) as resolver:
        assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}
    assert {query.kind for query in server.queries} == {"A"}


async def test_a_chain_of_aliases_has_the_shortest_ttl(server: DnsServer) -> None:
    server.zone.update(
        {
            NAME: Name(cname="a.example.net", ttl_s=300),
            "a.example.net": Name(cname="b.example.net", ttl_s=7),
            "b.example.net": Name(a=("192.0.2.1",), ttl_s=600),
        }
    )
    async with resolving(server) as resolver:
        assert await resolver.lookup(NAME) == Answer((IPv4Address("192.0.2.1"),), 7)


async def test_sixty_addresses_that_fit_only_into_tcp(server: DnsServer) -> None:
    many = tuple(f"192.0.2.{number}" for number in range(1, 61))
    server.zone[NAME] = Name(a=many, truncated=True)
    async with resolving(server, families={socket.AF_INET}) as resolver:
        assert addresses(await resolver.lookup(NAME)) == set(many)
    assert [query.transport for query in server.asked(NAME)] == ["udp", "tcp"]


async def test_more_addresses_than_the_rotation_uses(server: DnsServer) -> None:
    many = tuple(str(ip_address(0xC6330000 + number)) for number in range(600))
    server.zone[NAME] = Name(a=many, truncated=True)
    async with resolving(server, families={socket.AF_INET}) as resolver:
        assert len((await resolver.lookup(NAME)).addresses) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Name(a=("192.0.2.1",), ttl_s=86400), Name(a=("192.0.2.2",))),
        (Name(), Name(a=("192.0.2.2",))),
        (None, Name(a=("192.0.2.2",))),
    ],
    ids=["a long TTL", "an empty answer", "no such name"],
)
async def test_a_change_is_seen_with_the_next_question(
    server: DnsServer, before: Name | None, after: Name
) -> None:
    """c-ares would remember each of them for minutes."""
    if before is not None:
        server.zone[NAME] = before
    at_once = Bounds(forget_s=0.0)
    async with resolving(server, families={socket.AF_INET}, bounds=at_once) as resolver:
        await asyncio.gather(resolver.lookup(NAME), return_exceptions=True)
        server.zone[NAME] = after
        answer = None
        while answer is None or addresses(answer) != {"192.0.2.2"}:
            # The cache is emptied by a thread of c-ares, which nothing tells the end of.
            (answer,) = await asyncio.gather(lookup_or_none(resolver))


async def lookup_or_none(resolver: Resolver) -> Answer | None:
    try:
        return await resolver.lookup(NAME)
    except LookupFailedError:
        return None


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED])
async def test_one_of_two_servers_fails(server: DnsServer, second: DnsServer, rcode: Rcode) -> None:
    server.zone[NAME] = Name(rcode=rcode)
    second.zone[NAME] = Name(a=("192.0.2.1",))
    async with resolving(server, second) as resolver:
        assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}
    assert server.asked(NAME)


async def test_one_of_two_servers_is_silent(server: DnsServer, second: DnsServer) -> None:
    server.hold(NAME)
    second.zone[NAME] = Name(a=("192.0.2.1",))
    async with resolving(server, second) as resolver:
        assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}
    assert server.asked(NAME)


FAMILIES = pytest.mark.parametrize(
    ("failing", "left"), [("A", "2001:db8::1"), ("AAAA", "192.0.2.1")], ids=["no A", "no AAAA"]
)


@FAMILIES
async def test_a_family_that_fails_leaves_the_other(
    server: DnsServer, failing: str, left: str
) -> None:
    server.zone[NAME] = Name(
        a=("192.0.2.1",), aaaa=("2001:db8::1",), rcode=Rcode.SERVFAIL, failing=failing
    )
    async with resolving(server) as resolver:
        assert addresses(await resolver.lookup(NAME)) == {left}


@FAMILIES
async def test_a_failing_family_is_distinguished_from_an_empty_one(
    server: DnsServer, failing: str, left: str
) -> None:
    v4, v6 = ("192.0.2.1",), ("2001:db8::1",)
    server.zone[NAME] = Name(a=v4, aaaa=v6, rcode=Rcode.SERVFAIL, failing=failing)
    server.zone["empty.example.com"] = Name(aaaa=v6) if failing == "A" else Name(a=v4)
    async with resolving(server) as resolver:
        failed = await resolver.lookup(NAME)
        empty = await resolver.lookup("empty.example.com")
    assert addresses(failed) == addresses(empty) == {left}
    [failure] = failed.failed
    assert failure.version == (4 if failing == "A" else 6)
    assert failure.error == "DNS server returned general failure"
    assert empty.failed == ()


SEARCHED = f"{NAME}.search.example.net"


@pytest.mark.parametrize(
    ("name", "found"), [(NAME, {"192.0.2.1"}), (f"{NAME}.", None)], ids=["relative", "absolute"]
)
async def test_a_trailing_dot_keeps_a_name_out_of_the_search_list(
    server: DnsServer, resolv_conf: Path, name: str, found: set[str] | None
) -> None:
    write(resolv_conf, "search search.example.net\n")
    server.zone[SEARCHED] = Name(a=("192.0.2.1",))
    resolver = Resolver((server.address,), BOTH, resolv_conf=resolv_conf)
    try:
        if found:
            assert addresses(await resolver.lookup(name)) == found
        else:
            with pytest.raises(LookupFailedError, match="Domain name not found"):
                await resolver.lookup(name)
    finally:
        await resolver.close()
    assert [query.name for query in server.queries if query.kind == "A"] == (
        [NAME, SEARCHED] if found else [NAME]
    )


@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_one_family_never_comes_from_the_search_list_alone(
    server: DnsServer, resolv_conf: Path, kind: str
) -> None:
    """Not even if the name itself has only addresses of the other family, or fails."""
    write(resolv_conf, "search search.example.net\n")
    server.zone[SEARCHED] = Name(a=("192.0.2.66",), aaaa=("2001:db8::66",))
    server.zone[NAME] = Name(a=("192.0.2.1",)) if kind == "A" else Name(aaaa=("2001:db8::1",))
    server.zone["broken.example.com"] = Name(rcode=Rcode.SERVFAIL, failing=kind)
    resolver = Resolver((server.address,), BOTH, resolv_conf=resolv_conf)
    try:
        assert len((await resolver.lookup(NAME)).addresses) == 1
        with pytest.raises(LookupFailedError, match="general failure"):
            await resolver.lookup("broken.example.com")
    finally:
        await resolver.close()
    assert not server.asked(SEARCHED)


async def test_a_resolv_conf_that_is_a_fifo_holds_nothing_up(
    server: DnsServer, resolv_conf: Path
) -> None:
    server.zone[NAME] = Name(a=("192.0.2.1",))
    os.mkfifo(resolv_conf)
    async with watching(server, resolv_conf) as (resolver, changed):
        with pytest.raises(LookupFailedError) as caught:
            await resolver.lookup(NAME)
        assert str(caught.value) == f"can't read {resolv_conf}: not a regular file"
        replace_file(resolv_conf, "# a file\n")
        await changed.wait()
        assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}
        remove(resolv_conf)
        os.mkfifo(resolv_conf)
        assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}


async def test_silent_names_do_not_hold_up_the_others(server: DnsServer) -> None:
    silent = [f"{number}.silent.example.com" for number in range(9)]
    for name in silent:
        server.hold(name)
    server.zone[NAME] = Name(a=("192.0.2.1",))
    bounds = Bounds(at_once=2, start_s=0.01, lookup_s=60.0)
    async with resolving(server, families={socket.AF_INET}, bounds=bounds) as resolver:
        questions = [asyncio.create_task(resolver.lookup(name)) for name in silent]
        await asyncio.sleep(0)
        assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}
        assert not any(question.done() for question in questions)
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)


@FAMILIES
async def test_a_family_that_is_silent_leaves_the_other(
    server: DnsServer, failing: str, left: str
) -> None:
    server.zone[NAME] = Name(a=("192.0.2.1",), aaaa=("2001:db8::1",))
    server.hold(NAME, failing)
    # c-ares gives an AAAA 2 s, and an A all the time there is.
    async with resolving(server, bounds=Bounds(lookup_s=4.0)) as resolver:
        assert addresses(await resolver.lookup(NAME)) == {left}
    server.release(NAME, failing)


async def test_a_silent_server_ends_a_look_up_in_time_and_may_come_back(
    server: DnsServer,
) -> None:
    server.zone[NAME] = Name(a=("192.0.2.1",))
    server.hold(NAME)
    async with resolving(server, bounds=Bounds(lookup_s=0.5)) as resolver:
        with pytest.raises(LookupFailedError) as caught:
            await resolver.lookup(NAME)
        assert str(caught.value) == (
            f"no answer within 0.5 s (asked {server.address}): correct EGRESS_DNS_PROXY_NAMESERVERS"
        )
        server.release(NAME)
        assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        # No socket has the TCP port, and the UDP socket is closed below: refused.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    resolver = Resolver((f"127.0.0.1:{port}",), BOTH)
    try:
        with pytest.raises(LookupFailedError) as caught:
            await resolver.lookup(NAME)
    finally:
        await resolver.close()
    assert str(caught.value) == (
        f"Could not contact DNS servers (asked 127.0.0.1:{port}): correct "
        "EGRESS_DNS_PROXY_NAMESERVERS"
    )


@asynccontextmanager
async def watching(
    server: DnsServer, resolv_conf: Path
) -> AsyncIterator[tuple[Resolver, asyncio.Event]]:
    resolver = Resolver((server.address,), {socket.AF_INET}, resolv_conf=resolv_conf)
    changed = asyncio.Event()
    watch = asyncio.create_task(resolver.watch(changed.set, interval_s=0.01))
    try:
        yield resolver, changed
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await resolver.close()


def write(path: Path, text: str) -> None:
    path.write_text(text)


def replace_file(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def remove(path: Path) -> None:
    path.unlink()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("change", [write, replace_file])
async def test_resolv_conf_changes(
    server: DnsServer, resolv_conf: Path, change: Callable[[Path, str], None]
) -> None:
    """What c-ares then reads in the file is seen in tests/netns."""
    server.zone[NAME] = Name(a=("192.0.2.1",), ttl_s=3600)
    async with watching(server, resolv_conf) as (resolver, changed):
        for number in range(3):
            change(resolv_conf, f"# {number}\n")
            await changed.wait()
            changed.clear()
            assert addresses(await resolver.lookup(NAME)) == {"192.0.2.1"}
    # The first channel's answer would have been good for an hour.
    assert len(server.asked(NAME)) == 3


async def test_a_pending_query_is_sent_again(server: DnsServer, resolv_conf: Path) -> None:
    server.zone[NAME] = Name(a=("192.0.2.1",))
    server.hold(NAME)
    async with watching(server, resolv_conf) as (resolver, changed):
        question = asyncio.create_task(resolver.lookup(NAME))
        await asked(server, NAME)
        write(resolv_conf, "# changed\n")
        await changed.wait()
        server.release(NAME)
        assert addresses(await question) == {"192.0.2.1"}


async def test_a_file_that_is_gone_changes_nothing(server: DnsServer, resolv_conf: Path) -> None:
    write(resolv_conf, "# before\n")
    # A channel answers from its cache for an hour, so each question is one of another channel.
    server.zone[NAME] = Name(a=("192.0.2.1",), ttl_s=3600)
    async with watching(server, resolv_conf) as (resolver, changed):
        await resolver.lookup(NAME)
        remove(resolv_conf)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(changed.wait(), 0.05)
        await resolver.lookup(NAME)
        assert len(server.asked(NAME)) == 1
        write(resolv_conf, "# after\n")
        await changed.wait()
        await resolver.lookup(NAME)
        assert len(server.asked(NAME)) == 2


async def test_no_more_look_ups_at_once_than_there_are_places(
    server: DnsServer,
) -> None:
    names = [f"{number}.example.com" for number in range(7)]
    for name in names:
        server.zone[name] = Name(a=("192.0.2.1",))
        server.hold(name)
    three = Bounds(at_once=3, start_s=60.0)
    async with resolving(server, families={socket.AF_INET}, bounds=three) as resolver:
        questions = asyncio.gather(*map(resolver.lookup, names))
        for number, name in enumerate(names):
            await asked(server, name)
            assert {query.name for query in server.queries} <= set(names[: number + 3])
            server.release(name)
        assert len(await questions) == len(names)


async def test_channels_are_given_back(server: DnsServer, resolv_conf: Path) -> None:
    """A channel holds a thread, an epoll, a pipe and an inotify watch."""
    server.zone[NAME] = Name(a=("192.0.2.1",))
    async with watching(server, resolv_conf) as (resolver, changed):
        await resolver.lookup(NAME)
        first = descriptors()
        for number in range(20):
            write(resolv_conf, f"# {number}\n")
            await changed.wait()
            changed.clear()
            await resolver.lookup(NAME)
        # They are closed by a thread of pycares, which may be at one of them.
        assert descriptors() < first + 20
