"""The failures of `bench.availability`: how each is made, and what must come of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.lan_faults import OtherSide, Stranger, set_gateway
from tests.support.two_nodes import PODS
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.spy import Spy
    from tests.support.two_nodes import TwoNodes

SILENCE_S = 5.0
GATEWAY_DOWN_S = 3.0
FOREIGN_OWNER_S = 1.0
# As many clients as one run must serve where no client may fail, and how often one comes.
MANY_CLIENTS = 2000
_MANY_INTERVAL_S = 0.004


@dataclass(slots=True)
class Scene:
    """What a failure is made of."""

    nodes: TwoNodes
    spy: Spy
    active: str
    standby: str
    stranger: Stranger
    other_side: OtherSide


def die(scene: Scene) -> None:
    scene.nodes.kill_node(scene.active)


def stop(scene: Scene) -> None:
    """As the kubelet does it when a pod is deleted."""
    pod = scene.nodes.pods[scene.active]
    scene.nodes.api.delete_pod("egress", scene.active)
    pod.running.terminate()
    if pod.proxy is not None:
        pod.proxy.terminate()


def roll(scene: Scene) -> None:
    """Replace each pod, one after the other."""
    for name in scene.nodes.pods:
        scene.nodes.roll(name)
        wait_until(lambda: scene.spy.owner() is not None)
        scene.nodes.wait_for_gateway(name)


def kill(scene: Scene) -> None:
    scene.nodes.pods[scene.active].running.kill()


def freeze(scene: Scene) -> None:
    scene.nodes.pods[scene.active].running.freeze()


def thaw(scene: Scene) -> None:
    scene.nodes.pods[scene.active].running.thaw()
    scene.nodes.pods[scene.active].running.wait_for("address.dropped")


def cut_port(scene: Scene) -> None:
    scene.nodes.set_port(scene.active, up=False)


def mend_port(scene: Scene) -> None:
    scene.nodes.pods[scene.active].running.wait_for("gateway.silent")
    scene.nodes.set_port(scene.active, up=True)
    scene.nodes.pods[scene.active].running.wait_for("gateway.back")


def cut_carrier(scene: Scene) -> None:
    scene.nodes.set_port(scene.active, up=False, carrier=True)


def cut_api(scene: Scene) -> None:
    scene.nodes.api.order(cut=[PODS[scene.active].v4])


def silence_api(scene: Scene) -> None:
    scene.nodes.api.order(silent=True)
    time.sleep(SILENCE_S)
    scene.nodes.api.order(silent=False)


def stop_gateway(scene: Scene) -> None:
    set_gateway(scene.nodes, up=False)
    time.sleep(GATEWAY_DOWN_S)
    set_gateway(scene.nodes, up=True)
    scene.nodes.pods[scene.active].running.wait_for("gateway.back")


def claim(scene: Scene) -> None:
    scene.stranger.take()
    scene.stranger.claim()
    scene.nodes.pods[scene.active].running.wait_for("address.defended")
    time.sleep(FOREIGN_OWNER_S)
    scene.stranger.give_up()


def split(scene: Scene) -> None:
    cut_api(scene)
    scene.other_side.split(scene.active)


def heal(scene: Scene) -> None:
    scene.other_side.heal(scene.active)
    scene.nodes.pods[scene.active].running.wait_for("address.dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """`make` it; the address moves to the standby if `moves`, and stays there after `mend`.

    `family` is that of the reserved address. With `clients` it lasts until so many clients have
    begun, and all of them have ended.
    """

    title: str
    make: Callable[[Scene], None]
    mend: Callable[[Scene], None] | None = None
    moves: bool = True
    names: str = "ab"
    family: str = "v4"
    clients: int = 0

    def owner(self, scene: Scene) -> str | None:
        """The pod that has the address in the end; None: any of them."""
        if self.moves:
            return scene.standby
        return None if self.make is roll else scene.active

    @property
    def client_interval_s(self) -> float:
        return _MANY_INTERVAL_S if self.clients else 0.02


FAILURES = (
    Failure(title="the active pod's node loses its power", make=die),
    Failure(title="the same, with an IPv6 address", make=die, family="v6"),
    Failure(title="the active pod is deleted (SIGTERM)", make=stop, clients=MANY_CLIENTS),
    Failure(title="the same, with an IPv6 address", make=stop, clients=MANY_CLIENTS, family="v6"),
    Failure(
        title="three pods are replaced one after the other",
        make=roll,
        moves=False,
        names="abc",
        clients=MANY_CLIENTS,
    ),
    Failure(title="`hold` is killed (SIGKILL)", make=kill),
    Failure(title="`hold` is frozen (SIGSTOP), and wakes later", make=freeze, mend=thaw),
    Failure(
        title="the node's LAN port forwards nothing, with the link up; later it does again",
        make=cut_port,
        mend=mend_port,
    ),
    Failure(title="the node's LAN cable is pulled", make=cut_carrier),
    Failure(title="the API server is unreachable for the active pod alone", make=cut_api),
    Failure(
        title="the same on a LAN that is split, a gateway on each side; later it heals",
        make=split,
        mend=heal,
    ),
    Failure(
        title=f"the API server is silent for all, for {SILENCE_S:g} s",
        make=silence_api,
        moves=False,
    ),
    Failure(title=f"the gateway is down for {GATEWAY_DOWN_S:g} s", make=stop_gateway, moves=False),
    Failure(
        title=f"a foreign host claims the address, and has it for {FOREIGN_OWNER_S:g} s",
        make=claim,
        moves=False,
    ),
)
