"""Looks up names with c-ares: one question, one answer.

`Resolver` looks up a name as it is, then below each domain of resolv.conf's search list, over UDP
and, where an answer is truncated, over TCP. A name with a trailing dot is only looked up as it is.
IPv4 and IPv6 are asked for separately, so that a failure of one family does not affect the other.

Nothing is remembered here: `refresher.NameRefresher` decides when to ask again. c-ares would keep
answers for their TTL, and empty ones for longer than a pod should stay without an address, so its
cache is emptied after every answer.

Left out: retries (c-ares has its own, and the refresher's backoff follows), DNSSEC, DNS over TLS,
and getaddrinfo(3) as a fallback: it would ask the same servers, in a thread that can't be
cancelled, and gives no TTL.

Trust boundary: an answer is data from outside. `address_policy.AddressPolicy` decides about its
addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import aiodns
import pycares

from egress_proxy.config import files
from egress_proxy.dns.answer import Answer, FamilyFailure, LookupFailedError
from egress_proxy.dns.channel import Channel
from egress_proxy.dns.resolv_conf import (
    MAX_OCTETS,
    ResolvConf,
    candidates,
    parse_resolv_conf,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from egress_proxy.ip import Address

RESOLV_CONF = Path("/etc/resolv.conf")

# ares_getaddrinfo(3), ARES_AI_NOSORT in ares.h: keep the order of the answer. c-ares would open a
# socket to each address to sort them.
_ARES_AI_NOSORT = 1 << 7
# A response holds at most 64 KiB of addresses; the rotation has no use for more than these.
MAX_ADDRESSES = 256
# How often resolv.conf is checked. inotify does not see changes of a file that is mounted into the
# container.
WATCH_S = 2.0

# Once one family has an answer, the other one has this long: c-ares' second attempt starts at 2 s.
_OTHER_FAMILY_S = 3.0

_NAMESERVERS = "EGRESS_DNS_PROXY_NAMESERVERS"
# What c-ares reports for servers that can't be reached or do not answer.
_UNREACHED = frozenset({aiodns.error.ARES_ECONNREFUSED, aiodns.error.ARES_ETIMEOUT})
# The name does not exist, or has no address of the family.
_NO_SUCH = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What look-ups may take.

    `lookup_s` is for one look-up, with all its servers, retries and the search list. `at_once`
    look-ups start together, so that a large configuration does not overload the cluster's DNS; the
    next one starts when one of them ends, or after `start_s`, so that silent servers do not delay
    the others. `forget_s` after an answer c-ares forgets it, in a thread and within milliseconds;
    the same name is not looked up again before a second has passed (`refresher.EARLY_S`).
    """

    lookup_s: float = 10.0
    at_once: int = 64
    start_s: float = 0.5
    forget_s: float = 0.25


class _Failure(NamedTuple):
    """A question without an address; `number` is c-ares' error."""

    number: int
    error: str


_Outcome = pycares.AddrInfoResult | _Failure


