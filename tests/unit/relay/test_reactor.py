"""The reactor's rules for a batch of events, on the real epoll, with pipes in place of sockets."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from egress_proxy.relay.reactor import IN, OUT, Reactor

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.asyncio


class End:
    """One end of a pipe, as far as a reactor uses a socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.closed = False

    @property
    def real(self) -> socket.SocketType:
        """The same for the type checker."""
        return cast("socket.SocketType", self)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        self.closed = True


class Watcher:
    """Writes down its events, and does what a test wants at each."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.events: list[int] = []
        self.failures = 0
        self._act = act

    def ready(self, events: int) -> None:
        self.events.append(events)
        self._act()

    def fail(self) -> None:
        self.failures += 1


class Rig:
    """A reactor, and what its watchers raised."""

    def __init__(self) -> None:
        self.defects: list[str] = []
        self.reactor = Reactor(
            asyncio.get_running_loop(), lambda error: self.defects.append(str(error))
        )
        self.cleanup = ExitStack()

    def pipe(self) -> tuple[End, End]:
        """An end that is readable as soon as something is written to the other."""
        ends = tuple(map(End, os.pipe2(os.O_NONBLOCK)))
        for end in ends:
            self.cleanup.callback(end.close)
        reader, writer = ends
        return reader, writer

    def readable(self) -> End:
        reader, writer = self.pipe()
        os.write(writer.fileno(), b"!")
        return reader


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    with made.cleanup:
        yield made
        made.reactor.stop()


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_present_state_is_the_first_change_and_is_reported_once(rig: Rig) -> None:
    watcher = Watcher()
    rig.reactor.watch(rig.readable().real, watcher)
    await turns(5)
    assert watcher.events == [IN]


async def test_each_change_is_reported(rig: Rig) -> None:
    reader, writer = rig.pipe()
    watcher = Watcher()
    rig.reactor.watch(reader.real, watcher)
    await turns()
    assert watcher.events == []
    for count in (1, 2):
        os.write(writer.fileno(), b"!")
        await turns()
        assert watcher.events == [IN] * count


async def test_a_listener_is_reported_as_long_as_clients_wait(rig: Rig) -> None:
    reader = rig.readable()
    watcher = Watcher()
    rig.reactor.watch_listener(reader.real, watcher)
    await turns(5)
    assert len(watcher.events) > 1
    os.read(reader.fileno(), 1)
    told = len(watcher.events)
    await turns(5)
    assert len(watcher.events) == told


async def test_an_unwatched_socket_is_not_reported_and_can_be_watched_again(rig: Rig) -> None:
    reader, writer = rig.pipe()
    first, second = Watcher(), Watcher()
    rig.reactor.watch(reader.real, first)
    rig.reactor.unwatch(reader.real)
    os.write(writer.fileno(), b"!")
    await turns()
    rig.reactor.watch(reader.real, second)
    await turns()
    assert (first.events, second.events) == ([], [IN])


async def test_another_watcher_gets_the_next_change(rig: Rig) -> None:
    reader, writer = rig.pipe()
    first, second = Watcher(), Watcher()
    rig.reactor.watch(reader.real, first)
    rig.reactor.pass_on(reader.real, second)
    os.write(writer.fileno(), b"!")
    await turns()
    assert (first.events, second.events) == ([], [IN])


async def test_epoll_refuses_to_watch_a_socket_twice_and_still_reports_it(rig: Rig) -> None:
    reader, writer = rig.pipe()
    watcher, other = Watcher(), Watcher()
    rig.reactor.watch(reader.real, watcher)
    with pytest.raises(FileExistsError) as caught:
        rig.reactor.watch(reader.real, other)
    assert caught.value.errno == errno.EEXIST
    os.write(writer.fileno(), b"!")
    await turns()
    assert (watcher.events, other.events) == ([IN], [])


async def test_a_socket_is_closed_only_after_the_batch(rig: Rig) -> None:
    """Its number must not come back while its events are still waiting."""
    ends = [rig.readable() for _ in range(2)]
    open_at_close: list[bool] = []

    def close_both() -> None:
        for end in ends:
            rig.reactor.close(end.real)
        open_at_close.append(not any(end.closed for end in ends))

    watchers = [Watcher(close_both), Watcher(close_both)]
    for end, watcher in zip(ends, watchers, strict=True):
        rig.reactor.watch(end.real, watcher)
    await turns()
    assert open_at_close == [True]
    # The second was in the same batch, and was no longer watched.
    assert sorted(len(watcher.events) for watcher in watchers) == [0, 1]
    assert [end.closed for end in ends] == [True, True]


async def test_a_socket_that_is_closed_outside_a_batch_is_closed_soon(rig: Rig) -> None:
    reader, _ = rig.pipe()
    watcher = Watcher()
    rig.reactor.watch(reader.real, watcher)
    rig.reactor.close(reader.real)
    states = [reader.closed]
    await turns()
    assert [*states, reader.closed] == [False, True]
    assert watcher.events == []


async def test_the_end_closes_what_was_still_to_close() -> None:
    rig = Rig()
    reader, writer = rig.pipe()
    with rig.cleanup:
        rig.reactor.watch(reader.real, Watcher())
        rig.reactor.close(reader.real)
        rig.reactor.stop()
        assert reader.closed
        assert not writer.closed


async def test_asking_twice_for_another_turn_gives_one(rig: Rig) -> None:
    """Or a flow that is never drained would have one more for each of its events."""
    watcher = Watcher()
    for count in (1, 2):
        for _ in range(3):
            rig.reactor.again(watcher)
        await turns()
        assert watcher.events == [0] * count


async def test_asking_again_during_a_turn_gives_the_next_one_and_others_keep_theirs(
    rig: Rig,
) -> None:
    order: list[str] = []

    def go_on() -> None:
        order.append("greedy")
        rig.reactor.again(greedy)

    greedy = Watcher(go_on)
    other = Watcher(lambda: order.append("other"))
    rig.reactor.again(greedy)
    rig.reactor.again(other)
    await turns(2)
    assert order[:3] == ["greedy", "other", "greedy"]


async def test_a_defect_does_not_affect_the_other_watchers(rig: Rig) -> None:
    class Defective(Watcher):
        def ready(self, _events: int) -> None:
            raise ValueError("ready")

        def fail(self) -> None:
            raise ValueError("fail")

    sound = Watcher()
    for watcher in (Defective(), sound):
        rig.reactor.again(watcher)
    await turns()
    assert sound.events == [0]
    assert rig.defects == ["ready", "fail"]


async def test_a_defect_in_a_batch_ends_its_own_connection(rig: Rig) -> None:
    def raise_an_error() -> None:
        raise ValueError("in a batch")

    defective, sound = Watcher(raise_an_error), Watcher()
    for watcher in (defective, sound):
        rig.reactor.watch(rig.readable().real, watcher)
    await turns()
    assert (defective.failures, sound.failures, sound.events) == (1, 0, [IN])
    assert rig.defects == ["in a batch"]


async def test_the_time_is_that_of_the_batch(rig: Rig) -> None:
    before = rig.reactor.now
    times = []
    rig.reactor.watch(rig.pipe()[1].real, Watcher(lambda: times.append(rig.reactor.now)))
    await turns()
    assert times == [rig.reactor.now]
    assert times[0] > before


async def test_a_writable_end_is_reported(rig: Rig) -> None:
    watcher = Watcher()
    rig.reactor.watch(rig.pipe()[1].real, watcher)
    await turns()
    assert watcher.events == [OUT]
