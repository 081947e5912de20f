"""Random lives of many connections at once through the installed command: do its books balance?

Both ends write, read, finish and reset in any order, and the command is stopped now and then, so
that what happened meanwhile meets it all at once. What it does between two of its system calls is
left to chance, which a test on its own event loop never is.
"""

from __future__ import annotations

import os
import random
from contextlib import nullcontext

import pytest

from tests.support.island import Island
from tests.support.random_end import End, check
from tests.support.waiting import wait_until

# The variable of the environment that repeats a run, as far as chance was ours.
SEED = "RANDOM_LIVES_SEED"

KIB = 1024
GROUPS = 40
AT_ONCE = 40
SIZES = (1, 7, 100, 5000, 65535, 65536, 65537, 1 << 18)
ACTIONS = ("write", "read", "finish", "reset")
WEIGHTS = (40, 50, 3, 2)


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get(SEED) or random.SystemRandom().getrandbits(32))
    # Captured, and shown with a failure.
    print(f"The same choices again: {SEED}={seed}")  # noqa: T201 - see above
    return random.Random(seed)  # noqa: S311 - not a secret


def test_random_lives_end_as_they_should(dice: random.Random) -> None:
    with Island(EGRESS_DNS_PROXY_DEBUG="1") as island:
        # Little room in the kernel, so that what is read is often more than the other side takes.
        island.namespace.sysctl("ipv4/tcp_wmem", f"4096 {16 * KIB} {64 * KIB}")
        island.namespace.sysctl("ipv4/tcp_rmem", f"4096 {128 * KIB} {128 * KIB}")
        before = island.descriptors()
        for _ in range(GROUPS):
            pairs = [tuple(map(End, island.session())) for _ in range(AT_ONCE)]
            for step in range(dice.choice((20, 60, 150))):
                with island.stopped() if step % 20 == 0 else nullcontext():
                    for pair in pairs:
                        (action,) = dice.choices(ACTIONS, WEIGHTS)
                        dice.choice(pair).act(action, dice.choice(SIZES))
            for pair in pairs:
                for end in pair:
                    end.act("finish")
            ends = [end for pair in pairs for end in pair]
            # A list: each reads on, also after one that has not finished. It is called at once.
            wait_until(lambda: all([end.read_on() for end in ends]))  # noqa: B023, C419 - see above
            for client, upstream in pairs:
                check(client, upstream)
                check(upstream, client)
            island.let_go()
        wait_until(lambda: island.active() == 0)
        records = [one for one in island.process.records if one["event"] == "connection.closed"]
        assert len(records) == GROUPS * AT_ONCE
        reasons = {one["reason"] for one in records}
        assert reasons >= {"finished", "client_reset", "upstream_reset"}
        # A RST of the client may come before the command has seen that the upstream accepted.
        assert reasons <= {"finished", "client_reset", "upstream_reset", "client_gone"}
        wait_until(lambda: island.descriptors()["socket"] == before["socket"])
