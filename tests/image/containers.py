"""A pod of `deploy/examples` on the laboratory's network, its containers started by podman.

Podman is told of each container what a kubelet would tell its runtime: image, environment,
security context, resolv.conf, the termination log, and the network namespace of the pod. A pod
spec's fields become podman's options in one place, `_options`.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests.support.lab import CLUSTER_DNS, GATEWAY, RESERVED, Lab
from tests.support.needs import do_without
from tests.support.processes import Process

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
ROUTER, PROXY = IMAGES = ("localhost/egress-router", "localhost/egress-dns-proxy")
# Podman would raise these to the machine's hard limits, which not every machine allows.
LIMITS = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")

Resource = dict[str, Any]


def require(available: object, reason: str) -> None:
    """Skip with `reason` unless `available`; in continuous integration that is a failure."""
    if not available:
        do_without(reason)


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, check=check)


def example(name: str) -> Resource:
    """A pod of `deploy/examples`."""
    pod: Resource = yaml.safe_load((ROOT / "deploy/examples" / f"{name}.yaml").read_text())
    return pod


def _path(descriptor: int) -> str:
    """A path of this process's `descriptor` that other processes can open."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


class Pod:
    """A pod after `example`: the first `init`, then `proxy`, as often as a test likes.

    The examples' addresses give way to the laboratory's; everything else is theirs. Leaving the
    ``with`` block removes what still runs.
    """

    def __init__(self, lab: Lab, example: Resource, directory: Path) -> None:
        self._lab = lab
        self._spec = example["spec"]
        self._names: list[str] = []
        self._termination_log = directory / "termination-log"
        self._resolv_conf = directory / "resolv.conf"
        self._resolv_conf.write_text(
            f"search shop.svc.cluster.local\nnameserver {CLUSTER_DNS.v4}\noptions ndots:5\n"
        )
        for sysctl in self._spec.get("securityContext", {}).get("sysctls", []):
            lab.pod.sysctl(sysctl["name"].removeprefix("net.").replace(".", "/"), sysctl["value"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        podman("rm", "--force", "--ignore", "--time=0", *self._names)

    @property
    def termination_message(self) -> str:
        """What the container that ended last left for the kubelet."""
        return self._termination_log.read_text()

    def init(self, **variables: str) -> Process:
        """Start the init container."""
        (container,) = self._spec["initContainers"]
        lab = {
            "EGRESS_SOURCE": str(RESERVED.interface4),
            "EGRESS_GATEWAY": GATEWAY.v4,
        }
        return self._start(container, lab | variables)

    def proxy(self, **variables: str) -> Process:
        """Start the main container."""
        (container,) = self._spec["containers"]
        return self._start(container, variables)

    def signal(self, name: str) -> None:
        """Send a signal such as ``TERM`` to the container that was started last."""
        podman("kill", f"--signal={name}", self._names[-1])

    def execute(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container that was started last, as `kubectl exec` would."""
        return podman("exec", self._names[-1], *argv, check=False)

    def _start(self, container: Resource, variables: dict[str, str]) -> Process:
        # The kubelet makes a new file for each container, and every user may write to it.
        self._termination_log.write_text("")
        self._termination_log.chmod(0o666)
        environment = {entry["name"]: entry["value"] for entry in container["env"]} | variables
        self._names.append(f"egress-test-{uuid.uuid4()}")
        return Process(
            [
                "podman",
                "run",
                "--rm",
                f"--name={self._names[-1]}",
                f"--network=ns:{_path(self._lab.pod.descriptor)}",
                f"--volume={self._resolv_conf}:/etc/resolv.conf:ro",
                f"--volume={self._termination_log}:/dev/termination-log",
                *LIMITS,
                *(f"--env={name}={value}" for name, value in environment.items()),
                *_options(container["securityContext"]),
                f"localhost/{container['image']}",
            ],
            env=dict(os.environ),
        )


def _options(context: Resource) -> list[str]:
    """A container's security context in podman's words."""
    capabilities = context.get("capabilities", {})
    options = [f"--cap-drop={name}" for name in capabilities.get("drop", [])]
    options += [f"--cap-add={name}" for name in capabilities.get("add", [])]
    if context.get("privileged"):
        options.append("--privileged")
    if "runAsUser" in context:
        options.append(f"--user={context['runAsUser']}:0")
    if context.get("readOnlyRootFilesystem"):
        options += ["--read-only", "--read-only-tmpfs=false"]
    if context.get("allowPrivilegeEscalation") is False:
        options.append("--security-opt=no-new-privileges")
    return options
