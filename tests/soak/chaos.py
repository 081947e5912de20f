"""What fails around the command, one thing at a time; each failure is mended before the next."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from tests.support.lab import OUTSIDE_SECOND, RESERVED

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from pyroute2 import IPRoute

    from tests.soak.world import World

# Longer than a TTL and than the kernel's first retransmissions.
_SHORTEST_S, _LONGEST_S = 1.0, 5.0
_BAD_TEXTS = ("80 no such host", "80 192.0.2.7\n80 192.0.2.8", "", "\x00\xff", "8080 10.1.1.1/8\n")


class Chaos:
    """Lets things fail in `world`, as `dice` say; `happened` counts what was done."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self.happened: dict[str, int] = {}
        self._world = world
        self._dice = dice

    async def run(self) -> None:
        """One failure after the other; until cancelled, and then everything is whole again."""
        kinds: tuple[Callable[[], Awaitable[None]], ...] = (
            self.name_servers_fall_silent,
            self.an_address_refuses,
            self.an_address_swallows_connections,
            self.the_uplink_goes_down,
            self.the_source_goes_away,
            self.a_good_reload,
            self.a_bad_reload,
            self.signals_come,
        )
        while True:
            # Each kind once before any comes again.
            for kind in self._dice.sample(kinds, len(kinds)):
                await kind()
                name = getattr(kind, "__name__", "")
                self.happened[name] = self.happened.get(name, 0) + 1
                await asyncio.sleep(self._dice.uniform(0.2, 1.0))

    async def _for_a_while(self) -> None:
        await asyncio.sleep(self._dice.uniform(_SHORTEST_S, _LONGEST_S))

    async def name_servers_fall_silent(self) -> None:
        dns = self._world.deployment.dns
        for name in dns.zone:
            dns.hold(name)
        try:
            await self._for_a_while()
        finally:
            for name in dns.zone:
                dns.release(name)

    async def an_address_refuses(self) -> None:
        self._world.close_upstream(OUTSIDE_SECOND.v4)
        try:
            await self._for_a_while()
        finally:
            self._world.open_upstream(OUTSIDE_SECOND.v4)

    async def an_address_swallows_connections(self) -> None:
        route = {"dst": f"{OUTSIDE_SECOND.v4}/32", "type": "blackhole"}
        await self._netlink("gateway", lambda ip: ip.route("add", **route))
        try:
            await self._for_a_while()
        finally:
            await self._netlink("gateway", lambda ip: ip.route("del", **route))

    async def the_uplink_goes_down(self) -> None:
        lan = self._world.lab.node.index("lan0")
        await self._netlink("node", lambda ip: ip.link("set", index=lan, state="down"))
        try:
            await self._for_a_while()
        finally:
            await self._netlink("node", lambda ip: ip.link("set", index=lan, state="up"))

    async def the_source_goes_away(self) -> None:
        index = self._world.lab.pod.index("macvlan0")
        source = RESERVED.interface4
        address = {"index": index, "address": str(source.ip), "prefixlen": source.network.prefixlen}
        await self._netlink("pod", lambda ip: ip.addr("del", **address))
        try:
            await self._for_a_while()
        finally:
            await asyncio.to_thread(self._world.deployment.take_source)

    async def a_good_reload(self) -> None:
        self._world.write_destinations(spare=self._dice.random() < 0.5)
        self._signal(signal.SIGHUP)

    async def a_bad_reload(self) -> None:
        self._file.write_text(self._dice.choice(_BAD_TEXTS), "latin-1")
        self._signal(signal.SIGHUP)
        await asyncio.sleep(1)
        self._world.write_destinations(spare=False)

    async def signals_come(self) -> None:
        for _ in range(self._dice.randrange(1, 200)):
            self._signal(self._dice.choice((signal.SIGHUP, signal.SIGUSR1)))
            await asyncio.sleep(0.001)

    @property
    def _file(self) -> Path:
        return self._world.destinations

    def _signal(self, number: int) -> None:
        os.kill(self._world.process.pid, number)

    async def _netlink(self, host: str, ask: Callable[[IPRoute], object]) -> None:
        await asyncio.to_thread(getattr(self._world.lab, host).netlink, ask)
