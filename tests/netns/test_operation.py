"""The installed command in operation: probes, signals, reloads, a lost source address."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from contextlib import ExitStack
from http.client import HTTPConnection
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.support.deployment import (
    BOTH_DATA_PLANES,
    ENDPOINTS,
    LEAST_PRIVILEGE,
    RUN_ENV,
    Deployment,
)
from tests.support.lab import GATEWAY, OUTSIDE, OUTSIDE_SECOND, POD, RESERVED
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyroute2 import IPRoute

    from tests.support.lab import Lab
    from tests.support.network import Namespace
    from tests.support.processes import Process

MACVLAN = "macvlan0"
ADMIN_PORT = 9153
MIB = 1 << 20


@pytest.fixture(params=BOTH_DATA_PLANES)
def deployment(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with Deployment(lab, BOTH_DATA_PLANES[request.param]) as deployed:
        deployed.take_source()
        yield deployed


@pytest.fixture
def proxy(deployment: Deployment) -> Process:
    process = deployment.start()
    process.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    return process


def get(host: Namespace, path: str, address: str = POD.v4) -> tuple[int, str]:
    """The status and the text of the admin port's answer to a client on `host`."""
    connection = HTTPConnection(address, ADMIN_PORT)
    connection.sock = host.connect(address, ADMIN_PORT)
    connection.request("GET", path)
    answer = connection.getresponse()
    with answer:
        return answer.status, answer.read().decode()


def status(host: Namespace) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(get(host, "/status.json")[1])["status"]
    return told


def states(host: Namespace) -> list[str]:
    return [entry["state"] for entry in status(host)["destinations"]]


def use_once(deployment: Deployment, port: int) -> None:
    """One session, to its end: the record of it is written."""
    with deployment.connect(port) as session:
        session.round_trip()
        session.finish()


def remove_address(ip: IPRoute) -> None:
    [index] = ip.link_lookup(ifname=MACVLAN)
    ip.addr(
        "del", index=index, address=RESERVED.v4, prefixlen=RESERVED.interface4.network.prefixlen
    )


def add_address(ip: IPRoute) -> None:
    [index] = ip.link_lookup(ifname=MACVLAN)
    ip.addr(
        "add", index=index, address=RESERVED.v4, prefixlen=RESERVED.interface4.network.prefixlen
    )


def set_down(ip: IPRoute) -> None:
    ip.link("set", index=ip.link_lookup(ifname=MACVLAN)[0], state="down")


def set_up(ip: IPRoute) -> None:
    ip.link("set", index=ip.link_lookup(ifname=MACVLAN)[0], state="up")


def narrow_netmask(ip: IPRoute) -> None:
    """Of the source address, which stays there all the time."""
    source = {"index": ip.link_lookup(ifname=MACVLAN)[0], "address": RESERVED.v4}
    ip.addr("add", **source, prefixlen=26)
    ip.addr("del", **source, prefixlen=RESERVED.interface4.network.prefixlen)


def test_another_netmask_makes_a_destination_a_network_address(deployment: Deployment) -> None:
    network = str(ip_network(f"{RESERVED.v4}/26", strict=False).network_address)
    process = deployment.start(EGRESS_DNS_PROXY_DESTINATION=f"80 {OUTSIDE.v4}\n90 {network}")
    process.wait_for("listener.opened", listener=90)
    deployment.lab.pod.netlink(narrow_netmask)
    process.wait_for("destination.denied", address=network)
    process.wait_for("listener.closed", listener=90)
    with deployment.connect(80) as session:
        session.round_trip()


@pytest.mark.parametrize(
    ("lose", "restore", "why"),
    [
        (remove_address, add_address, "no interface has it"),
        (set_down, set_up, f"interface {MACVLAN} is down"),
    ],
    ids=["address", "interface"],
)
def test_without_its_source_the_pod_refuses_and_recovers(
    deployment: Deployment,
    proxy: Process,
    lose: Callable[[IPRoute], None],
    restore: Callable[[IPRoute], None],
    why: str,
) -> None:
    lab = deployment.lab
    assert get(lab.client, "/readyz") == (200, "ok\n")
    lab.pod.netlink(lose)
    lost = proxy.wait_for("source.lost")
    assert (lost["address"], lost["error"]) == (RESERVED.v4, why)
    for port in ENDPOINTS:
        proxy.wait_for("listener.closed", listener=port)
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(POD.v4, port)
    assert get(lab.client, "/livez") == (200, "ok\n")
    code, text = get(lab.client, "/readyz")
    assert code == 503
    assert f"source address {RESERVED.v4}: {why}\n" in text
    # Metrics and status are taken once a second.
    lost_metric = f'egress_proxy_source_up{{address="{RESERVED.v4}"}} 0\n'
    wait_until(lambda: lost_metric in get(lab.client, "/metrics")[1])

    lab.pod.netlink(restore)
    proxy.wait_for("source.restored", address=RESERVED.v4)
    for port in ENDPOINTS:
        proxy.wait_for("listener.opened", listener=port)
    wait_until(lambda: get(lab.client, "/readyz") == (200, "ok\n"))
    # What init did to the routes is gone with the address: run only has to be willing again.
    wait_until(lambda: states(lab.client) == ["listening"] * 3)


