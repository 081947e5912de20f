"""A Service in a network namespace: an address that leads to the pod which is labelled active.

As kube-proxy does it for the Service of the overlay (``publishNotReadyAddresses``): destination NAT
of new connections to the pods that the selector matches; without one, new clients are refused.
"""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING, Any, Self

from tests.support.api_selectors import Selector

if TYPE_CHECKING:
    from types import TracebackType

    from tests.support.administrator import Administrator
    from tests.support.network import Namespace

# How late a change of labels is seen at most.
INTERVAL_S = 0.02


class Service:
    """`address`:`port` in `router`, which forwards between clients and pods.

    `pods` is the Kubernetes namespace, and `selector` chooses in it. `endpoints` are the addresses
    that new connections go to.
    """

    def __init__(
        self,
        router: Namespace,
        api: Administrator,
        *,
        pods: str,
        address: str,
        port: int,
        selector: str = "egress-proxy/role=active",
    ) -> None:
        self.endpoints: tuple[str, ...] = ()
        self._router = router
        self._api = api
        self._path = f"/api/v1/namespaces/{pods}/pods"
        self._selector = Selector(selector)
        self._address = address
        self._port = port
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="service")

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._router.enter()
            self._apply(())
            while not self._ended.wait(INTERVAL_S):
                found = self._found()
                if found != self.endpoints:
                    self._apply(found)
        except BaseException as error:  # noqa: BLE001 - raised again where the test sees it
            self._failure = error
        finally:
            self._ready.set()

    def _found(self) -> tuple[str, ...]:
        """The addresses of the pods that are selected, of the family of the Service's own."""
        version = ":" in self._address
        pods = [pod for pod in self._api.ask("GET", self._path)["items"] if self._matches(pod)]
        found = {
            entry["ip"]
            for pod in pods
            for entry in pod["status"].get("podIPs", [])
            if (":" in entry["ip"]) == version
        }
        return tuple(sorted(found))

    def _matches(self, pod: dict[str, Any]) -> bool:
        return self._selector.matches(pod)

    def _apply(self, endpoints: tuple[str, ...]) -> None:
        rules = ruleset(self._address, self._port, endpoints)
        # Replaced in one transaction; established connections keep their pod.
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        self.endpoints = endpoints
        self._ready.set()


def ruleset(address: str, port: int, endpoints: tuple[str, ...]) -> str:
    """The rules of nftables for one Service."""
    family = "ip6" if ":" in address else "ip"
    table = f"{family} service"
    wanted = f"{family} daddr {address} tcp dport {port}"
    if endpoints:
        choice = ", ".join(f"{number} : {endpoint}" for number, endpoint in enumerate(endpoints))
        hook = "type nat hook prerouting priority dstnat"
        verdict = f"dnat to numgen random mod {len(endpoints)} map {{ {choice} }}"
    else:
        hook = "type filter hook prerouting priority filter"
        verdict = "reject with tcp reset"
    # Added before it is deleted: the first time there is none.
    return f"""
        add table {table}
        delete table {table}
        table {table} {{
            chain service {{
                {hook};
                {wanted} {verdict}
            }}
        }}
    """
