"""Redirect mode in a real pod: what its rules forward, and that nothing else is."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from egress_proxy.nft.conntrack import list_flows
from tests.netns.init_lab import (
    DUAL,
    NEEDED,
    V4,
    drain,
    init,
    monitor,
    run_in_pod,
    settle,
    snapshot,
)
from tests.netns.test_init_container import allowed_system_calls
from tests.support.lab import CLIENT, EGRESS_PROXY, GATEWAY, OUTSIDE, OUTSIDE_SECOND, POD, RESERVED
from tests.support.namespaces import Container

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyroute2 import IPRoute

    from tests.support.lab import Lab
    from tests.support.network import Host, Namespace

NFT = "/usr/sbin/nft"
MODE = {"EGRESS_ROUTER_MODE": "init"}
BOTH_FAMILIES = f"""\
80 tcp {OUTSIDE.v4} 8080
81 tcp {OUTSIDE.v6} 8080
80 udp {OUTSIDE.v4}
81 udp {OUTSIDE.v6} 80
"""
# linux/if_ether.h
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
# asm-generic/socket.h, linux/socket.h and linux/if_packet.h
SO_RCVBUFFORCE = 33
SOL_PACKET = 263
PACKET_STATISTICS = 6


def redirect(lab: Lab, text: str, *, base: dict[str, str] = DUAL, read_only: bool = False) -> None:
    init(lab, base | MODE | {"EGRESS_DESTINATION": text}, read_only=read_only).expect_done()


def nft(namespace: Namespace, *arguments: str) -> str:
    done = namespace.run(NFT, *arguments, env={})
    assert done.returncode == 0, done.stderr
    return done.stdout


def through(lab: Lab, pod: str, port: int, outside: str, remote_port: int) -> str:
    """Whom a TCP server outside sees when the client connects to the pod; octets go both ways."""
    with (
        lab.outside.listen(outside, remote_port) as listener,
        lab.client.connect(pod, port) as client,
        listener.accept()[0] as accepted,
    ):
        client.sendall(b"question")
        assert accepted.recv(8) == b"question"
        accepted.sendall(b"answer")
        assert client.recv(6) == b"answer"
        return str(accepted.getpeername()[0])


def datagram(lab: Lab, pod: str, port: int, outside: str, remote_port: int) -> str:
    """The same over UDP."""
    with (
        lab.outside.bind(outside, remote_port) as server,
        lab.client.bind(CLIENT.v6 if ":" in pod else CLIENT.v4, 0) as client,
    ):
        return exchange(client, (pod, port), server)


def exchange(client: socket.socket, pod: tuple[str, int], server: socket.socket) -> str:
    for each in (client, server):
        each.settimeout(5)
    client.sendto(b"question", pod)
    question, sender = server.recvfrom(512)
    assert question == b"question"
    server.sendto(b"answer", sender)
    answer, answerer = client.recvfrom(512)
    assert (answer, answerer[:2]) == (b"answer", pod)
    return str(sender[0])


@contextmanager
def captured(namespace: Namespace, interface: str) -> Iterator[list[bytes]]:
    """The IP packets that come in over `interface`, once the block has ended."""
    packets: list[bytes] = []
    with (
        namespace.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM) as four,
        namespace.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM) as six,
    ):
        for each, ethertype in ((four, ETH_P_IP), (six, ETH_P_IPV6)):
            each.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 27)
            each.bind((interface, ethertype))
        yield packets
        for each in (four, six):
            _, dropped = struct.unpack("II", each.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            assert dropped == 0
            each.setblocking(False)
            try:
                while True:
                    packets.append(each.recv(1 << 16))
            except BlockingIOError:
                continue


def senders(packets: list[bytes]) -> set[str]:
    """Their source addresses, without link-local ones."""
    return {
        socket.inet_ntop(socket.AF_INET, packet[12:16])
        if packet[0] >> 4 == 4
        else socket.inet_ntop(socket.AF_INET6, packet[8:24])
        for packet in packets
        if packet[0] >> 4 == 4 or packet[8] != 0xFE
    }


def refused(client: Namespace, pod: str, port: int) -> bool:
    with pytest.raises(OSError, match=os_error(errno.ECONNREFUSED)):
        client.connect(pod, port)
    return True


def os_error(number: int) -> str:
    return rf"\[Errno {number}\]"


def test_tcp_and_udp_in_both_families(lab: Lab) -> None:
    with captured(lab.gateway, "lan0") as packets:
        redirect(lab, BOTH_FAMILIES)
        assert through(lab, POD.v4, 80, OUTSIDE.v4, 8080) == RESERVED.v4
        assert through(lab, POD.v6, 81, OUTSIDE.v6, 8080) == RESERVED.v6
        assert datagram(lab, POD.v4, 80, OUTSIDE.v4, 80) == RESERVED.v4
        assert datagram(lab, POD.v6, 81, OUTSIDE.v6, 80) == RESERVED.v6
    assert senders(packets) <= {RESERVED.v4, RESERVED.v6, "::"}


def test_a_port_without_a_rule_refuses(lab: Lab) -> None:
    redirect(lab, BOTH_FAMILIES)
    assert refused(lab.client, POD.v4, 82)
    # A rule for an IPv6 address has nothing for IPv4 clients.
    assert refused(lab.client, POD.v4, 81)


def test_the_fallback_takes_all_ports_and_protocols(lab: Lab) -> None:
    redirect(lab, f"80 tcp {OUTSIDE.v4} 8080\n{OUTSIDE_SECOND.v4}")
    assert through(lab, POD.v4, 80, OUTSIDE.v4, 8080) == RESERVED.v4
    assert through(lab, POD.v4, 81, OUTSIDE_SECOND.v4, 81) == RESERVED.v4
    assert datagram(lab, POD.v4, 80, OUTSIDE_SECOND.v4, 80) == RESERVED.v4
    with captured(lab.outside, "eth0") as packets, ping_socket(lab.client) as pinger:
        pinger.settimeout(5)
        pinger.sendto(ICMP_ECHO, (POD.v4, 0))
        assert pinger.recvfrom(512)[1][0] == POD.v4
    [echo] = [packet for packet in packets if packet[9] == socket.IPPROTO_ICMP]
    assert senders([echo]) == {RESERVED.v4}
    assert echo[16:20] == socket.inet_aton(OUTSIDE_SECOND.v4)


# RFC 792: type 8, code 0, checksum, identifier, sequence.
ICMP_ECHO = struct.pack("!BBHHH", 8, 0, 0xF7FC, 1, 2)


def ping_socket(namespace: Namespace) -> socket.socket:
    return namespace.call(
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    )


def sctp_chunk(source: int, target: int, tag: int, kind: int) -> bytes:
    """RFC 9260 sections 3.1 and 3.3.2: INIT (1) or INIT ACK (2), with its checksum."""
    body = struct.pack("!BBHIIHHI", kind, 0, 20, 0x01020304, 65535, 1, 1, 1)
    header = struct.pack("!HHI", source, target, tag)
    # The checksum's octets go out last first (appendix A).
    return header + struct.pack("<I", crc32c(header + bytes(4) + body)) + body


def crc32c(octets: bytes) -> int:
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_sctp(lab: Lab) -> None:
    """Hand-made packets, because a kernel may have no SCTP of its own; conntrack has."""
    redirect(lab, f"80 sctp {OUTSIDE.v4} 8080", base=V4)

    def raw() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)

    with lab.client.call(raw) as client, lab.outside.call(raw) as server:
        for each in (client, server):
            each.settimeout(5)
        client.sendto(sctp_chunk(5000, 80, 0, 1), (POD.v4, 0))
        packet, (sender, _) = server.recvfrom(512)
        source, target, tag, checksum = struct.unpack_from("!HHI", packet, 20) + struct.unpack_from(
            "<I", packet, 28
        )
        assert (sender, target, tag, packet[32]) == (RESERVED.v4, 8080, 0, 1)
        assert checksum == crc32c(packet[20:28] + bytes(4) + packet[32:])
        server.sendto(sctp_chunk(8080, source, 0x01020304, 2), (sender, 0))
        answer, (answerer, _) = client.recvfrom(512)
        assert (answerer, *struct.unpack_from("!HH", answer, 20)) == (POD.v4, 80, 5000)


def test_ipv4_needs_two_capabilities_and_no_writable_file(lab: Lab) -> None:
    container = Container(
        resolv_conf="/dev/null",
        read_only=True,
        capabilities=NEEDED,
        system_calls=allowed_system_calls(),
    )
    env = V4 | MODE | {"EGRESS_DESTINATION": f"80 tcp {OUTSIDE.v4} 8080"}
    run_in_pod(lab, EGRESS_PROXY, "init", env=env, container=container).expect_done()
    assert through(lab, POD.v4, 80, OUTSIDE.v4, 8080) == RESERVED.v4


def test_ipv6_without_forwarding_on_a_read_only_proc_is_reported(lab: Lab) -> None:
    env = DUAL | MODE | {"EGRESS_DESTINATION": BOTH_FAMILIES}
    before = snapshot(lab.pod)
    result = init(lab, env, read_only=True)
    assert result.status == 1
    assert result.failure == (
        "EGRESS_DESTINATION: it has IPv6 addresses, IPv6 does not forward in this pod, "
        "and /proc/sys is read-only; set net.ipv6.conf.all.forwarding=1 in the pod's "
        "securityContext.sysctls, or with the CNI plugin tuning in the network attachment, "
        "or run init privileged\n"
    )
    assert snapshot(lab.pod) == before
    assert nft(lab.pod, "list", "ruleset") == ""
    # What the cure does.
    lab.pod.sysctl("ipv6/conf/all/forwarding", 1)
    redirect(lab, BOTH_FAMILIES, read_only=True)
    assert through(lab, POD.v6, 81, OUTSIDE.v6, 8080) == RESERVED.v6


def test_names_of_protocols_are_not_read_from_a_file(lab: Lab, tmp_path: Path) -> None:
    """A base image may have no /etc/protocols and no /etc/services."""
    container = Container(etc=str(tmp_path), capabilities=NEEDED)
    text = f"53 tcp {OUTSIDE.v4}\n53 udp {OUTSIDE.v4}\n53 sctp {OUTSIDE.v4}"
    env = V4 | MODE | {"EGRESS_DESTINATION": text}
    for steps in (range(1, 100), range(1)):
        done = run_in_pod(lab, EGRESS_PROXY, "init", env=env, container=container).expect_done()
        assert done["steps"] in steps
    assert through(lab, POD.v4, 53, OUTSIDE.v4, 53) == RESERVED.v4


def test_a_second_run_changes_nothing_byte_for_byte(lab: Lab) -> None:
    nft(lab.pod, "add table inet another { chain c { tcp dport 1 accept; }; }")
    redirect(lab, BOTH_FAMILIES)
    settle(lab)
    before = (nft(lab.pod, "-a", "list", "ruleset"), snapshot(lab.pod))
    with monitor(lab.pod) as changes:
        redirect(lab, f"# the same\n{BOTH_FAMILIES}")
        assert drain(changes) == 0
    assert (nft(lab.pod, "-a", "list", "ruleset"), snapshot(lab.pod)) == before


def test_other_tables_survive(lab: Lab) -> None:
    foreign = "add table ip nat { chain c { type nat hook prerouting priority -99; }; }"
    nft(lab.pod, foreign)
    before = nft(lab.pod, "-a", "list", "table", "ip", "nat")
    redirect(lab, BOTH_FAMILIES)
    redirect(lab, f"83 tcp {OUTSIDE.v4}")
    assert nft(lab.pod, "-a", "list", "table", "ip", "nat") == before


def test_another_text_keeps_flows_and_drops_the_old_ports(lab: Lab) -> None:
    redirect(lab, f"80 tcp {OUTSIDE.v4} 8080")
    with (
        lab.outside.listen(OUTSIDE.v4, 8080) as listener,
        lab.client.connect(POD.v4, 80) as client,
        listener.accept()[0] as accepted,
    ):
        redirect(lab, f"81 tcp {OUTSIDE_SECOND.v4} 8081")
        client.sendall(b"still")
        assert accepted.recv(5) == b"still"
        accepted.sendall(b"here")
        assert client.recv(4) == b"here"
    assert refused(lab.client, POD.v4, 80)
    assert through(lab, POD.v4, 81, OUTSIDE_SECOND.v4, 8081) == RESERVED.v4


@pytest.mark.parametrize("text", [f"80 udp {OUTSIDE.v4} 8080", OUTSIDE.v4])
def test_a_flow_that_began_before_the_rules_is_not_stuck(lab: Lab, text: str) -> None:
    # Somebody else's rules make the kernel track flows already.
    nft(lab.pod, "add table ip t { chain c { type filter hook input priority 0; ct state new; }; }")
    remote_port = 8080 if " " in text else 80
    with (
        lab.outside.bind(OUTSIDE.v4, remote_port) as server,
        lab.client.bind(CLIENT.v4, 0) as client,
    ):
        client.settimeout(5)
        client.connect((POD.v4, 80))
        # The kernel's answer is there once the flow is.
        client.send(b"early")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
        assert tracked(lab, 80)
        redirect(lab, text)
        assert exchange(client, (POD.v4, 80), server) == RESERVED.v4


def tracked(lab: Lab, port: int) -> bool:
    return any(flow.target.port == port for flow in lab.pod.call(lambda: list(list_flows())))


def test_a_flow_of_another_port_is_left_alone(lab: Lab) -> None:
    nft(lab.pod, "add table ip t { chain c { type filter hook input priority 0; ct state new; }; }")
    with lab.pod.listen(POD.v4, 90), lab.client.connect(POD.v4, 90):
        redirect(lab, f"80 tcp {OUTSIDE.v4} 8080")
        assert tracked(lab, 90)


def add_route(namespace: Namespace, target: Host, gateway: Host) -> None:
    """To that host alone, in both families."""

    def ask(ip: IPRoute) -> None:
        ip.route("add", dst=target.v4, gateway=gateway.v4)
        ip.route("add", dst=target.v6, gateway=gateway.v6)

    namespace.netlink(ask)


def test_nothing_else_is_forwarded_from_the_pod_network(lab: Lab) -> None:
    """A host inside that routes the outside over the pod does not get there, by any address."""
    add_route(lab.node, OUTSIDE, POD)
    redirect(lab, BOTH_FAMILIES)

    def send() -> set[str]:
        with captured(lab.gateway, "lan0") as packets:
            for source, target in ((CLIENT.v4, OUTSIDE.v4), (CLIENT.v6, OUTSIDE.v6)):
                with lab.client.bind(source, 0) as client:
                    client.sendto(b"through", (target, 80))
            # Every packet before it has come or never will: the pod handles them in order.
            assert through(lab, POD.v4, 80, OUTSIDE.v4, 8080) == RESERVED.v4
            assert through(lab, POD.v6, 81, OUTSIDE.v6, 8080) == RESERVED.v6
        return senders(packets) & {CLIENT.v4, CLIENT.v6}

    assert send() == set()
    # Were it not for the rules, they would be forwarded.
    nft(
        lab.pod,
        "chain inet egress_proxy forward { policy accept; }; flush chain inet egress_proxy forward",
    )
    assert send() == {CLIENT.v4, CLIENT.v6}


# Off, because the node's would drop the LAN's packets that come from a pod.
@pytest.mark.parametrize("rp_filter", [0])
def test_nothing_is_forwarded_from_the_lan(lab: Lab) -> None:
    """Neither to the cluster nor, by a port with a rule, back out."""
    add_route(lab.gateway, CLIENT, RESERVED)
    redirect(lab, BOTH_FAMILIES)

    def send() -> set[str]:
        with captured(lab.client, "eth0") as packets:
            for source, target in ((GATEWAY.v4, CLIENT.v4), (GATEWAY.v6, CLIENT.v6)):
                with lab.gateway.bind(source, 0) as sender:
                    sender.sendto(b"through", (target, 80))
            assert through(lab, POD.v4, 80, OUTSIDE.v4, 8080) == RESERVED.v4
            assert through(lab, POD.v6, 81, OUTSIDE.v6, 8080) == RESERVED.v6
        return senders(packets) & {GATEWAY.v4, GATEWAY.v6}

    assert send() == set()
    assert refused(lab.gateway, RESERVED.v4, 80)
    nft(
        lab.pod,
        "chain inet egress_proxy forward { policy accept; }; flush chain inet egress_proxy forward",
    )
    assert send() == {GATEWAY.v4, GATEWAY.v6}


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_any_reverse_path_filter(lab: Lab) -> None:
    redirect(lab, BOTH_FAMILIES)
    assert through(lab, POD.v4, 80, OUTSIDE.v4, 8080) == RESERVED.v4
    assert through(lab, POD.v6, 81, OUTSIDE.v6, 8080) == RESERVED.v6


def test_a_wrong_line_changes_nothing(lab: Lab) -> None:
    before = snapshot(lab.pod)
    env = V4 | MODE | {"EGRESS_DESTINATION": f"80 tcp {OUTSIDE.v4}\n80 icmp {OUTSIDE.v4}\nx"}
    result = init(lab, env)
    assert result.status == 2
    assert [line.split(":")[0] for line in result.failure.splitlines()] == [
        "EGRESS_DESTINATION line 2",
        "EGRESS_DESTINATION line 3",
    ]
    assert (snapshot(lab.pod), nft(lab.pod, "list", "ruleset")) == (before, "")


def test_a_failure_on_the_way_leaves_no_rules(lab: Lab) -> None:
    """The address is another host's, which init finds out once the rules are there."""
    lab.gateway.netlink(
        lambda ip: ip.addr(
            "add", index=lab.gateway.index("lan0"), address=RESERVED.v4, prefixlen=25
        )
    )
    before = snapshot(lab.pod)
    env = V4 | MODE | {"EGRESS_DESTINATION": f"80 tcp {OUTSIDE.v4}"}
    assert init(lab, env).status == 1
    assert (snapshot(lab.pod), nft(lab.pod, "list", "ruleset")) == (before, "")