def test_the_egress_interface_itself_may_go(deployment: Deployment, proxy: Process) -> None:
    deployment.lab.pod.netlink(lambda ip: ip.link("del", index=ip.link_lookup(ifname=MACVLAN)[0]))
    assert proxy.wait_for("source.lost")["error"] == "no interface has it"
    with pytest.raises(ConnectionRefusedError):
        deployment.lab.client.connect(POD.v4, 80)


def test_the_lan_finds_no_admin_port(deployment: Deployment, proxy: Process) -> None:
    assert get(deployment.lab.client, "/livez")[0] == 200
    with pytest.raises(OSError, match=r"refused|timed out"):
        deployment.lab.gateway.connect(RESERVED.v4, ADMIN_PORT, timeout_s=2).close()
    assert proxy.stderr == ""


def test_readiness_ends_when_the_drain_begins(deployment: Deployment, proxy: Process) -> None:
    with deployment.connect(80):
        proxy.terminate()
        proxy.wait_for("daemon.draining")
        assert get(deployment.lab.client, "/readyz") == (503, "the pod is draining\n")
        assert get(deployment.lab.client, "/livez") == (200, "ok\n")
    assert proxy.stop() == 0


def switch_debug(proxy: Process, *, debug: bool) -> None:
    """Send SIGUSR1 until it takes effect: two within 250 ms are one."""
    switched = {"event": "log.switched", "debug": debug}

    def has_switched() -> bool:
        os.kill(proxy.pid, signal.SIGUSR1)
        return any(switched.items() <= record.items() for record in proxy.records)

    wait_until(has_switched)


def test_a_signal_turns_debug_on_and_off(deployment: Deployment) -> None:
    proxy = deployment.start(EGRESS_DNS_PROXY_DEBUG="")
    proxy.wait_for("daemon.ready")
    use_once(deployment, 80)
    switch_debug(proxy, debug=True)
    use_once(deployment, 80)
    record = proxy.wait_for("connection.closed", listener=80)
    # With DEBUG, the record has the source port too.
    assert record["source"].startswith(RESERVED.v4)
    switch_debug(proxy, debug=False)
    use_once(deployment, 80)
    assert status(deployment.lab.client)["destinations"][0]["total"] == 3
    assert len([record for record in proxy.records if record["event"] == "connection.closed"]) == 1


def test_sessions_are_listed_only_where_that_is_wanted(
    deployment: Deployment, proxy: Process
) -> None:
    code, text = get(deployment.lab.client, "/sessions.json")
    assert (code, text) == (
        403,
        "EGRESS_DNS_PROXY_ADMIN_SESSIONS is off: sessions are not listed\n",
    )
    assert status(deployment.lab.client)["sessions_listed"] is False
    assert proxy.stop() == 0
    deployment.start(EGRESS_DNS_PROXY_ADMIN_SESSIONS="on").wait_for("daemon.ready", unresolved=[])
    with ExitStack() as ends:
        client, upstream = map(ends.enter_context, deployment.connect(80))
        for end in deployment.connect(100):
            ends.enter_context(end)
        client.sendall(b"question")
        assert upstream.recv(8) == b"question"
        code, text = get(deployment.lab.client, "/sessions.json?listener=80&sort=bytes")
        assert code == 200
        told = json.loads(text)
        [session] = told["sessions"]
        assert told["total"] == 1
        assert session["client"] == "{}:{}".format(*client.getsockname())
        assert (session["listener"], session["address"]) == (80, f"{OUTSIDE.v4}:80")
        # The kernel counts octets of a destination, and not of each session.
        octets = 0 if deployment.by_kernel else 8
        assert (session["bytes_to_upstream"], session["bytes_to_client"]) == (octets, 0)
        assert 0 <= session["idle_s"] <= session["age_s"] < 10
        assert json.loads(get(deployment.lab.client, "/sessions.json")[1])["total"] == 2
        code, text = get(deployment.lab.client, "/sessions.json?limit=0")
        assert (code, text) == (400, "limit is a number from 1 to 1000\n")


