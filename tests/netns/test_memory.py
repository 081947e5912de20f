"""What a connection may cost in the command's memory: idle, and with both readers stalled.

Anonymous memory is what is told apart: it is the process's alone, and pages of files come and go.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from egress_proxy.relay.pipes import PIPES
from tests.support.island import PORT, Island

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

KIB = 1024
# What a pair may cost while nothing of it is under way.
IDLE = 6 * KIB
# What is read at once, of a direction that gets no pipe.
BUFFER = 64 * KIB
OCTETS = bytes(BUFFER)


@pytest.fixture
def island() -> Iterator[Island]:
    with Island() as made:
        yield made


def test_an_idle_pair_costs_six_kib_at_most(island: Island) -> None:
    # What the first ones make grow, such as tables, is not theirs alone.
    island.clients(100, PORT)
    pairs = 2000
    before = island.own_memory()
    island.clients(pairs, PORT)
    assert island.own_memory() - before < pairs * IDLE


def test_a_stalled_pair_costs_a_pipe_or_a_buffer_each_way(island: Island) -> None:
    # Little room in the kernel for what was sent, and enough to read for a whole buffer.
    island.namespace.sysctl("ipv4/tcp_wmem", f"{4 * KIB} {16 * KIB} {64 * KIB}")
    island.namespace.sysctl("ipv4/tcp_rmem", f"{4 * KIB} {256 * KIB} {256 * KIB}")
    session = island.session()
    pairs = 1000
    before, pipes_before = island.own_memory(), island.descriptors()["pipe"]
    clients = island.clients(pairs, PORT)
    ends = [*clients, *island.accept(pairs)]
    for end in ends:
        end.setblocking(False)
    # Until all is stuck; a round trip lets the command take what is there.
    while sum(fill(end) for end in ends):
        session.round_trip()
    assert island.descriptors()["pipe"] - pipes_before == 2 * PIPES
    assert island.own_memory() - before < pairs * (2 * BUFFER + IDLE)
    # No other connection was affected.
    session.round_trip()


def fill(end: socket.socket) -> int:
    """Send until the kernel takes no more; the number of octets that it took."""
    taken = 0
    with suppress(BlockingIOError):
        while True:
            taken += end.send(OCTETS)
    return taken
