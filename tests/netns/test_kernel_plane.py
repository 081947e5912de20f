"""What is the kernel data plane's own: its rules, what they forward, and what is left of them."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from egress_proxy.nft.command import list_table
from egress_proxy.nft.rules_writer import put_table
from egress_proxy.nft.table import same
from tests.netns import swapping_addresses
from tests.netns.test_redirect import add_route, captured, nft, senders
from tests.support.deployment import ENDPOINTS, KERNEL, Deployment
from tests.support.dns import Name
from tests.support.lab import CLIENT, EGRESS_PROXY, GATEWAY, OUTSIDE, OUTSIDE_SECOND, POD, RESERVED
from tests.support.namespaces import Container
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab
    from tests.support.processes import Process

ROOT = Path(__file__).resolve().parents[2]
PORT, REMOTE_PORT = 9000, 7000
NAME = "two.example.com"
KERNEL_ENV = KERNEL.env


@pytest.fixture
def deployment(lab: Lab) -> Iterator[Deployment]:
    with Deployment(lab, KERNEL) as deployed:
        deployed.take_source()
        yield deployed


def start(deployment: Deployment, **env: str) -> Process:
    proxy = deployment.start(EGRESS_DNS_PROXY_DESTINATION=f"{PORT} {NAME} {REMOTE_PORT}", **env)
    proxy.wait_for("daemon.ready")
    return proxy


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_clients_are_spread_evenly_over_the_addresses_of_a_name(deployment: Deployment) -> None:
    lab = deployment.lab
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4, OUTSIDE_SECOND.v4))
    proxy = start(deployment)
    with (
        lab.outside.listen(OUTSIDE.v4, REMOTE_PORT),
        lab.outside.listen(OUTSIDE_SECOND.v4, REMOTE_PORT),
    ):
        for _ in range(10):
            reset(lab.client.connect(POD.v4, PORT))
        records = [proxy.wait_for("connection.closed") for _ in range(10)]
    assert Counter(record["address"] for record in records) == {
        f"{OUTSIDE.v4}:{REMOTE_PORT}": 5,
        f"{OUTSIDE_SECOND.v4}:{REMOTE_PORT}": 5,
    }
    assert {record["reason"] for record in records} == {"reset"}


def test_an_address_that_refuses_is_left_out(deployment: Deployment) -> None:
    """The client that finds it out is refused too: the kernel tries no other address for it."""
    lab = deployment.lab
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4, OUTSIDE_SECOND.v4))
    proxy = start(deployment)
    with lab.outside.listen(OUTSIDE.v4, REMOTE_PORT), ExitStack() as stack:
        refused = 0
        for _ in range(2):
            try:
                stack.enter_context(lab.client.connect(POD.v4, PORT))
            except ConnectionRefusedError:
                refused += 1
        assert refused == 1
        failed = proxy.wait_for("upstream.failed")
        assert (failed["address"], failed["error"]) == (OUTSIDE_SECOND.v4, "Connection refused")
        wait_until(lambda: OUTSIDE_SECOND.v4 not in lab.pod.call(list_table))
        for _ in range(10):
            stack.enter_context(lab.client.connect(POD.v4, PORT))


def test_health_checks_find_out_before_a_client_does(deployment: Deployment) -> None:
    lab = deployment.lab
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4, OUTSIDE_SECOND.v4))
    with lab.outside.listen(OUTSIDE.v4, REMOTE_PORT), ExitStack() as stack:
        proxy = start(deployment, EGRESS_DNS_PROXY_HEALTH_INTERVAL="1s")
        proxy.wait_for("upstream.failed", address=OUTSIDE_SECOND.v4)
        wait_until(lambda: OUTSIDE_SECOND.v4 not in lab.pod.call(list_table))
        for _ in range(4):
            stack.enter_context(lab.client.connect(POD.v4, PORT))
        stack.enter_context(lab.outside.listen(OUTSIDE_SECOND.v4, REMOTE_PORT))
        proxy.wait_for("upstream.recovered", address=OUTSIDE_SECOND.v4)
        wait_until(lambda: OUTSIDE_SECOND.v4 in lab.pod.call(list_table))


def test_a_change_of_the_name_leaves_sessions_alone(deployment: Deployment) -> None:
    lab = deployment.lab
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,), ttl_s=0)
    proxy = start(deployment)
    with (
        lab.outside.listen(OUTSIDE.v4, REMOTE_PORT) as old,
        lab.outside.listen(OUTSIDE_SECOND.v4, REMOTE_PORT) as new,
        lab.client.connect(POD.v4, PORT) as client,
        old.accept()[0] as upstream,
    ):
        deployment.dns.zone[NAME] = Name(a=(OUTSIDE_SECOND.v4,), ttl_s=0)
        proxy.wait_for("destination.changed", timeout_s=20, addresses=[OUTSIDE_SECOND.v4])
        wait_until(lambda: OUTSIDE_SECOND.v4 in lab.pod.call(list_table))
        with lab.client.connect(POD.v4, PORT), new.accept()[0]:
            pass
        client.sendall(b"still")
        assert upstream.recv(5) == b"still"


def test_the_maximum_and_the_allowed_clients(deployment: Deployment) -> None:
    lab = deployment.lab
    deployment.dns.zone[NAME] = Name(a=(OUTSIDE.v4,))
    start(
        deployment,
        EGRESS_DNS_PROXY_MAX_CONNECTIONS="2",
        EGRESS_DNS_PROXY_ALLOW_CLIENTS=f"{CLIENT.v4}/32",
    )
    with lab.outside.listen(OUTSIDE.v4, REMOTE_PORT):
        with pytest.raises(ConnectionRefusedError):
            lab.node.connect(POD.v4, PORT)
        with lab.client.connect(POD.v4, PORT):
            second = lab.client.connect(POD.v4, PORT)
            with pytest.raises(ConnectionRefusedError):
                lab.client.connect(POD.v4, PORT)
            reset(second)

            def admitted() -> bool:
                try:
                    lab.client.connect(POD.v4, PORT).close()
                except ConnectionRefusedError:
                    return False
                return True

            # The kernel counts again with the next client, some milliseconds later.
            wait_until(admitted)


@pytest.mark.parametrize("rp_filter", [0])
def test_nothing_else_is_forwarded_while_it_runs_and_after_it_was_killed(
    deployment: Deployment,
) -> None:
    lab = deployment.lab
    add_route(lab.node, OUTSIDE, POD)
    add_route(lab.gateway, CLIENT, RESERVED)
    proxy = deployment.start()
    proxy.wait_for("daemon.ready", listeners=len(ENDPOINTS))

    def strangers() -> set[str]:
        with (
            captured(lab.gateway, "lan0") as outside,
            captured(lab.client, "eth0") as inside,
            lab.client.bind(CLIENT.v4, 0) as client,
            lab.gateway.bind(GATEWAY.v4, 0) as gateway,
        ):
            client.sendto(b"through", (OUTSIDE.v4, 9))
            gateway.sendto(b"through", (CLIENT.v4, 9))
            # The pod handles packets in order.
            deployment.connect(80).close()
        return senders(outside) & {CLIENT.v4} | senders(inside) & {GATEWAY.v4}

    assert strangers() == set()
    os.kill(proxy.pid, signal.SIGKILL)
    proxy.wait()
    assert strangers() == set()
    # Were it not for the rules, they would be forwarded.
    nft(lab.pod, "chain inet egress_proxy forward { policy accept; }")
    nft(lab.pod, "flush chain inet egress_proxy forward")
    assert strangers() == {CLIENT.v4, GATEWAY.v4}


def test_a_crash_leaves_sessions_and_the_next_start_takes_them_over(
    deployment: Deployment,
) -> None:
    first = deployment.start()
    first.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    with deployment.connect(80) as session:
        session.round_trip()
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        session.round_trip()
        deployment.connect(80).close()
        second = deployment.start()
        second.wait_for("daemon.ready", listeners=len(ENDPOINTS))
        session.round_trip()
        session.finish()
        closed = second.wait_for("connection.closed", reason="finished")
        assert closed["address"] == f"{OUTSIDE.v4}:80"


def test_a_drain_takes_rules_and_forwarding_away(deployment: Deployment) -> None:
    lab = deployment.lab

    def forwarding() -> list[str]:
        return lab.pod.call(
            lambda: [
                Path(f"/proc/sys/net/ipv4/conf/{name}/{key}").read_text().strip()
                for name in ("eth0", "macvlan0")
                for key in ("forwarding", "rp_filter")
            ]
        )

    before = forwarding()
    proxy = deployment.start(EGRESS_DNS_PROXY_DRAIN_TIMEOUT="3s")
    proxy.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    assert forwarding() == ["1", "2", "1", "1"]
    with deployment.connect(80) as session:
        session.round_trip()
        proxy.terminate()
        proxy.wait_for("listener.closed", listener=80)
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(POD.v4, 80)
        session.round_trip()
        assert proxy.wait_for("connection.closed")["reason"] == "drained"
        assert proxy.wait() == 0
        assert proxy.wait_for("daemon.stopped")["reset"] == 1
    assert nft(lab.pod, "list", "ruleset") == ""
    assert forwarding() == before


def test_a_reload_adds_changes_and_removes_ports(deployment: Deployment, tmp_path: Path) -> None:
    lab = deployment.lab
    path = tmp_path / "destinations"
    path.write_text(f"80 {OUTSIDE.v4}\n81 {OUTSIDE.v4} 100")
    proxy = deployment.start(
        EGRESS_DNS_PROXY_DESTINATION="", EGRESS_DNS_PROXY_DESTINATION_FILE=str(path)
    )
    proxy.wait_for("daemon.ready", listeners=2)
    with deployment.connect(80) as session:
        session.round_trip()
        path.write_text(f"81 {OUTSIDE_SECOND.v4} 443\n82 {OUTSIDE.v4} 100")
        os.kill(proxy.pid, signal.SIGHUP)
        reloaded = proxy.wait_for("config.reloaded")
        assert (reloaded["added"], reloaded["changed"], reloaded["removed"]) == ([82], [81], [80])
        proxy.wait_for("listener.opened", listener=82)
        proxy.wait_for("listener.closed", listener=80)
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(POD.v4, 80)
        lab.client.connect(POD.v4, 81).close()
        deployment.accept(8443).close()
        lab.client.connect(POD.v4, 82).close()
        deployment.accept(100).close()
        session.round_trip()


@pytest.mark.parametrize(
    ("main", "env", "said"),
    [
        (
            Container(uid=10001, read_only=True),
            {},
            (
                "EGRESS_DNS_PROXY_DATAPLANE: 'kernel': the kernel refuses it: "
                "cache initialization failed: Operation not permitted; add NET_ADMIN to the main "
                "container's securityContext.capabilities, and runAsUser: 0"
            ),
        ),
        (
            KERNEL.main,
            {"EGRESS_DNS_PROXY_SOURCE": "any"},
            (
                "EGRESS_DNS_PROXY_DATAPLANE: 'kernel': it needs a reserved address; "
                "set EGRESS_DNS_PROXY_SOURCE"
            ),
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_where_it_can_not_work_it_does_not_start(
    deployment: Deployment, command: str, main: Container, env: dict[str, str], said: str
) -> None:
    done = deployment.lab.pod.run(
        EGRESS_PROXY,
        command,
        env={"EGRESS_DNS_PROXY_DESTINATION": f"8000 {OUTSIDE.v4}", **KERNEL_ENV, **env},
        container=main,
    )
    assert (done.returncode, done.stderr.splitlines()) == (1, [said]), done
    assert nft(deployment.lab.pod, "list", "ruleset") == ""


def test_check_shows_the_rules_that_run_sets(deployment: Deployment) -> None:
    lab = deployment.lab
    done = deployment.check(in_main=True, EGRESS_DNS_PROXY_DEBUG="")
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    commands = [line for line in lines[lines.index("rules:") + 1 :] if line.startswith("  nft ")]
    assert nft(lab.pod, "list", "ruleset") == ""
    for line in commands:
        nft(lab.pod, *shlex.split(line)[1:])
    by_hand = lab.pod.call(list_table)
    deployment.start(EGRESS_DNS_PROXY_DEBUG="").wait_for("daemon.ready", unresolved=[])
    assert same(lab.pod.call(list_table), by_hand)
    # Also beside the one that runs.
    assert deployment.check(in_main=True).returncode == 0


@contextmanager
def new_clients(lab: Lab) -> Iterator[None]:
    """SYNs of ever new clients to the pod, and through it to where no rule leads."""
    ended = threading.Event()
    ports = cycle(swapping_addresses.PORTS)

    def send() -> None:
        while not ended.is_set():
            for target in ((POD.v4, next(ports)), (OUTSIDE.v4, 9)):
                with lab.client.open_socket() as client:
                    client.setblocking(False)
                    client.connect_ex(target)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


KILLS = 100


@pytest.mark.timeout(300)
def test_a_kill_leaves_the_old_rules_or_the_new_ones(lab: Lab) -> None:
    with Deployment(lab, KERNEL) as deployment:
        deployment.take_source()
    lab.pod.sysctl("ipv4/ip_forward", 1)
    lab.pod.sysctl("ipv4/conf/eth0/rp_filter", 2)
    add_route(lab.node, OUTSIDE, POD)
    outsides = (OUTSIDE.v4, OUTSIDE_SECOND.v4)
    listings = [swapping_addresses.rules(outside).table().listing() for outside in outsides]
    lab.pod.call(lambda: put_table(None, swapping_addresses.rules(OUTSIDE.v4).table()))
    found = [0, 0]
    with captured(lab.gateway, "lan0") as packets, new_clients(lab):
        for kill in range(KILLS):
            argv = (sys.executable, "-m", "tests.netns.swapping_addresses", *outsides)
            with lab.pod.start(*argv, env={"PYTHONPATH": str(ROOT)}) as process:
                process.wait_for("swapping")
                # Wherever it is then: a transaction and reading it back take some 50 ms.
                time.sleep(kill / KILLS / 5)
            listing = lab.pod.call(list_table)
            [index] = [number for number in (0, 1) if same(listing, listings[number])]
            found[index] += 1
    assert senders(packets) <= {RESERVED.v4, RESERVED.v6, "::"}
    assert len(packets) > KILLS
    # Both were seen, so the kills came in the midst of it.
    assert all(found), found
