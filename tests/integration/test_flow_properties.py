"""Random lives of a connection, against a model of what TCP promises.

A script is a list of steps of the two sides: write, read, finish, reset. The model knows only what
each side has sent. `make fuzz` runs the same with many more and much longer scripts.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from egress_proxy.events import Reason
from tests.support.rig import Rig, turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.peers import Peer

# The octet at position n of a stream is NOISE[n % len(NOISE)], so that a lost or doubled one shows.
NOISE = random.Random(0).randbytes((1 << 20) + 7)  # noqa: S311 - test data
NOISE_TWICE = memoryview(NOISE * 2)

SIZES = st.one_of(st.integers(1, 200), st.integers(1, 1 << 17), st.integers(1 << 17, 1 << 20))
STEPS = st.tuples(
    st.sampled_from(["client", "upstream"]),
    st.one_of(
        st.tuples(st.just("write"), SIZES),
        st.tuples(st.just("trickle"), st.integers(1, 40)),
        st.tuples(st.just("read"), SIZES),
        st.tuples(st.just("pause"), st.integers(1, 5)),
        st.tuples(st.just("finish"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
)


@dataclass
class Side:
    """One end and what the model knows of it."""

    peer: Peer
    sent: int = 0
    received: bytearray = field(default_factory=bytearray)
    finished: bool = False
    gone: bool = False

    async def act(self, action: str, amount: int) -> None:
        """Do one step, as far as it can be done without waiting."""
        if self.gone:
            return
        if action == "pause":
            await turns(amount)
        elif action == "read":
            self.read(amount)
        elif action == "reset":
            self.gone = True
            self.peer.reset()
        elif not self.finished:
            await self.write(action, amount)
        await turns()

    async def write(self, action: str, amount: int) -> None:
        try:
            if action == "finish":
                self.finished = True
                self.peer.finish()
            elif action == "write":
                self.send(amount)
            else:
                for _ in range(amount):
                    self.send(1 + amount % 3)
                    await turns()
        except OSError:
            self.gone = True

    def send(self, amount: int) -> None:
        start = self.sent % len(NOISE)
        self.sent += self.peer.send_what_fits(NOISE_TWICE[start : start + amount])

    def read(self, amount: int) -> None:
        try:
            self.received += self.peer.sock.recv(amount)
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.gone = True

    async def read_to_the_end(self) -> bool:
        """Whether the stream ended with a reset."""
        octets, was_reset = await self.peer.receive_all()
        self.received += octets
        return was_reset


def sent_octets(side: Side) -> bytes:
    return (NOISE * (side.sent // len(NOISE) + 1))[: side.sent]


async def live(script: list[tuple[str, tuple[str, int]]], pipes: int) -> None:
    async with Rig(pipes=pipes) as rig:
        client_peer, upstream_peer = await rig.pair()
        while rig.relay is None:
            await turns()
        sides = {"client": Side(client_peer), "upstream": Side(upstream_peer)}
        resetter = ""
        for name, (action, amount) in script:
            if action == "reset" and (resetter or sides[name].gone):
                continue
            if action == "reset":
                resetter = name
            await sides[name].act(action, amount)
        client, upstream = sides["client"], sides["upstream"]
        if resetter:
            await check_reset(rig, sides, resetter)
        else:
            for side in sides.values():
                if not side.finished:
                    side.finished = True
                    side.peer.finish()
            resets = await asyncio.gather(client.read_to_the_end(), upstream.read_to_the_end())
            assert not any(resets)
            (record,) = await rig.recorder.wait_closed()
            assert bytes(upstream.received) == sent_octets(client)
            assert bytes(client.received) == sent_octets(upstream)
            assert record.reason is Reason.FINISHED
            assert record.bytes_to_upstream == client.sent
            assert record.bytes_to_client == upstream.sent
            event("finished")


async def check_reset(rig: Rig, sides: dict[str, Side], resetter: str) -> None:
    """The other side gets a piece of what was sent from its start, in order, and the end."""
    other = sides["upstream" if resetter == "client" else "client"]
    was_reset = other.gone or await other.read_to_the_end()
    (record,) = await rig.recorder.wait_closed()
    assert sent_octets(sides[resetter]).startswith(bytes(other.received))
    if record.reason is Reason.FINISHED:
        # Both FINs were through before the RST could matter.
        assert other.finished
        event("finished before the reset")
    else:
        assert record.reason in {Reason.CLIENT_RESET, Reason.UPSTREAM_RESET}
        assert was_reset or sides[resetter].finished
        event("reset")


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("pipes", [64, 0], ids=["splicing", "copying"])
@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(script=st.lists(STEPS, max_size=40))
def test_random_lives(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    pipes: int,
    script: list[tuple[str, tuple[str, int]]],
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(live(script, pipes), 5))