class ConfigMap:
    """A volume as the kubelet writes it: files are links into a directory that is swapped."""

    def __init__(self, directory: Path, text: str) -> None:
        self._directory = directory
        self._generation = 0
        self.path = directory / "destinations"
        self.update(text)
        self.path.symlink_to("..data/destinations")

    def update(self, text: str) -> None:
        self._generation += 1
        now = self._directory / f"..{self._generation}"
        now.mkdir()
        (now / "destinations").write_text(text)
        link = self._directory / "..data_tmp"
        link.symlink_to(now.name)
        link.rename(self._directory / "..data")
        for path in self._directory.iterdir():
            path.chmod(0o755)


@pytest.fixture
def config_map() -> Iterator[ConfigMap]:
    # The command is another user, which finds no way into the directories of tmp_path.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield ConfigMap(directory, RUN_ENV["EGRESS_DNS_PROXY_DESTINATION"])


@pytest.fixture
def from_file(deployment: Deployment, config_map: ConfigMap) -> Process:
    process = deployment.start(
        EGRESS_DNS_PROXY_DESTINATION="", EGRESS_DNS_PROXY_DESTINATION_FILE=str(config_map.path)
    )
    process.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    return process


def test_a_config_map_is_picked_up_by_itself(
    deployment: Deployment, config_map: ConfigMap, from_file: Process
) -> None:
    with deployment.connect(80) as kept, deployment.connect(100) as removed:
        config_map.update(f"80 {OUTSIDE.v4}\n8443 {OUTSIDE.v4} 100\n")
        record = from_file.wait_for("config.reloaded")
        assert {key: record[key] for key in ("added", "changed", "removed", "unchanged")} == {
            "added": [],
            "changed": [8443],
            "removed": [100],
            "unchanged": 1,
        }
        with pytest.raises(ConnectionRefusedError):
            deployment.lab.client.connect(POD.v4, 100)
        with deployment.lab.client.connect(POD.v4, 8443) as client:
            # The listener behind port 100 is where 8443 leads now.
            upstream = deployment.accept(100)
            with upstream:
                client.sendall(b"changed")
                assert upstream.recv(7) == b"changed"
        for session in (kept, removed):
            session.round_trip()


def test_sessions_of_a_removed_destination_end_in_time(
    deployment: Deployment, config_map: ConfigMap
) -> None:
    proxy = deployment.start(
        EGRESS_DNS_PROXY_DESTINATION="",
        EGRESS_DNS_PROXY_DESTINATION_FILE=str(config_map.path),
        EGRESS_DNS_PROXY_REMOVED_TIMEOUT="100ms",
    )
    proxy.wait_for("daemon.ready", listeners=len(ENDPOINTS))
    with deployment.connect(80) as kept, deployment.connect(100) as removed:
        config_map.update(f"80 {OUTSIDE.v4}\n")
        proxy.wait_for("config.reloaded", removed=[100, 8443])
        assert proxy.wait_for("connection.closed", listener=100)["reason"] == "drained"
        if deployment.by_kernel:
            # It resets who sends, and nobody before.
            removed.client.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            removed.client.recv(1)
        kept.round_trip()


def test_a_wrong_file_changes_nothing(
    deployment: Deployment, config_map: ConfigMap, from_file: Process
) -> None:
    config_map.update("80 localhost\n9153 192.0.2.1\n100 example.com\n")
    record = from_file.wait_for("config.rejected")
    assert record["problems"] == [
        (
            "EGRESS_DNS_PROXY_DESTINATION_FILE line 1: 'localhost': a name of a single label; "
            "write it in full, for example localhost.example.com"
        ),
        (
            "EGRESS_DNS_PROXY_DESTINATION_FILE line 2: '9153': health and metrics are on this "
            "port; use another port, or set EGRESS_DNS_PROXY_ADMIN_LISTEN"
        ),
    ]
    config_map.update("9153 192.0.2.1\n")
    record = from_file.wait_for("config.rejected")
    assert record["problems"] == [
        (
            "EGRESS_DNS_PROXY_DESTINATION_FILE line 1: '9153': health and metrics are on this "
            "port; use another port, or set EGRESS_DNS_PROXY_ADMIN_LISTEN"
        )
    ]
    for port in ENDPOINTS:
        use_once(deployment, port)
    told = status(deployment.lab.client)
    assert (told["reloads"]["rejected"], told["reloads"]["problems"]) == (2, record["problems"])


