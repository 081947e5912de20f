"""Who has the address when something fails: the rows of the failure table, in simulated time."""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egress_proxy.hold.states import Role
from tests.unit.hold.simulation import SETTINGS, Simulation

if TYPE_CHECKING:
    from egress_proxy.hold.states import ElectorSettings

SEEDS = range(20)
# Lan splits that end, and ports that come back, may show two owners until one asks the gateway.
_HEALED_S = 0.7


def begin(
    seed: int, names: str = "ab", settings: ElectorSettings = SETTINGS
) -> tuple[Simulation, str, str]:
    """A simulation in its fifth second, its active node and a standby. Never two owners."""
    lan = Simulation(Random(seed), names, settings)  # noqa: S311 - a simulation
    forbid_two_owners(lan)
    lan.run(5)
    [active] = lan.owners()
    return lan, active, next(name for name in names if name != active)


def forbid_two_owners(lan: Simulation) -> None:
    def check() -> None:
        assert len(lan.owners()) <= 1, lan.history[-30:]

    lan.on_step = check


def owned_by(lan: Simulation, name: str, within_s: float) -> float:
    """Run until `name` alone has the address; how long that took."""
    began = lan.now
    while lan.owners() != [name]:
        assert lan.now - began <= within_s, lan.history[-30:]
        lan.run(lan.now + 0.01)
    return lan.now - began


@pytest.mark.parametrize("seed", SEEDS)
def test_two_that_start_at_once_make_one_owner(seed: int) -> None:
    lan, _, _ = begin(seed)
    owner = lan.owners()
    lan.run(60)
    assert lan.owners() == owner


@pytest.mark.parametrize("seed", SEEDS)
def test_the_standby_takes_over_when_the_node_dies(seed: int) -> None:
    lan, active, standby = begin(seed)
    lan.kill_node(active)
    assert owned_by(lan, standby, 2.35) >= 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_hold_is_followed_once_the_kernel_has_dropped_the_address(seed: int) -> None:
    lan, active, standby = begin(seed)
    lan.kill_hold(active)
    owned_by(lan, standby, 2.75)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frozen_hold_that_wakes_sends_nothing_and_stays_standby(seed: int) -> None:
    lan, active, standby = begin(seed)
    lan.freeze(active)
    owned_by(lan, standby, 2.75)
    lan.run(lan.now + 3)
    lan.wake(active)
    lan.run(lan.now + 10)
    assert lan.owners() == [standby]
    assert "address.defended" not in lan.events(standby)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_freeze_changes_nothing(seed: int) -> None:
    lan, active, _ = begin(seed)
    lan.freeze(active)
    lan.run(lan.now + 1.2)
    lan.wake(active)
    lan.run(lan.now + 5)
    assert lan.owners() == [active]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_api_server_that_is_silent_for_all_moves_nothing(seed: int) -> None:
    lan, active, _ = begin(seed)
    dropped = lan.events(active).count("address.dropped")
    for node in lan.nodes.values():
        node.api = "silent"
    lan.run(lan.now + 5)
    for node in lan.nodes.values():
        node.api = "good"
    lan.run(lan.now + 10)
    assert lan.owners() == [active]
    assert lan.events(active).count("address.dropped") == dropped
    assert lan.events(active)[-1] == "hold.confirmed"


@pytest.mark.parametrize("seed", SEEDS)
def test_an_active_cut_from_the_api_server_yields_to_the_claim(seed: int) -> None:
    lan, active, standby = begin(seed)
    gap: list[float] = []

    def watch() -> None:
        assert len(lan.owners()) <= 1
        if not lan.owners():
            gap.append(lan.now)

    lan.on_step = watch
    lan.nodes[active].api = "silent"
    owned_by(lan, standby, 2.6)
    assert max(gap) - min(gap) <= 0.31
    lan.nodes[active].api = "good"
    lan.run(lan.now + 10)
    assert lan.owners() == [standby]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_pod_takes_over_from_a_dead_node_while_the_api_server_is_silent(seed: int) -> None:
    lan, active, standby = begin(seed)
    for node in lan.nodes.values():
        node.api = "silent"
    lan.run(lan.now + 3)
    lan.kill_node(active)
    lan.run(lan.now + 20)
    assert lan.owners() == []
    lan.nodes[standby].api = "good"
    owned_by(lan, standby, 3.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_lan_port_moves_the_address_and_never_back(seed: int) -> None:
    lan, active, standby = begin(seed)
    lan.nodes[active].port_up = False
    owned_by(lan, standby, 2.3)
    lan.nodes[active].port_up = True
    lan.run(lan.now + 10)
    assert lan.owners() == [standby]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_gateway_moves_nothing(seed: int) -> None:
    lan, active, _ = begin(seed)
    lan.gateway_segments.clear()
    lan.run(lan.now + 10)
    assert lan.owners() == [active]
    lan.gateway_segments.add(0)
    lan.run(lan.now + 5)
    assert lan.owners() == [active]
    assert lan.events(active)[-1] == "gateway.back"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_stopped_active_hands_over_within_a_moment(seed: int, names: str) -> None:
    lan, active, _ = begin(seed, names)
    lan.stop(active)
    lan.run(lan.now + 0.9)
    assert lan.owners() == [active]
    [successor] = [node.name for node in lan.nodes.values() if node.label == "active"]
    assert successor != active
    while lan.owners():
        lan.run(lan.now + 0.01)
    owned_by(lan, successor, 0.3)
    lan.run(lan.now + 5)
    assert lan.nodes[active].stopped
    assert lan.owners() == [successor]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.1, 0.15])
