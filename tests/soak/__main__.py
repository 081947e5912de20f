"""``make soak``: clients with random lives while everything around the command fails.

At least 80 clients live at any time. At the end everything is whole again, and then: no stream that
was truncated looked complete, new clients are served, the metrics say what the records say, and
descriptors and memory are where they were.
"""
# ruff: noqa: T201 - it tells a person what it does

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from tests.soak.chaos import Chaos
from tests.soak.lives import Lives, Plan
from tests.soak.world import PORTS, World
from tests.support.lab import OUTSIDE, OUTSIDE_SECOND
from tests.support.namespaces import LabUnavailableError, become_root
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

CLIENTS = 80
# After so long without failures the memory of the process is what it usually is.
_WARM_UP_S = 10.0
# What the allocator keeps after crowds varies by so much.
_MEMORY_KIB = 12 * 1024
# Whatever lingers has ended by then: idle timeouts, backoffs, penalties.
_SETTLE_S = 60.0
_LEVELS = {"debug", "info", "warning"}


def main() -> int:
    parser = argparse.ArgumentParser(description="random lives while everything fails")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"{CLIENTS} clients, {options.minutes:g} min; the same choices: --seed {options.seed}")
    dice = random.Random(options.seed)  # noqa: S311 - not a secret
    try:
        become_root()
        complaints = asyncio.run(soak(options.minutes * 60, dice))
    except LabUnavailableError as error:
        complaints = [str(error)]
    for complaint in complaints:
        print(f"soak: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


async def soak(duration_s: float, dice: random.Random) -> list[str]:
    """All of it; what was wrong at the end."""
    lives = Lives(dice)
    with World(lives) as world:
        for address in (OUTSIDE.v4, OUTSIDE_SECOND.v4):
            world.open_upstream(address)
        before = world.descriptors()
        until = monotonic() + duration_s
        clients = [
            asyncio.create_task(keep_living(world, lives, dice, until)) for _ in range(CLIENTS)
        ]
        await asyncio.sleep(min(_WARM_UP_S, duration_s / 3))
        memory_kib = world.resident_kib()
        chaos = Chaos(world, dice)
        failing = asyncio.create_task(chaos.run())
        await asyncio.wait([failing], timeout=until - monotonic())
        failing.cancel()
        with suppress(asyncio.CancelledError):
            await failing
        await asyncio.gather(*clients)
        print(f"lives: {dict(lives.ended)}\nfailures: {chaos.happened}")
        world.write_destinations(spare=False)
        complaints = list(lives.violations[:5])
        complaints += await serves_again(world, lives)
        await world.close_upstreams()
        complaints += await asyncio.to_thread(balance, world, before, memory_kib)
        complaints += farewell(world)
    return complaints


async def keep_living(world: World, lives: Lives, dice: random.Random, until: float) -> None:
    """One client after the other."""
    while monotonic() < until:
        await lives.live(partial(world.connect, dice.choice(PORTS)))
        # Refused at once, it must not become a busy loop.
        await asyncio.sleep(dice.uniform(0, 0.1))


async def serves_again(world: World, lives: Lives) -> list[str]:
    """Now that everything is whole, every port serves within its backoffs and penalties."""
    plan = Plan(kind="duplex", to_upstream=1 << 18, to_client=1 << 18, slow=False)
    complaints = []
    for port in PORTS:
        given_up_at = monotonic() + _SETTLE_S
        while not await lives.live(partial(world.connect, port), plan):
            if monotonic() > given_up_at:
                complaints.append(f"port {port} serves no client: {world.status()}")
                break
            await asyncio.sleep(0.5)
    return complaints


def balance(world: World, before: Counter[str], memory_kib: int) -> list[str]:
    """Records against metrics, descriptors and memory against what they were."""
    complaints = []

    def settle(what: str, true: Callable[[], bool], figures: Callable[[], object]) -> None:
        try:
            wait_until(true, timeout_s=_SETTLE_S)
        except AssertionError:
            complaints.append(f"{what}: {figures()}")

    settle("sessions are left", lambda: not world.status()["active"], world.status)
    settle(
        "metrics and records differ",
        lambda: world.counted() == world.recorded(),
        lambda: (world.counted(), world.recorded()),
    )
    settle(
        "descriptors are left",
        lambda: world.descriptors()["socket"] <= before["socket"],
        lambda: (before, world.descriptors()),
    )
    settle(
        f"memory grew from {memory_kib} KiB",
        lambda: world.resident_kib() <= memory_kib + _MEMORY_KIB,
        world.resident_kib,
    )
    if dropped := world.status()["log_dropped"]:
        complaints.append(f"{dropped} records are missing in the log")
    return complaints


def farewell(world: World) -> list[str]:
    """The command ends well, and has reported no defect."""
    complaints = []
    status = world.process.stop(timeout_s=40)
    if status or world.process.stderr:
        complaints.append(f"exit status {status}: {world.process.stderr}")
    complaints += [
        f"in the log: {record}"
        for record in world.process.records
        if record.get("level") not in _LEVELS
    ][:5]
    return complaints


if __name__ == "__main__":
    sys.exit(main())