class Sessions:
    """One session after another through `port`, without a pause, in a thread."""

    def __init__(self, deployment: Deployment, port: int) -> None:
        self.failures: list[OSError] = []
        self._deployment = deployment
        self._port = port
        self._stop = threading.Event()
        self._done = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"sessions of port {port}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until `count` sessions more have come and gone."""
        for _ in range(count):
            assert self._done.acquire(timeout=10), "sessions stopped"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._deployment.connect(self._port) as session:
                    session.finish()
            except OSError as error:
                self.failures.append(error)
            self._done.release()


def test_clients_never_notice_twenty_reloads(
    deployment: Deployment, config_map: ConfigMap, from_file: Process
) -> None:
    # Port 80 stays, 8443 is changed each time, and another port comes and goes.
    texts = [
        f"{port} example.com 100\n80 {OUTSIDE.v4}\n8443 {host} 443\n"
        for port, host in ((100, "web.example.com"), (101, OUTSIDE_SECOND.v4))
    ]
    with (
        deployment.connect(80) as session,
        Sessions(deployment, 80) as unchanged,
        Sessions(deployment, 8443) as changed,
    ):
        for number in range(1, 21):
            config_map.update(texts[number % 2])
            os.kill(from_file.pid, signal.SIGHUP)
            from_file.wait_for("config.reloaded", changed=[8443], unchanged=1)
            unchanged.wait_for(10)
            changed.wait_for(10)
        session.round_trip()
    assert (unchanged.failures, changed.failures) == ([], [])
    assert from_file.stderr == ""


def test_an_idle_daemon_stays_small(deployment: Deployment) -> None:
    # Without what measures coverage, which has a size of its own.
    proxy = deployment.start(
        COVERAGE_PROCESS_START="", COVERAGE_PROCESS_CONFIG="", PYTHONPROFILEIMPORTTIME="1"
    )
    proxy.wait_for("daemon.ready")
    for path in ("/", "/metrics", "/status.json", "/readyz", "/livez"):
        assert get(deployment.lab.client, path)[0] == 200
    [line] = [
        line
        for line in Path(f"/proc/{proxy.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]
    assert int(line.split()[1]) * 1024 < 45 * MIB, line
    # Python reports each import on stderr. pyroute2, which only init needs, costs 25 MiB.
    imported = {line.rpartition("|")[2].strip() for line in proxy.stderr.splitlines()}
    assert "uvloop" in imported
    assert "pyroute2" not in imported


def check(deployment: Deployment, *options: str, **more_env: str) -> tuple[int, Any, str]:
    done = deployment.check("--output", "json", *options, in_main=False, **more_env)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_check_probes_the_gateway_and_connects_to_every_address(deployment: Deployment) -> None:
    status, report, _ = check(deployment, "--connect")
    found = {finding["subject"]: finding for finding in report["findings"]}
    assert found["source"]["detail"] == RESERVED.v4
    assert found["gateway"]["detail"] == f"{GATEWAY.v4} answers"
    assert found["8443 -> web.example.com:443"]["detail"].startswith(OUTSIDE_SECOND.v4)
    assert found[f"connect 100 -> {OUTSIDE.v4} port 100"]["state"] == "good"
    assert (status, report["problems"]) == (0, [])


def test_check_in_the_main_container_that_has_the_variables_of_both(lab: Lab) -> None:
    """One ConfigMap for both containers; the main one has no capability."""
    with Deployment(lab, LEAST_PRIVILEGE) as deployed:
        before = deployed.check(in_main=True)
        assert before.returncode == 1, before.stdout
        assert "init has no capability NET_ADMIN" in before.stderr, before.stdout
        deployed.init()
        deployed.start().wait_for("daemon.ready")
        after = deployed.check("--connect", in_main=True)
    assert (after.returncode, after.stderr) == (0, "")
    rows = [line.split(maxsplit=2) for line in after.stdout.splitlines()]
    for subject, detail in (
        ("network", "it is as init makes it"),
        ("ports", "egress-proxy run is running in this pod and has them"),
    ):
        assert ["good", subject, detail] in rows


def test_check_finds_what_is_wrong_outside(deployment: Deployment) -> None:
    # No host on the LAN has the first address, the second refuses, and the name does not exist.
    nobody = str(GATEWAY.interface4.network[77])
    destinations = f"80 {OUTSIDE.v4} 81\n443 nothing.example.com\n"
    status, report, errors = check(
        deployment,
        "--connect",
        EGRESS_DNS_PROXY_DESTINATION=destinations,
        EGRESS_GATEWAY=nobody,
    )
    assert status == 1
    assert [problem["reason"].partition(": ")[0] for problem in report["problems"]] == [
        "gateway",
        f"connect 80 -> {OUTSIDE.v4} port 81",
        "443 -> nothing.example.com:443",
    ]
    assert all(problem["cure"] for problem in report["problems"])
    assert len(errors.splitlines()) == 3