def test_a_successor_stopped_while_it_takes_the_address_hands_over_too(
    seed: int, wait_s: float
) -> None:
    lan, active, _ = begin(seed, "abc")
    lan.stop(active)
    while not (taking := [name for name in lan.nodes if lan.role(name) == Role.TAKING]):
        lan.run(lan.now + 0.005)
    [successor] = taking
    lan.run(lan.now + wait_s)
    lan.stop(successor)
    owned_by(lan, successor, 0.3)
    [third] = {"a", "b", "c"} - {active, successor}
    owned_by(lan, third, 3.0)
    assert lan.nodes[successor].stopped
    assert lan.nodes[third].label == "active"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stopped_active_without_a_successor_stays_for_the_drain_timeout(seed: int) -> None:
    lan, active, standby = begin(seed, settings=replace(SETTINGS, drain_s=4))
    lan.kill_node(standby)
    lan.stop(active)
    lan.run(lan.now + 3.9)
    assert lan.owners() == [active]
    lan.run(lan.now + 1)
    assert lan.owners() == []
    assert lan.lease is not None
    assert lan.lease.holder == ""
    assert lan.nodes[active].stopped


def test_the_address_is_released_in_time_where_silence_asks_for_it() -> None:
    lan, active, _ = begin(1, settings=replace(SETTINGS, release_on_silence=True))
    for node in lan.nodes.values():
        node.api = "silent"
    lan.run(lan.now + 1.71)
    assert lan.owners() == []
    assert "address.dropped" in lan.events(active)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lan_split_in_two_has_an_owner_on_each_and_one_when_it_heals(seed: int) -> None:
    lan, active, standby = begin(seed)
    lan.nodes[active].segment = 1
    lan.gateway_segments.add(1)
    lan.nodes[active].api = "silent"
    owned_by(lan, standby, 2.6)
    assert lan.owners(1) == [active]
    lan.on_step = lambda: None
    lan.nodes[active].segment = 0
    lan.run(lan.now + _HEALED_S)
    forbid_two_owners(lan)
    lan.run(lan.now + 5)
    assert lan.owners() == [standby]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_restarted_hold_resumes(seed: int) -> None:
    lan, active, _ = begin(seed)
    lan.kill_hold(active)
    lan.run(lan.now + 0.8)
    lan.restart_hold(active)
    lan.run(lan.now + 10)
    assert lan.owners() == [active]
    assert "hold.resumed" in lan.events(active)
    assert lan.events(active).count("address.dropped") == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hold_that_is_restarted_too_late_drops_what_it_inherits(seed: int) -> None:
    lan, active, standby = begin(seed)
    lan.kill_hold(active)
    owned_by(lan, standby, 2.75)
    lan.restart_hold(active)
    lan.run(lan.now + 5)
    assert lan.owners() == [standby]


Faults = list[tuple[str, float, float, int]]
FAULTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["freeze", "silent", "slow", "lossy", "silent all", "port", "gateway", "kill hold"]
        ),
        st.floats(0.0, 4.0),
        st.floats(0.05, 5.0),
        st.integers(0, 2),
    ),
    max_size=8,
)


def fault(lan: Simulation, what: str, name: str) -> tuple[Any, Any]:
    """How a fault begins, and how it ends."""
    node = lan.nodes[name]

    def api(condition: str, *names: str) -> None:
        for one in names:
            lan.nodes[one].api = condition

    def port(*, up: bool) -> None:
        node.port_up = up

    return {
        "freeze": (lambda: lan.freeze(name), lambda: lan.wake(name)),
        "silent": (lambda: api("silent", name), lambda: api("good", name)),
        "slow": (lambda: api("slow", name), lambda: api("good", name)),
        "lossy": (lambda: api("lossy", name), lambda: api("good", name)),
        "silent all": (lambda: api("silent", *lan.nodes), lambda: api("good", *lan.nodes)),
        "port": (lambda: port(up=False), lambda: port(up=True)),
        "gateway": (lan.gateway_segments.clear, lambda: lan.gateway_segments.add(0)),
        "kill hold": (lambda: lan.kill_hold(name), lambda: lan.restart_hold(name)),
    }[what]


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")), deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["ab", "abc"]), FAULTS)
# Both are restarted while their ports are dead.
@example(
    0,
    "ab",
    [
        ("port", 0.0, 2.0, 0),
        ("kill hold", 0.0, 1.0, 0),
        ("kill hold", 0.0, 1.0, 1),
        ("port", 0.0, 1.0, 1),
    ],
)
def test_no_faults_make_two_owners_on_one_lan_and_one_is_there_in_the_end(
    seed: int, names: str, faults: Faults
) -> None:
    lan = Simulation(Random(seed), names)  # noqa: S311 - a simulation
    healed = [-1.0]

    def check() -> None:
        if lan.now - healed[0] > _HEALED_S:
            assert len(lan.owners()) <= 1, lan.history[-40:]

    lan.on_step = check
    lan.run(4)
    began = lan.now
    for what, wait_s, lasts_s, which in faults:
        begin_fault, end_fault = fault(lan, what, names[which % len(names)])
        began += wait_s
        lan.at(began, begin_fault)
        if what == "port":
            # Before it ends: two may be there from that moment on.
            lan.at(began + lasts_s, lambda: healed.__setitem__(0, lan.now))
        lan.at(began + lasts_s, end_fault)
    lan.run(began + 6)
    for name, node in lan.nodes.items():
        node.api, node.port_up = "good", True
        if node.frozen:
            lan.wake(name)
        if node.dead:
            lan.restart_hold(name)
    lan.gateway_segments.add(0)
    healed[0] = lan.now
    lan.run(lan.now + 10)
    assert len(lan.owners()) == 1, lan.history[-40:]
    assert lan.lease is not None
    assert lan.owners() == [lan.lease.holder]
