from __future__ import annotations

from typing import TYPE_CHECKING

from bench.peers import FORWARDING, PEERS, PROJECT
from bench.servers import PORTS
from bench.topology import POD, REMOTE, RESERVED

if TYPE_CHECKING:
    from pathlib import Path

PROXIES = [peer for peer in PEERS.values() if peer.command]


def test_no_two_proxies_share_a_port_nor_take_an_ephemeral_one() -> None:
    ports = [own for peer in PROXIES for own, _ in peer.listeners()]
    assert len(ports) == len(set(ports)) == len(PROXIES) * len(PORTS)
    assert max(ports) < 1024


def test_a_client_goes_to_the_pod_or_straight_to_the_remote() -> None:
    assert PROJECT.endpoint("bulk") == (POD.v4, PROJECT.first_port + 2)
    assert FORWARDING.endpoint("bulk") == (REMOTE.v4, PORTS["bulk"])


def test_every_proxy_is_told_the_same(tmp_path: Path) -> None:
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
