"""Random lives of a connection, against a model of what TCP promises.

A script is a list of steps of the two sides: write, read, finish, reset. The model knows only what
each side has sent. `make fuzz` runs the same with many more and much longer scripts.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from egress_proxy.events import Reason
from tests.support.random_end import End, check
from tests.support.rig import Rig, turns

if TYPE_CHECKING:
    from collections.abc import Callable

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


async def act(end: End, action: str, amount: int) -> None:
    """Take one step, and let the proxy see it."""
    if action == "pause":
        await turns(amount)
    elif action == "trickle":
        for _ in range(amount):
            end.act("write", 1 + amount % 3)
            await turns()
    else:
        end.act(action, amount)
    await turns()


async def read_to_the_end(*ends: End) -> None:
    # A list: each reads on, also after one that has not finished.
    while not all([end.read_on() for end in ends]):  # noqa: C419 - see above
        await turns()


async def live(script: list[tuple[str, tuple[str, int]]], pipes: int) -> None:
    async with Rig(pipes=pipes) as rig:
        client, upstream = (End(peer.sock) for peer in await rig.pair())
        while rig.relay is None:
            await turns()
        ends = {"client": client, "upstream": upstream}
        resetter = ""
        for name, (action, amount) in script:
            if action == "reset":
                if resetter or ends[name].ending == "reset":
                    continue
                resetter = name
            await act(ends[name], action, amount)
        if resetter:
            other = ends["upstream" if resetter == "client" else "client"]
            await check_reset(rig, ends[resetter], other)
        else:
            for end in ends.values():
                end.act("finish")
            await read_to_the_end(client, upstream)
            (record,) = await rig.recorder.wait_closed()
            assert client.ending == upstream.ending == "finished"
            check(client, upstream)
            check(upstream, client)
            assert record.reason is Reason.FINISHED
            assert record.bytes_to_upstream == client.sent
            assert record.bytes_to_client == upstream.sent
            event("finished")


async def check_reset(rig: Rig, resetter: End, other: End) -> None:
    """The other side gets a piece of what was sent from its start, in order, and the end."""
    await read_to_the_end(other)
    (record,) = await rig.recorder.wait_closed()
    check(resetter, other)
    if record.reason is Reason.FINISHED:
        # Both FINs were through before the RST could matter.
        assert other.finished
        event("finished before the reset")
    else:
        assert record.reason in {Reason.CLIENT_RESET, Reason.UPSTREAM_RESET}
        assert other.ending == "reset" or resetter.finished
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
