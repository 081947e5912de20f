"""The event loops of the tests, and a count of what a test leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.dns import DnsServer
from tests.support.network import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def pytest_asyncio_loop_factories(
    config: pytest.Config,  # noqa: ARG001 - the hook's signature
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of `run`; for tests of the relay also another, on which it does not depend."""
    if item.get_closest_marker("both_loops"):
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure() -> None:
    """Give each worker of pytest-xdist a loopback of its own, where it may make one.

    Then ports and the kernel's counters are those of its own tests. Without the privilege it shares
    the machine's, as a single process does.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        with contextlib.suppress(OSError):
            loopback = Namespace("loopback")
            loopback.enter()
            loopback.close()


@pytest.fixture(autouse=True, scope="session")
def warm_loops() -> None:
    """The first uvloop of a process makes a pipe that it never gives back."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A test that leaves a descriptor behind fails."""
    before = _descriptors()
    yield
    gc.collect()
    # c-ares' channels are closed by a thread of pycares, after the test has let go of them.
    given_up_at = monotonic() + 5
    while _left(before) and monotonic() < given_up_at:
        os.sched_yield()
    assert _left(before) == set()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where a command on loopback leads."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        yield sock


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer.on_loopback() as server:
        yield server


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _left(before: set[str]) -> set[str]:
    # The event loop of the test is closed after this, and brings its own.
    return {name for name in _descriptors() - before if name.startswith(("socket:", "pipe:"))}


def _descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        # The descriptor of this very listing is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found
