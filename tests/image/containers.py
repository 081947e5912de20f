"""A pod of `deploy/examples` on the laboratory's network, its containers started by podman.

Podman is told of each container what a kubelet would tell its runtime: image, environment,
security context, resolv.conf, the termination log, and the network namespace of the pod. A pod
spec's fields become podman's options in one place, `_options`.
"""

from __future__ import annotations

import json
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
    from collections.abc import Mapping, Sequence
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


def image_of(container: Resource) -> str:
    """Which of the images it is: its name without registry and tag."""
    return str(container["image"]).rpartition("/")[2].partition(":")[0]


def _path(descriptor: int) -> str:
    """A path of this process's `descriptor` that other processes can open."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


class Pod:
    """A pod after `example`: the first `init`, then `proxy`, as often as a test likes.

    The examples' addresses give way to the laboratory's; everything else is theirs. `volumes` are
    the directories on this machine that the pod's volumes of these names show. Leaving the ``with``
    block removes what still runs.
    """

    def __init__(
        self,
        lab: Lab,
        example: Resource,
        directory: Path,
        volumes: Mapping[str, Path] | None = None,
    ) -> None:
        self._lab = lab
        self._spec = example["spec"]
        self._volumes = volumes or {}
        self._names: list[str] = []
        self._by_container: dict[str, str] = {}
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
    def has_init(self) -> bool:
        """Whether there is an init container."""
        return "initContainers" in self._spec

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

    def start(self, container: str, **variables: str) -> Process:
        """Start the main container of this name."""
        (found,) = (each for each in self._spec["containers"] if each["name"] == container)
        return self._start(found, variables)

    def signal(self, name: str) -> None:
        """Send a signal such as ``TERM`` to the container that was started last."""
        podman("kill", f"--signal={name}", self._names[-1])

    def execute(self, *argv: str, container: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in a running container, or the last started, as `kubectl exec` would."""
        name = self._by_container[container] if container else self._names[-1]
        return podman("exec", name, *argv, check=False)

    def run_instead_of_init(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a container like the init container, after that has ended."""
        (container,) = self._spec["initContainers"]
        return podman(*self._arguments(container | {"command": argv}, {}), check=False)

    def _start(self, container: Resource, variables: dict[str, str]) -> Process:
        # The kubelet makes a new file for each container, and every user may write to it.
        self._termination_log.write_text("")
        self._termination_log.chmod(0o666)
        arguments = self._arguments(container, variables)
        self._by_container[container["name"]] = self._names[-1]
        return Process(["podman", *arguments], env=dict(os.environ))

    def _arguments(self, container: Resource, variables: dict[str, str]) -> Sequence[str]:
        """Of podman, to run the container under a new name."""
        environment = {entry["name"]: entry["value"] for entry in container["env"]} | variables
        name = f"egress-test-{uuid.uuid4()}"
        self._names.append(name)
        return [
            "run",
            "--rm",
            f"--name={name}",
            f"--network=ns:{_path(self._lab.pod.descriptor)}",
            f"--volume={self._resolv_conf}:/etc/resolv.conf:ro",
            f"--volume={self._termination_log}:/dev/termination-log",
            *(
                f"--volume={self._volumes[mount['name']]}:{mount['mountPath']}:ro"
                for mount in container.get("volumeMounts", ())
            ),
            *LIMITS,
            *(f"--env={name}={value}" for name, value in environment.items()),
            *_options(container["securityContext"]),
            *(
                [f"--entrypoint={json.dumps(container['command'])}"]
                if "command" in container
                else ()
            ),
            f"localhost/{image_of(container)}",
        ]


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
