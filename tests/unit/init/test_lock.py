"""One init at a time, by an abstract Unix socket with a name of the test's own."""

from __future__ import annotations

import os
import threading

import pytest

from egress_proxy.errors import PlatformError
from egress_proxy.init.lock import exclusive


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"\0egress-proxy test {os.getpid()} {request.node.name}"


def test_the_lock_can_be_taken_again(name: str) -> None:
    for _ in range(3):
        with exclusive(name, 0):
            pass


def test_a_second_one_waits_until_the_first_has_ended(name: str) -> None:
    order = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        with exclusive(name, 10):
            order.append("second")

    with exclusive(name):
        second = threading.Thread(target=wait)
        second.start()
        waiting.wait(10)
        order.append("first")
    second.join(10)
    assert order == ["first", "second"]


def test_waiting_too_long_is_reported(name: str) -> None:
    with exclusive(name), pytest.raises(PlatformError) as caught, exclusive(name, 0.05):
        pass
    assert str(caught.value) == (
        "another init has been running in this pod for 0.05 s; "
        "see its log; if there is none, delete the pod"
    )


def test_many_processes_take_the_lock_one_after_the_other(name: str) -> None:
    inside, most, number = 0, 0, 8
    guard = threading.Lock()
    start = threading.Barrier(number)

    def take() -> None:
        nonlocal inside, most
        start.wait(10)
        with exclusive(name, 10):
            with guard:
                inside += 1
                most = max(most, inside)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=take) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert (inside, most) == (0, 1)