def test_legacy_mode_waits_for_sigterm(lab: Lab) -> None:
    env = {**V4, "EGRESS_ROUTER_MODE": "", "EGRESS_DESTINATION": f"80 tcp {OUTSIDE.v4} 8080"}
    with lab.pod.start(EGRESS_PROXY, "init", env=env) as process:
        process.wait_for("init.waiting")
        assert through(lab, POD.v4, 80, OUTSIDE.v4, 8080) == RESERVED.v4
        assert process.stop() == 0


def test_check_shows_the_rules_as_commands_that_make_the_same_table(lab: Lab) -> None:
    env = DUAL | MODE | {"EGRESS_DESTINATION": f"{BOTH_FAMILIES}{OUTSIDE.v4}"}
    done = lab.pod.run(EGRESS_PROXY, "check", env=env)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert nft(lab.pod, "list", "ruleset") == ""
    commands = [line.strip() for line in done.stdout.splitlines() if line.startswith("  nft ")]
    assert len(commands) > 10
    script = "\n".join(command.replace("nft ", f"{NFT} ", 1) for command in commands)
    shell = lab.outside.run("/bin/sh", "-ec", script, env={})
    assert (shell.returncode, shell.stderr) == (0, "")
    redirect(lab, f"{BOTH_FAMILIES}{OUTSIDE.v4}")
    assert nft(lab.outside, "list", "ruleset") == nft(lab.pod, "list", "ruleset")
