"""Who has the address when something fails: real kernels, a real LAN, the installed command.

Each row of the failure table. A spy asks the LAN for the address every 20 ms, and whatever happens,
no question may be answered by two hosts. The API server is the stand-in.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import EGRESS_PROXY
from tests.support.lan_faults import OtherSide, Stranger, put_reserved, set_gateway
from tests.support.namespaces import LabUnavailableError
from tests.support.needs import do_without
from tests.support.two_nodes import FAMILIES, HOLDER, NAMESPACE, OUTSIDE, TwoNodes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.spy import Spy

# The longest time until the other pod has the address, as docs/failures.md promises.
LIMIT_S = 3.0
# Longer than a Lease: a standby that wrongly took the holder for gone would have the address.
LONG_S = 2.3
# The Service of the tests follows the labels within 20 ms; the default is for a real kube-proxy.
HANDOVER = "1s"
# An answer that comes after the next request or two: the gateway was never gone.
NO_GAP_S = 0.15


@contextmanager
def watched(
    names: str = "ab", families: tuple[str, ...] = ("v4",)
) -> Iterator[tuple[TwoNodes, Spy]]:
    """The nodes and a spy who never had two answers."""
    try:
        nodes = TwoNodes(names, families)
    except LabUnavailableError as error:
        do_without(str(error))
    with nodes, nodes.spy(families[0]) as spy:
        yield nodes, spy
        assert spy.doubles == []


@contextmanager
def running(
    names: str = "ab", families: tuple[str, ...] = ("v4",), **variables: str
) -> Iterator[tuple[TwoNodes, Spy, str, str]]:
    """The same, with `hold` in each pod: the active and a standby that hears the gateway."""
    with watched(names, families) as (nodes, spy):
        nodes.hold_variables = {"EGRESS_HA_HANDOVER": HANDOVER, **variables}
        for name in names:
            nodes.start(name)
        active, standby = nodes.active(spy)
        for name in names:
            nodes.wait_for_gateway(name)
        yield nodes, spy, active, standby


def role(nodes: TwoNodes, name: str) -> str:
    return str(nodes.api.pod(NAMESPACE, name)["metadata"]["labels"]["egress-proxy/role"])


def owned(nodes: TwoNodes, spy: Spy, name: str, since: float) -> float:
    """Wait until `name` answers; how long after `since` it did."""
    mac = nodes.pods[name].mac
    wait_until(lambda: spy.owner() == mac)
    answered_at = spy.first_answer_by(mac, since)
    assert answered_at is not None
    return answered_at - since


def undisturbed(spy: Spy, seconds: float) -> None:
    """Let the spy ask for so long."""
    wanted = len(spy.questions) + int(seconds / 0.02)
    wait_until(lambda: len(spy.questions) >= wanted)


@pytest.mark.parametrize("families", FAMILIES, ids="-".join)
def test_the_standby_takes_over_from_a_node_that_dies(families: tuple[str, ...]) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        died_at = monotonic()
        nodes.kill_node(active)
        assert owned(nodes, spy, standby, died_at) < LIMIT_S
        wait_until(lambda: role(nodes, standby) == "active" and role(nodes, active) == "standby")


@pytest.mark.parametrize("families", FAMILIES, ids="-".join)
def test_a_stopped_hold_hands_over(families: tuple[str, ...]) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        stopped_at = monotonic()
        assert nodes.pods[active].running.stop() == 0
        owned(nodes, spy, standby, stopped_at)
        assert spy.gap_s(stopped_at) < 1
        wait_until(lambda: role(nodes, standby) == "active" and role(nodes, active) == "standby")
        assert nodes.pods[standby].running.stderr == nodes.pods[active].running.stderr == ""


@pytest.mark.parametrize("families", FAMILIES, ids="-".join)
def test_the_kernel_drops_the_address_of_a_killed_hold(families: tuple[str, ...]) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        killed_at = monotonic()
        nodes.pods[active].running.kill()
        assert owned(nodes, spy, standby, killed_at) < LIMIT_S


@pytest.mark.parametrize("families", FAMILIES, ids="-".join)
def test_a_frozen_hold_that_wakes_sends_nothing_and_takes_nothing(
    families: tuple[str, ...],
) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        frozen_at = monotonic()
        nodes.pods[active].running.freeze()
        assert owned(nodes, spy, standby, frozen_at) < LIMIT_S
        woken_at = monotonic()
        nodes.pods[active].running.thaw()
        nodes.pods[active].running.wait_for("address.dropped")
        undisturbed(spy, LONG_S)
        assert spy.first_answer_by(nodes.pods[active].mac, woken_at) is None
        assert spy.gap_s(woken_at) < NO_GAP_S
        defended = [
            record
            for record in nodes.pods[standby].running.records
            if record["event"] == "address.defended"
        ]
        assert defended == []


def test_a_short_freeze_changes_nothing() -> None:
    with running() as (nodes, spy, active, _):
        began_at = monotonic()
        nodes.pods[active].running.freeze()
        undisturbed(spy, 1.0)
        nodes.pods[active].running.thaw()
        undisturbed(spy, LONG_S)
        assert spy.owner() == nodes.pods[active].mac
        assert spy.gap_s(began_at) < NO_GAP_S


def test_a_restarted_hold_resumes() -> None:
    # Time enough for the start of a command on a machine that is busy with other tests.
    duration = "8s"
    with running(EGRESS_HA_LEASE_DURATION=duration) as (nodes, spy, active, _):
        killed_at = monotonic()
        nodes.pods[active].running.kill()
        nodes.start_hold(active).wait_for("hold.resumed")
        undisturbed(spy, 1.0)
        assert spy.owner() == nodes.pods[active].mac
        assert spy.gap_s(killed_at) < NO_GAP_S


@pytest.mark.parametrize("families", FAMILIES, ids="-".join)
def test_a_lan_port_that_dies_moves_the_address_for_good(families: tuple[str, ...]) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        cut_at = monotonic()
        nodes.set_port(active, up=False)
        assert owned(nodes, spy, standby, cut_at) < LIMIT_S
        nodes.pods[active].running.wait_for("gateway.silent")
        nodes.set_port(active, up=True)
        nodes.pods[active].running.wait_for("gateway.back")
        back_at = monotonic()
        undisturbed(spy, LONG_S)
        assert spy.owner() == nodes.pods[standby].mac
        assert spy.gap_s(back_at) < NO_GAP_S


def test_a_lost_carrier_moves_the_address_at_once() -> None:
    with running() as (nodes, spy, active, standby):
        cut_at = monotonic()
        nodes.set_port(active, up=False, carrier=True)
        assert owned(nodes, spy, standby, cut_at) < 1
        nodes.pods[active].running.wait_for("hold.released")


@pytest.mark.parametrize("families", FAMILIES, ids="-".join)
def test_an_active_without_the_api_server_yields_to_a_claim(families: tuple[str, ...]) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        cut_at = monotonic()
        nodes.api.order(cut=[nodes.environment(active)["POD_IP"]])
        nodes.pods[active].running.wait_for("hold.unconfirmed")
        assert owned(nodes, spy, standby, cut_at) < LIMIT_S
        assert spy.gap_s(cut_at) < 0.5
        nodes.api.order(cut=[])
        nodes.pods[active].running.wait_for("api.back")
        undisturbed(spy, LONG_S)
        assert spy.owner() == nodes.pods[standby].mac


def test_a_silent_api_server_moves_nothing() -> None:
    with running() as (nodes, spy, active, _):
        silent_at = monotonic()
        nodes.api.order(silent=True)
        undisturbed(spy, 5.0)
        nodes.api.order(silent=False)
        nodes.pods[active].running.wait_for("hold.confirmed")
        undisturbed(spy, LONG_S)
        assert spy.owner() == nodes.pods[active].mac
        assert spy.gap_s(silent_at) < NO_GAP_S


def test_a_silent_api_server_ends_it_where_that_is_wanted() -> None:
    with running(EGRESS_HA_API_SILENCE="release") as (nodes, spy, active, _):
        nodes.api.order(silent=True)
        nodes.pods[active].running.wait_for("address.dropped")
        wait_until(lambda: spy.owner() is None)
        nodes.api.order(silent=False)
        wait_until(lambda: spy.owner() is not None)


def test_a_slow_api_server_and_lost_answers_move_nothing() -> None:
    with running() as (nodes, spy, active, _):
        began_at = monotonic()
        nodes.api.order(delay_s=0.4)
        undisturbed(spy, LONG_S)
        nodes.api.order(delay_s=0.0, lose=1)
        undisturbed(spy, 1.5)
        nodes.api.order(busy=2)
        undisturbed(spy, LONG_S)
        assert spy.owner() == nodes.pods[active].mac
        assert spy.gap_s(began_at) < NO_GAP_S


def test_no_pod_takes_over_without_the_api_server() -> None:
    with running() as (nodes, spy, active, standby):
        nodes.api.order(silent=True)
        nodes.pods[active].running.wait_for("hold.unconfirmed")
        nodes.kill_node(active)
        wait_until(lambda: spy.owner() is None)
        undisturbed(spy, LONG_S)
        assert spy.owner() is None
        back_at = monotonic()
        nodes.api.order(silent=False)
        assert owned(nodes, spy, standby, back_at) < LIMIT_S + 1


def test_a_dead_gateway_moves_nothing() -> None:
    with running() as (nodes, spy, active, _):
        down_at = monotonic()
        set_gateway(nodes, up=False)
        nodes.pods[active].running.wait_for("gateway.silent")
        undisturbed(spy, LONG_S)
        set_gateway(nodes, up=True)
        nodes.pods[active].running.wait_for("gateway.back")
        undisturbed(spy, 2.0)
        assert spy.owner() == nodes.pods[active].mac
        assert spy.gap_s(down_at) < NO_GAP_S


def test_a_gateway_that_answers_no_arp_is_not_needed_where_the_check_is_off() -> None:
    with watched() as (nodes, spy):
        # Documentation/networking/ip-sysctl: 8, do not reply for all local addresses.
        nodes.gateway.sysctl("ipv4/conf/all/arp_ignore", 8)
        for name in "ab":
            nodes.start(name, EGRESS_HA_GATEWAY_CHECK="off")
        active, standby = nodes.active(spy)
        wait_until(lambda: role(nodes, active) == "active")
        died_at = monotonic()
        nodes.kill_node(active)
        assert owned(nodes, spy, standby, died_at) < LIMIT_S
        undisturbed(spy, 2.0)
        assert spy.owner() == nodes.pods[standby].mac
        for pod in nodes.pods.values():
            assert "gateway.silent" not in {record["event"] for record in pod.running.records}


def test_a_foreign_host_is_defended_against() -> None:
    with running() as (nodes, spy, active, _), Stranger(nodes) as stranger:
        stranger.take()
        stranger.claim()
        record = nodes.pods[active].running.wait_for("address.defended")
        assert record["mac"] == stranger.mac
        # Here two answer, and it is not this program's doing.
        stranger.give_up()
        undisturbed(spy, 1.0)
        assert spy.owner() == nodes.pods[active].mac
        for asked in spy.doubles:
            assert stranger.mac in asked.answers
            asked.answers.discard(stranger.mac)


def test_a_foreign_owner_blocks_the_first_and_is_waited_for() -> None:
    with watched() as (nodes, spy), Stranger(nodes) as stranger:
        stranger.take()
        for name in "ab":
            nodes.start(name)
        wait_until(
            lambda: any(
                record["event"] == "hold.blocked"
                for pod in nodes.pods.values()
                for record in pod.running.records
            )
        )
        stranger.give_up()
        nodes.active(spy)


def test_probes_of_others_are_no_claims() -> None:
    with running() as (nodes, spy, active, _), Stranger(nodes) as stranger:
        began_at = monotonic()
        for _ in range(50):
            stranger.probe()
            undisturbed(spy, 0.02)
        assert spy.owner() == nodes.pods[active].mac
        assert spy.gap_s(began_at) < NO_GAP_S
        assert "address.defended" not in {
            record["event"] for record in nodes.pods[active].running.records
        }


@pytest.mark.parametrize("attempt", range(3))
def test_three_that_start_at_once_are_one_owner(attempt: int) -> None:
    del attempt
    with watched("abc") as (nodes, spy):
        for name in "abc":
            nodes.start(name)
        active, _ = nodes.active(spy)
        began_at = monotonic()
        undisturbed(spy, LONG_S)
        assert spy.owner() == nodes.pods[active].mac
        assert spy.gap_s(began_at) < NO_GAP_S


def test_three_pods_are_rolled_one_after_the_other() -> None:
    with running("abc") as (nodes, spy, _, _):
        began_at = monotonic()
        for name in "abc":
            nodes.roll(name)
            wait_until(lambda: spy.owner() is not None)
            nodes.wait_for_gateway(name)
        assert spy.gap_s(began_at) < 1
        assert sorted(role(nodes, name) for name in "abc") == ["active", "standby", "standby"]


def test_a_split_lan_has_an_owner_on_each_side_and_one_when_it_heals() -> None:
    with running() as (nodes, spy, active, standby):
        other = OtherSide(nodes)
        split_at = monotonic()
        nodes.api.order(cut=[nodes.environment(active)["POD_IP"]])
        other.split(active)
        assert owned(nodes, spy, standby, split_at) < LIMIT_S
        undisturbed(spy, 1.0)
        assert "address.dropped" not in {
            record["event"] for record in nodes.pods[active].running.records
        }
        other.heal(active)
        nodes.pods[active].running.wait_for("address.dropped", timeout_s=LIMIT_S)
        healed_at = monotonic()
        undisturbed(spy, 2.0)
        assert spy.owner() == nodes.pods[standby].mac
        for asked in spy.doubles:
            assert asked.asked_at <= healed_at
            asked.answers.clear()


@pytest.mark.parametrize("families", FAMILIES, ids="-".join)
def test_only_what_has_the_reserved_address_leaves_over_the_lan(families: tuple[str, ...]) -> None:
    with running(families=families) as (nodes, spy, active, standby):
        outside = OUTSIDE.v4 if families[0] == "v4" else OUTSIDE.v6
        reserved = str(nodes.sources[0].address)

        def connect() -> str:
            source = (reserved, 0)
            with socket.create_connection((outside, 80), 5, source_address=source):
                connected, _ = listener.accept()
            with connected:
                return str(connected.getpeername()[0])

        with nodes.outside.listen(outside, 80) as listener:
            assert nodes.pods[active].namespace.call(connect) == reserved
            with pytest.raises(OSError, match="Cannot assign requested address"):
                nodes.pods[standby].namespace.call(connect)
            nodes.pods[active].running.kill()
            wait_until(lambda: spy.owner() == nodes.pods[standby].mac)
            assert nodes.pods[standby].namespace.call(connect) == reserved


def test_init_and_check_name_an_address_that_the_attachment_has_put() -> None:
    with watched() as (nodes, _):
        pod = nodes.pods["a"].namespace
        put_reserved(pod, "macvlan0")
        for command in ("init", "check"):
            done = pod.run(EGRESS_PROXY, command, env=nodes.environment("a"), container=HOLDER)
            assert done.returncode == 1
            assert "remove ipam from the network attachment" in done.stderr + done.stdout
