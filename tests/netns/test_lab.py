"""The laboratory itself: who reaches whom, what a command inside may do, how everything ends."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import CLIENT, CLUSTER_DNS, GATEWAY, OUTSIDE, POD, RESERVED, Lab
from tests.support.namespaces import Container
from tests.support.network import COVERAGE, IPV6, Host, Namespace

if TYPE_CHECKING:
    from pyroute2 import IPRoute

FAMILIES = [
    "v4",
    pytest.param("v6", marks=pytest.mark.skipif(not IPV6, reason="the kernel has no IPv6")),
]

# What the kernel says of the process that prints it: no shell and no tool but Python.
SHOW_STATUS = "print(open('/proc/self/status').read())"
# Python's own os.environ would have one variable more.
SHOW_SURROUNDINGS = """
import json, os
print(json.dumps({
    "environment": open("/proc/self/environ").read().rstrip("\\0").split("\\0"),
    "descriptors": os.listdir("/proc/self/fd"),
    "resolv_conf": open("/etc/resolv.conf").read(),
}))
"""
# A command that reports that it runs, and ends on request.
SHOW_READY = """
import json, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(json.dumps({"event": "ready", "number": 1}), flush=True)
print("not a record", flush=True)
print(json.dumps({"event": "ready", "number": 2}), flush=True)
print("and on stderr", file=sys.stderr, flush=True)
signal.pause()
"""


def python(text: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-c", text


def exchange(server: Namespace, at: str, client: Namespace) -> str:
    """A byte there and back; the address that the server saw."""
    with (
        server.listen(at, 0) as listener,
        client.connect(at, listener.getsockname()[1], timeout_s=2) as there,
        listener.accept()[0] as here,
    ):
        there.sendall(b"?")
        assert here.recv(1) == b"?"
        here.sendall(b"!")
        assert there.recv(1) == b"!"
        return str(here.getpeername()[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_on_another_subnet_reaches_the_pod(lab: Lab, family: str) -> None:
    pod, client = getattr(POD, family), getattr(CLIENT, family)
    assert exchange(lab.pod, pod, lab.client) == client
    assert CLIENT.interface4.ip not in POD.interface4.network
    assert CLIENT.interface6.ip not in POD.interface6.network


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("host", [POD, CLIENT, CLUSTER_DNS])
def test_neither_outside_nor_gateway_has_a_route_to_the_cluster(
    lab: Lab, host: Host, family: str
) -> None:
    for stranger in (lab.outside, lab.gateway):
        with pytest.raises(OSError, match="Network is unreachable"):
            stranger.connect(getattr(host, family), 80)


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_answers_the_reserved_address_on_the_macvlan(lab: Lab, family: str) -> None:
    take_reserved_address(lab.pod)
    assert exchange(lab.outside, getattr(OUTSIDE, family), lab.pod) == getattr(RESERVED, family)


def take_reserved_address(pod: Namespace) -> None:
    """Bring traffic to the outside onto the macvlan, the crude way."""
    pod.configure("macvlan0", RESERVED)
    pod.route(Host(OUTSIDE.interface4, OUTSIDE.interface6), GATEWAY)


def test_the_pod_has_a_bare_macvlan(lab: Lab) -> None:
    def describe(ip: IPRoute) -> tuple[str, str, int]:
        (link,) = ip.link("get", ifname="macvlan0")
        kind = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND")
        return kind, link["state"], len(list(ip.get_addr(index=link["index"])))

    assert lab.pod.netlink(describe) == ("macvlan", "down", 0)


def test_the_reverse_path_filter_is_as_wanted(lab: Lab) -> None:
    key = Path("/proc/sys/net/ipv4/conf/eth0/rp_filter")
    assert lab.pod.call(key.read_text).strip() == "1"
    with Lab(rp_filter=0) as loose:
        assert loose.pod.call(key.read_text).strip() == "0"


@pytest.mark.parametrize(
    ("container", "capabilities", "uid"),
    [
        (Container(capabilities=("NET_ADMIN", "NET_RAW")), 1 << 12 | 1 << 13, 0),
        (Container(capabilities=()), 0, 0),
        (Container(uid=10001), 0, 10001),
    ],
)
def test_a_container_has_no_more_than_it_was_given(
    lab: Lab, container: Container, capabilities: int, uid: int
) -> None:
    result = lab.pod.run(*python(SHOW_STATUS), env={}, container=container)
    assert result.stderr == ""
    status = dict(line.split(":\t", 1) for line in result.stdout.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == capabilities
    assert status["Uid"].split() == status["Gid"].split() == [str(uid)] * 4
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("container", [Container(capabilities=()), Container(uid=10001)])
def test_a_container_without_capabilities_has_no_power_over_the_network(
    lab: Lab, container: Container
) -> None:
    take_port_80 = "import socket; socket.create_server(('127.0.0.1', 80))"
    refused = lab.pod.run(*python(take_port_80), env={}, container=container)
    assert "Permission denied" in refused.stderr
    lab.pod.sysctl("ipv4/ip_unprivileged_port_start", 0)
    assert lab.pod.run(*python(take_port_80), env={}, container=container).returncode == 0


@pytest.mark.parametrize("uid", [0, 10001])
def test_a_read_only_container_can_write_nowhere(lab: Lab, tmp_path: Path, uid: int) -> None:
    container = Container(uid=uid, read_only=True)
    for path in (tmp_path / "new", Path("/proc/self/comm")):
        write = f"open({str(path)!r}, 'w').write('x')"
        assert (
            "Read-only file system"
            in lab.pod.run(*python(write), env={}, container=container).stderr
        )
    (tmp_path / "new").write_text("as before outside the container")


def test_a_command_gets_its_environment_and_resolv_conf_and_nothing_else(
    lab: Lab, tmp_path: Path
) -> None:
    before = Path("/etc/resolv.conf").read_text()
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 198.51.100.253\n")
    container = Container(resolv_conf=str(resolv_conf))
    result = lab.pod.run(*python(SHOW_SURROUNDINGS), env={"A": "b"}, container=container)
    shown = json.loads(result.stdout)
    assert dict(entry.split("=", 1) for entry in shown["environment"]) == COVERAGE | {"A": "b"}
    # The fourth descriptor is that of listing them.
    assert shown["descriptors"] == ["0", "1", "2", "3"]
    assert shown["resolv_conf"] == "nameserver 198.51.100.253\n"
    assert Path("/etc/resolv.conf").read_text() == before


def test_a_process_hands_out_each_record_once(lab: Lab) -> None:
    with lab.pod.start(*python(SHOW_READY), env={}) as process:
        assert process.wait_for("ready", number=2)["number"] == 2
        assert process.wait_for("ready")["number"] == 1
        with pytest.raises(AssertionError, match=r"nothing in 0.01 s(?s:.*)not a record"):
            process.wait_for("ready", timeout_s=0.01)
        assert process.stop() == 7
        assert len(process.records) == 3
        with pytest.raises(AssertionError, match=r"the command ended(?s:.*)and on stderr"):
            process.wait_for("ready")


def test_a_failure_shows_what_the_process_said(lab: Lab) -> None:
    pids = []

    def fail() -> None:
        with lab.pod.start(*python(SHOW_READY), env={}) as process:
            pids.append(process.pid)
            process.wait_for("ready", number=2)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        fail()
    assert "not a record" in caught.value.__notes__[0]
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_killed_test_run_takes_its_commands_with_it() -> None:
    """Nothing can be cleaned up after SIGKILL, so the kernel has to do it."""
    text = f"""
import os, signal, sys
sys.path.insert(0, {os.fspath(Path.cwd())!r})
from tests.support.network import Namespace
process = Namespace("short-lived").start(sys.executable, "-c", {SHOW_READY!r}, env={{}})
process.wait_for("ready")
print(process.pid, flush=True)
signal.pause()
"""
    with subprocess.Popen(python(text), stdout=subprocess.PIPE, text=True) as test_run:
        assert test_run.stdout is not None
        command = os.pidfd_open(int(test_run.stdout.readline()))
        try:
            test_run.kill()
            ended, _, _ = select.select([command], [], [], 10)
        finally:
            os.close(command)
    assert ended
