"""The labels of pods: which one the Service leads to, in an order that leaves no moment without."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from egress_proxy.hold.api_errors import ApiUnavailable
from egress_proxy.hold.labels import Labels
from egress_proxy.hold.objects import Pod
from egress_proxy.supervisor import Supervisor
from tests.support.manual_loop import run_simulated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from egress_proxy.events import Event


class FakePods:
    """Pods ``a``, ``b`` and ``c``, all of them active, and the patches that were made."""

    def __init__(self) -> None:
        self.patched: list[tuple[str, str | None]] = []
        self.annotated: list[Mapping[str, str | None]] = []
        self.failing = 0

    async def list_pods(self, selector: str, *, timeout_s: float) -> list[Pod]:
        del timeout_s
        assert selector == "egress-proxy/lease=egress-router"
        labels = {"egress-proxy/role": "active"}
        return [Pod(name=name, ready=True, deleting=False, labels=labels) for name in "abc"]

    async def patch_pod(
        self,
        name: str,
        *,
        labels: Mapping[str, str | None] | None = None,
        annotations: Mapping[str, str | None] | None = None,
        timeout_s: float,
    ) -> None:
        del timeout_s
        if self.failing:
            self.failing -= 1
            raise ApiUnavailable("PATCH", "a test")
        self.patched.append((name, (labels or {}).get("egress-proxy/role")))
        self.annotated.append(annotations or {})


class Log(list["Event"]):
    def observe(self, event: Event) -> None:
        self.append(event)


def labelled(act: Callable[[Labels], Awaitable[None]], failing: int = 0) -> tuple[FakePods, Log]:
    pods, log = FakePods(), Log()
    pods.failing = failing

    async def main() -> None:
        supervisor = Supervisor(asyncio.get_running_loop(), log)
        await act(Labels(pods, supervisor, log, "a", "egress-router", 1.0))
        await supervisor.stop()

    run_simulated(main())
    return pods, log


def test_9_the_new_active_is_added_before_the_others_are_removed() -> None:
    async def act(labels: Labels) -> None:
        labels.show_role(active=True)
        await asyncio.sleep(1)

    pods, _ = labelled(act)
    assert pods.patched == [("a", "active"), ("b", "standby"), ("c", "standby")]
    assert pods.annotated[0] == {"controller.kubernetes.io/pod-deletion-cost": "100"}


def test_9_a_successor_is_added_before_the_own_pod_is_removed() -> None:
    async def act(labels: Labels) -> None:
        labels.show_role(active=True)
        await asyncio.sleep(1)
        await labels.hand_over("b")
        await asyncio.sleep(100)

    pods, _ = labelled(act)
    assert pods.patched[-2:] == [("b", "active"), ("a", "standby")]


def test_a_label_that_can_not_be_changed_is_tried_again_and_reported_once() -> None:
    async def act(labels: Labels) -> None:
        labels.show_role(active=True)
        await asyncio.sleep(5)

    pods, log = labelled(act, failing=4)
    assert pods.patched[0] == ("a", "active")
    assert [event.name for event in log] == ["role.failed"]


def test_the_last_request_wins() -> None:
    async def act(labels: Labels) -> None:
        labels.show_gateway(heard=True)
        labels.show_gateway(heard=False)
        labels.show_role(active=True)
        labels.show_role(active=False)
        await asyncio.sleep(10)

    pods, _ = labelled(act)
    annotations: list[Any] = [one for one in pods.annotated if "egress-proxy/gateway" in one]
    assert annotations == [{"egress-proxy/gateway": "silent"}]
    assert [patch for patch in pods.patched if patch[1] is not None] == []


def test_a_pod_that_another_one_labelled_active_keeps_the_label() -> None:
    """A standby that made itself one would take the Service its only endpoint."""

    async def act(labels: Labels) -> None:
        labels.show_role(active=False)
        await asyncio.sleep(100)

    pods, _ = labelled(act)
    assert pods.patched == []
