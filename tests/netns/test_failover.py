"""A name with three addresses, of which one answers, one refuses and one swallows everything."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment
from tests.support.dns import Name
from tests.support.lab import OUTSIDE, OUTSIDE_SECOND, POD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

PORT = 9000
NAME = "many.example.com"
SWALLOWED = "203.0.113.200"
CLIENTS = 1000
AT_ONCE = 4


@pytest.fixture
def deployment(lab: Lab) -> Iterator[Deployment]:
    lab.gateway.netlink(lambda ip: ip.route("add", dst=f"{SWALLOWED}/32", type="blackhole"))
    with Deployment(lab) as deployed:
        deployed.take_source()
        deployed.dns.zone[NAME] = Name(a=(OUTSIDE.v4, OUTSIDE_SECOND.v4, SWALLOWED))
        yield deployed


@pytest.fixture
def greeter(lab: Lab) -> Iterator[None]:
    """Sends a greeting to each client of the first address."""
    listener = lab.outside.listen(OUTSIDE.v4, PORT)

    def greet() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # shut down
                return
            with client:
                client.sendall(b"hello")

    thread = threading.Thread(target=greet, name="greeter")
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def greeted(_number: int) -> bytes:
    with (
        socket.create_connection((POD.v4, PORT), timeout=10) as client,
        client.makefile("rb") as stream,
    ):
        return stream.read()


@pytest.mark.usefixtures("greeter")
def test_none_of_a_thousand_clients_fails(deployment: Deployment) -> None:
    proxy = deployment.start(EGRESS_DNS_PROXY_DESTINATION=f"{PORT} {NAME}")
    proxy.wait_for("listener.opened", listener=PORT)

    def connect_all() -> Counter[bytes]:
        # Threads are born into the namespace of the one that starts them.
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            return Counter(pool.map(greeted, range(CLIENTS)))

    assert deployment.lab.client.call(connect_all) == {b"hello": CLIENTS}
    records = [proxy.wait_for("connection.closed", listener=PORT) for _ in range(CLIENTS)]
    assert {record["reason"] for record in records} == {"finished"}
    assert {record["address"] for record in records} == {f"{OUTSIDE.v4}:{PORT}"}
    connect_s = sorted(record["connect_s"] for record in records)
    assert connect_s[CLIENTS * 99 // 100] < 0.4, connect_s[-20:]
    # Found out by the first clients, and by one each time a penalty is over.
    found_out = sum(record["attempts"] - 1 for record in records)
    duration_s = sum(record["duration_s"] for record in records) / AT_ONCE
    assert 2 <= found_out <= 2 * AT_ONCE + 2 * (1 + duration_s / 10)
    failed = [record for record in proxy.records if record["event"] == "upstream.failed"]
    assert {(record["address"], record["error"]) for record in failed} == {
        (OUTSIDE_SECOND.v4, "Connection refused"),
        (SWALLOWED, "silent while another address answered"),
    }
    assert len(failed) == 2
    proxy.terminate()
    assert proxy.stop() == 0
