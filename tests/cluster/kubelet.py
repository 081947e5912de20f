"""A stand-in for the kubelets of all nodes: it runs the pods that the real scheduler gave them.

Of a pod it takes what matters here: the containers' environment (ConfigMap and downward API), the
token, the port from which no capability is needed, SIGTERM to all containers at once. Readiness is
asked for over HTTP, as the manifest's probes do.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any, Self

from tests.cluster.lan import INTERFACE, Lan
from tests.support.administrator import RefusedError
from tests.support.lab import EGRESS_PROXY
from tests.support.namespaces import Container
from tests.support.network import Host, Namespace
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

    from tests.cluster.control_plane import ControlPlane
    from tests.support.processes import Process

# How often the API server is asked for pods, as a watch would tell.
INTERVAL_S = 0.05
# Of run and hold.
_ADMIN_PORTS = (9153, 9154)
# The capabilities of init and hold.
_LEAST: Any = {"capabilities": ("NET_ADMIN", "NET_RAW")}
Json = dict[str, Any]


@dataclass
class Sandbox:
    """A pod that runs."""

    name: str
    address: Host
    network: Namespace
    hold: Process
    proxy: Process
    stack: ExitStack
    ready: bool = False
    ending: bool = False

    def stop(self) -> None:
        """SIGTERM to all containers at once, as a kubelet sends it; wait for both ends."""
        self.hold.terminate()
        self.proxy.terminate()
        assert self.hold.wait(timeout_s=30) == 0, self.hold.transcript()
        assert self.proxy.wait(timeout_s=30) == 0, self.proxy.transcript()


class Kubelets:
    """Runs the pods of `namespace` on `nodes`; `pods` are those that run, by name."""

    def __init__(self, plane: ControlPlane, lan: Lan, namespace: str, nodes: list[str]) -> None:
        self.pods: dict[str, Sandbox] = {}
        # What the pods that have ended wrote.
        self._transcripts: list[str] = []
        self._plane = plane
        self._lan = lan
        self._namespace = namespace
        self._nodes = {name: lan.node(name) for name in nodes}
        self._number = 20
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kubelets")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        wait_until(lambda: self._failure is not None or not self._ending())
        for pod in self.pods.values():
            self._close(pod)
        self.raise_failure()

    def _ending(self) -> bool:
        return any(pod.ending for pod in list(self.pods.values()))

    def transcript(self) -> str:
        """What all pods have written so far."""
        return "\n".join([*self._transcripts, *map(_transcript, self.pods.values())])

    def raise_failure(self) -> None:
        """What went wrong in the thread."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ended.wait(INTERVAL_S):
                self._sync()
        except BaseException as error:  # noqa: BLE001 - raised again where the test sees it
            self._failure = error

    def _sync(self) -> None:
        items = self._plane.ask("GET", f"/api/v1/namespaces/{self._namespace}/pods")["items"]
        for item in items:
            name, metadata = item["metadata"]["name"], item["metadata"]
            if item["spec"].get("nodeName") and name not in self.pods:
                self.pods[name] = self._start(item)
            elif "deletionTimestamp" in metadata and name in self.pods:
                self._end(self.pods[name])
        for pod in list(self.pods.values()):
            if not pod.ready and not pod.ending and self._is_ready(pod):
                pod.ready = True
                self._plane.set_ready(self._namespace, pod.name, ip=pod.address.v4)

    def _start(self, item: Json) -> Sandbox:
        name, number = item["metadata"]["name"], self._number
        self._number += 1
        address = Host.of(f"192.0.2.{number}/24", f"2001:db8:0:2::{number}/64")
        node = self._nodes[item["spec"]["nodeName"]]
        with ExitStack() as stack:
            network = self._lan.pod(number, address, node)
            stack.callback(network.close)
            network.sysctl("ipv4/ip_unprivileged_port_start", 0)
            variables = self._environment(item, address)
            mount = str(self._plane.mount(self._namespace))
            done = network.run(EGRESS_PROXY, "init", env=variables, container=Container(**_LEAST))
            assert done.returncode == 0, done.stderr
            hold = stack.enter_context(
                network.start(
                    *(EGRESS_PROXY, "hold"),
                    env=variables,
                    container=Container(**_LEAST, service_account=mount),
                )
            )
            proxy = stack.enter_context(
                network.start(
                    *(EGRESS_PROXY, "run"),
                    env=variables,
                    container=Container(uid=65532, read_only=True),
                )
            )
            return Sandbox(name, address, network, hold, proxy, stack.pop_all())

    def _environment(self, item: Json, address: Host) -> dict[str, str]:
        """That of `egress-hold`, as the kubelet makes it from the pod's spec; `run` has no more."""
        (hold,) = (each for each in item["spec"]["containers"] if each["name"] == "egress-hold")
        (source,) = hold["envFrom"]
        name = source["configMapRef"]["name"]
        path = f"/api/v1/namespaces/{self._namespace}/configmaps/{name}"
        made: dict[str, str] = dict(self._plane.ask("GET", path)["data"])
        for entry in hold["env"]:
            made[entry["name"]] = _field(item, entry["valueFrom"]["fieldRef"]["fieldPath"], address)
        assert made["EGRESS_INTERFACE"] == INTERFACE
        return made | self._plane.environment

    def _is_ready(self, pod: Sandbox) -> bool:
        return pod.network.call(lambda: all(_readyz(pod.address.v4, port) for port in _ADMIN_PORTS))

    def _end(self, pod: Sandbox) -> None:
        """Stop it in the background: the pods of other nodes need their kubelets meanwhile."""
        if not pod.ending:
            pod.ending = True
            threading.Thread(target=self._stop, args=(pod,), name=f"end of {pod.name}").start()

    def _stop(self, pod: Sandbox) -> None:
        try:
            pod.stop()
            self._close(pod)
            self._plane.delete_pod(self._namespace, pod.name, grace_s=0)
            wait_until(lambda: not self._exists(pod.name))
            del self.pods[pod.name]
        except BaseException as error:  # noqa: BLE001 - raised again where the test sees it
            self._failure = error

    def _close(self, pod: Sandbox) -> None:
        self._transcripts.append(_transcript(pod))
        pod.stack.close()

    def _exists(self, name: str) -> bool:
        try:
            self._plane.pod(self._namespace, name)
        except RefusedError as error:
            if error.status == 404:
                return False
            raise
        return True


def _readyz(address: str, port: int) -> bool:
    connection = HTTPConnection(address, port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _transcript(pod: Sandbox) -> str:
    return "\n".join(
        [f"{pod.name} {pod.address.v4}", pod.hold.transcript(), pod.proxy.transcript()]
    )


def _field(item: Json, path: str, address: Host) -> str:
    """What the downward API says."""
    if path == "status.podIP":
        return address.v4
    metadata = item["metadata"]
    label = path.removeprefix("metadata.labels['").removesuffix("']")
    found: str = (
        metadata["labels"][label] if label != path else metadata[path.removeprefix("metadata.")]
    )
    return found
