from __future__ import annotations

from pathlib import Path

from bench.peers import FORWARDING, PEERS, PROJECT, earlier
from bench.servers import PORTS
from bench.topology import POD, REMOTE, RESERVED

EARLIER = [earlier(Path("build/steps", ref), number) for number, ref in enumerate(("a1", "b2"))]
PROXIES = [peer for peer in [*PEERS.values(), *EARLIER] if peer.command]


def test_no_two_proxies_share_a_port_nor_take_an_ephemeral_one() -> None:
    ports = [own for peer in PROXIES for own, _ in peer.listeners()]
    assert len(ports) == len(set(ports)) == len(PROXIES) * len(PORTS)
    assert max(ports) < 1024


def test_a_client_goes_to_the_pod_or_straight_to_the_remote() -> None:
    assert PROJECT.endpoint("bulk") == (POD.v4, PROJECT.first_port + 2)
    assert FORWARDING.endpoint("bulk") == (REMOTE.v4, PORTS["bulk"])


def test_every_proxy_gets_the_same_settings(tmp_path: Path) -> None:
    for peer in PROXIES:
        assert peer.command
        argv, env = peer.command(peer, tmp_path)
        written = [path.read_text() for path in tmp_path.iterdir() if str(path) in argv]
        told = "".join([*written, *env.values()])
        for own, remote in peer.listeners():
            assert f"{own}" in told
            assert f"{remote}" in told
        assert REMOTE.v4 in told
        # This project finds the reserved address on its interface.
        assert RESERVED.v4 in told or env["EGRESS_INTERFACE"]


def test_an_earlier_version_is_taken_from_its_checkout(tmp_path: Path) -> None:
    for peer in EARLIER:
        assert peer.command
        _, env = peer.command(peer, tmp_path)
        assert env["PYTHONPATH"] == f"build/steps/{peer.name}"
