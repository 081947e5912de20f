"""Labels and annotations of pods: which pod the Service leads to, and which ones reach the gateway.

A pod becomes the endpoint before the other one ceases to be, because without an endpoint new
clients are refused. A change that fails is tried again until it succeeds, or until
another change replaces it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from egress_proxy.hold.api_errors import ApiError
from egress_proxy.hold.events import RoleFailed
from egress_proxy.hold.lan_rules import GATEWAY_ANNOTATION, HEARD, SILENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from egress_proxy.events import Observer
    from egress_proxy.hold.objects import Pod
    from egress_proxy.supervisor import Supervisor

LEASE_LABEL = "egress-proxy/lease"
ROLE_LABEL = "egress-proxy/role"
ACTIVE, STANDBY = "active", "standby"
# A Deployment that shrinks deletes pods of lower cost first.
_COST = "controller.kubernetes.io/pod-deletion-cost"
_ACTIVE_COST = "100"

# The pause after a failure; doubled with each further one, up to the second value.
_RETRY_FIRST_S = 0.1
_RETRY_LAST_S = 2.0
# How often labels are checked and corrected, in case something else has changed them.
_REPEAT_S = 10.0


class Pods(Protocol):
    """What is asked of the Kubernetes API; each raises `ApiError`."""

    async def list_pods(self, selector: str, *, timeout_s: float) -> list[Pod]: ...

    async def patch_pod(
        self,
        name: str,
        *,
        labels: Mapping[str, str | None] | None = None,
        annotations: Mapping[str, str | None] | None = None,
        timeout_s: float,
    ) -> None: ...


class Labels:
    """Those of the pod `identity` and of the others that share `lease`."""

    def __init__(
        self,
        pods: Pods,
        supervisor: Supervisor,
        observer: Observer,
        identity: str,
        lease: str,
        timeout_s: float,
    ) -> None:
        self._pods = pods
        self._supervisor = supervisor
        self._observer = observer
        self._identity = identity
        self._selector = f"{LEASE_LABEL}={lease}"
        self._timeout_s = timeout_s
        self._role: asyncio.Task[None] | None = None
        self._gateway: asyncio.Task[None] | None = None

    def show_role(self, *, active: bool) -> None:
        """Active: keep this pod the only endpoint from now on; else leave that to the next one.

        A pod that is no longer active keeps its label until the next active pod changes it:
        meanwhile clients wait in this pod, and without an endpoint they would be refused. A standby
        does not change its label either: a pod that hands over may already have labelled it active.
        """
        if self._role is not None:
            self._role.cancel()
            self._role = None
        if active:
            self._role = self._supervisor.spawn(
                "label", lambda: self._repeat(self._become_active, every_s=_REPEAT_S)
            )

    def show_gateway(self, *, heard: bool) -> None:
        """Annotate the own pod with whether the gateway answers it."""

        async def annotate() -> None:
            value = HEARD if heard else SILENT
            await self._pods.patch_pod(
                self._identity, annotations={GATEWAY_ANNOTATION: value}, timeout_s=self._timeout_s
            )

        if self._gateway is not None:
            self._gateway.cancel()
        self._gateway = self._supervisor.spawn("annotate", lambda: self._repeat(annotate))

    async def list_pods(self) -> tuple[Pod, ...]:
        """All pods that share the Lease. Raises `ApiError`."""
        return tuple(await self._pods.list_pods(self._selector, timeout_s=self._timeout_s))

    async def hand_over(self, successor: str) -> None:
        """Make `successor` the endpoint, and then the own pod none. Raises `ApiError`."""
        self.show_role(active=False)
        await self._label(successor, ACTIVE)
        await self._label(self._identity, STANDBY)

    async def _become_active(self) -> None:
        await self._label(self._identity, ACTIVE)
        for pod in await self.list_pods():
            if pod.name != self._identity and pod.labels.get(ROLE_LABEL) == ACTIVE:
                await self._label(pod.name, STANDBY)

    async def _label(self, pod: str, role: str) -> None:
        await self._pods.patch_pod(
            pod,
            labels={ROLE_LABEL: role},
            annotations={_COST: _ACTIVE_COST if role == ACTIVE else None},
            timeout_s=self._timeout_s,
        )

    async def _repeat(
        self, work: Callable[[], Awaitable[None]], *, every_s: float | None = None
    ) -> None:
        """Do `work` until it is done; with `every_s`, again and again."""
        pause_s = 0.0
        while True:
            try:
                await work()
            except ApiError as error:
                if not pause_s:
                    self._observer.observe(
                        RoleFailed(pod=self._identity, error=str(error), retry_s=_RETRY_FIRST_S)
                    )
                pause_s = min(max(2 * pause_s, _RETRY_FIRST_S), _RETRY_LAST_S)
                await asyncio.sleep(pause_s)
                continue
            if every_s is None:
                return
            pause_s = 0.0
            await asyncio.sleep(every_s)