class Resolver:
    """One c-ares channel for the whole process (each holds a thread and an inotify watch).

    `name_servers` are ``address:port`` texts; without any, those of `resolv_conf` are asked, from
    `local_addresses` (at most one of each family). Only addresses of `families` are looked up.
    """

    def __init__(
        self,
        name_servers: tuple[str, ...],
        families: Collection[int],
        *,
        local_addresses: Collection[Address] = (),
        resolv_conf: Path = RESOLV_CONF,
        bounds: Bounds = Bounds(),
    ) -> None:
        self._name_servers = name_servers
        # IPv4 first: AF_INET is the smaller number.
        self._families = [socket.AddressFamily(family) for family in sorted(families)]
        self._local_addresses = local_addresses
        self._resolv_conf = str(resolv_conf)
        self._bounds = bounds
        self._off_loop = files.OffLoop()
        self._starting = asyncio.Semaphore(bounds.at_once)
        self._forgetting: asyncio.TimerHandle | None = None
        self._seen: files.Version = None
        self._unreadable = ""
        self._conf = ResolvConf()
        # None as long as resolv.conf is a file that can't be read.
        self._channel: Channel | None = None
        loop = asyncio.get_running_loop()
        try:
            self._seen, self._conf, self._channel = files.in_time(lambda: self._open(loop))
        except OSError as error:
            self._unreadable = f"can't read {resolv_conf}: {error.strerror}"

    def _open(self, loop: asyncio.AbstractEventLoop) -> tuple[files.Version, ResolvConf, Channel]:
        """The version of resolv.conf, what it says, and a channel for that.

        Called in a thread: c-ares reads the file once more. Raises `OSError`, `pycares.AresError`.
        """
        # The version first: a change in between is seen at the next check.
        version = files.file_version(self._resolv_conf)
        conf = parse_resolv_conf(self._read())
        channel = Channel(
            self._name_servers or conf.name_servers,
            loop,
            # The search list is this module's.
            flags=pycares.ARES_FLAG_NOSEARCH,
            timeout=conf.timeout_s,
            tries=conf.attempts,
            rotate=conf.rotate,
        )
        if not self._name_servers:
            channel.send_from(self._local_addresses)
        return version, conf, channel

    def _read(self) -> str:
        """The text of resolv.conf, empty without one. Raises `OSError`."""
        try:
            octets = files.read_file(self._resolv_conf, MAX_OCTETS)
        except FileNotFoundError:
            return ""
        return octets.decode(errors="replace")

    async def lookup(self, name: str) -> Answer:
        """The answer; raises `LookupFailedError`, in bounded time once it has started."""
        async with self._starting:
            question = asyncio.create_task(self._look_up(name), name=f"look up {name}")
            try:
                await asyncio.wait({question}, timeout=self._bounds.start_s)
            except BaseException:
                question.cancel()
                raise
        try:
            return await question
        finally:
            self._forget_soon()

    async def watch(self, changed: Callable[[], None], *, interval_s: float = WATCH_S) -> None:
        """Use what resolv.conf says now, and call `changed` whenever it changes; until cancelled.

        A file that is missing or can't be read changes nothing.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval_s)
            try:
                seen = await self._off_loop.call(lambda: files.file_version(self._resolv_conf))
                if seen in {None, self._seen}:
                    continue
                stale = self._channel
                self._seen, self._conf, self._channel = await self._off_loop.call(
                    partial(self._open, loop)
                )
            except (OSError, pycares.AresError):
                # Out of descriptors, for example: the next check finds the same change.
                self._seen = None
                continue
            if stale is not None:
                await stale.close()
            changed()

    async def close(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def _look_up(self, name: str) -> Answer:
        deadline = asyncio.get_running_loop().time() + self._bounds.lookup_s
        failure: _Failure | None = None
        for candidate in candidates(name, self._conf.search):
            outcomes = await self._ask_families(candidate, deadline)
            if any(isinstance(outcome, pycares.AddrInfoResult) for outcome in outcomes.values()):
                return self._answer(outcomes)
            failures = [each for each in outcomes.values() if isinstance(each, _Failure)]
            broken = [each for each in failures if each.number not in _NO_SUCH]
            if broken:
                # The name may still exist: a name below a search domain must not replace it.
                failure = broken[0]
                break
            failure = failure or failures[0]
        assert failure is not None  # noqa: S101 - there is always a candidate
        raise LookupFailedError(self._explain(failure))

    def _answer(self, outcomes: dict[socket.AddressFamily, _Outcome]) -> Answer:
        addresses: dict[Address, None] = {}
        ttls: list[float] = []
        failed = []
        for family, outcome in outcomes.items():
            if isinstance(outcome, pycares.AddrInfoResult):
                nodes = outcome.nodes[:MAX_ADDRESSES]
                addresses |= {ipaddress.ip_address(node.addr[0].decode()): None for node in nodes}
                # An alias may point elsewhere before the addresses it points to have expired.
                ttls += [node.ttl for node in outcome.nodes]
                ttls += [alias.ttl for alias in outcome.cnames]
            elif outcome.number not in _NO_SUCH:
                version = 4 if family is socket.AF_INET else 6
                failed.append(FamilyFailure(version, self._explain(outcome)))
        return Answer(tuple(addresses)[:MAX_ADDRESSES], min(ttls), tuple(failed))

    async def _ask_families(
        self, name: str, deadline: float
    ) -> dict[socket.AddressFamily, _Outcome]:
        """Ask for all families at once; the one that is late fails."""
        loop = asyncio.get_running_loop()
        late = _Failure(aiodns.error.ARES_ETIMEOUT, f"no answer within {self._bounds.lookup_s:g} s")
        questions = {
            asyncio.create_task(self._ask(name, family), name=f"ask {name}"): family
            for family in self._families
        }
        pending = set(questions)
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending,
                    timeout=max(deadline - loop.time(), 0),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                if any(isinstance(task.result(), pycares.AddrInfoResult) for task in done):
                    deadline = min(deadline, loop.time() + _OTHER_FAMILY_S)
                    late = late._replace(error="no answer, unlike the other family")
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return {
            family: late if task in pending else task.result() for task, family in questions.items()
        }

    async def _ask(self, name: str, family: socket.AddressFamily) -> _Outcome:
        while True:
            channel = self._channel
            if channel is None:
                return _Failure(aiodns.error.ARES_EFILE, self._unreadable)
            try:
                result = await channel.getaddrinfo(
                    name, family=family, type=socket.SOCK_STREAM, flags=_ARES_AI_NOSORT
                )
            except aiodns.error.DNSError as error:
                # If the channel was replaced during the query, the query is sent again.
                if channel is self._channel:
                    return _Failure(*error.args)
            else:
                if result.nodes:
                    return result
                return _Failure(aiodns.error.ARES_ENODATA, "the answer holds no address")

    def _explain(self, failure: _Failure) -> str:
        if failure.number not in _UNREACHED or self._channel is None:
            return failure.error
        servers = ", ".join(self._channel.servers)
        if self._name_servers:
            cure = f"correct {_NAMESERVERS}"
        else:
            cure = f"correct {self._resolv_conf}, or set {_NAMESERVERS}"
        return f"{failure.error} (asked {servers}): {cure}"

    def _forget_soon(self) -> None:
        if self._forgetting is None:
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(self._bounds.forget_s, self._forget)

    def _forget(self) -> None:
        self._forgetting = None
        if self._channel is not None:
            self._channel.forget()
