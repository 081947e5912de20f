"""Each command that the documents quote, in real containers of the pod of every manifest.

A command without ``-c`` is run in every container of the pod, and in one like the init container.
The attachments are a macvlan, whatever the manifest's own CNI plugin; the API server is a stand-in.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

import egress_proxy
from egress_proxy.config.settings import read_settings
from egress_proxy.hold.api_server import MOUNT
from tests.image.containers import IMAGES, LIMITS, ROOT, Pod, example, image_of
from tests.image.test_manifests import EXAMPLES, OVERLAYS, environment, one, pod_of, render
from tests.support.api_process import ApiProcess
from tests.support.attachments import attach, macvlan
from tests.support.dns import DnsServer, Name
from tests.support.lab import CLUSTER_DNS, GATEWAY, NODE_TO_PODS, OUTSIDE, POD, RESERVED, Lab
from tests.support.network import Host
from tests.support.quoted_commands import commands, in_containers, occurrences, of_podman

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from egress_proxy.config.destinations import Destination
    from tests.image.containers import Resource

# What an operator is told now. Decisions and the changelog tell of the past.
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "deploy/**/*.md", "images/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
QUOTED = {command for path in DOCUMENTS for command in in_containers(path.read_text())}
PODMAN = sorted({line for path in DOCUMENTS for line in of_podman(path.read_text())})
NAMESPACE = "egress"
# The downward API's answers; the labels are the pod's own.
DOWNWARD = {
    "metadata.name": "router-a",
    "metadata.namespace": NAMESPACE,
    "spec.nodeName": "node-a",
    "status.podIP": POD.v4,
}
DAEMON = "egress-dns-proxy"


def test_every_quoted_command_is_found() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        found = [line for line in commands(text) if occurrences(line)]
        assert len(found) == occurrences(text), f"{path}: write each command in code of its own"
    assert {command.argv[:2] for command in QUOTED} >= {
        ("egress-proxy", "check"),
        ("egress-proxy", "signal"),
        ("egress-proxy", "status"),
    }
    assert PODMAN


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("line", PODMAN)
def test_a_quoted_podman_command_works(line: str, image: str, tmp_path: Path) -> None:
    (tmp_path / "destinations").write_text("80 198.51.100.11\n8443 web.example.com 443\n")
    here = line.replace("podman run", " ".join(["podman run", *LIMITS]))
    here, replaced = re.subn(r"registry\.example\.com/\S*/(egress-[a-z-]+)", image, here)
    assert replaced == 1
    done = subprocess.run(
        ["/bin/bash", "-c", here], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^good +run", done.stdout, re.MULTILINE)


def expectation(argv: tuple[str, ...], *, daemon: str) -> tuple[int, str]:
    """Exit status and a pattern of the output of a command.

    `daemon` says where `egress-proxy run` is: in this ``container``, this ``pod``, or ``nowhere``.
    """
    match argv[:2]:
        case ("egress-proxy", "--version"):
            return 0, rf"^egress-proxy {re.escape(egress_proxy.__version__)}$"
        case ("egress-proxy", "check"):
            return 0, r"^good +(init|run) "
        case ("egress-proxy", "status") if daemon == "nowhere":
            return 1, r"can't ask 127\.0\.0\.1 port 9153: Connection refused"
        case ("egress-proxy", "status"):
            return 0, r"^egress-proxy \S+ in \S+.*, ready, "
        case ("egress-proxy", "signal") if daemon == "container":
            return 0, r"^sent SIG(HUP|USR1) to process 1: "
        case ("egress-proxy", "signal"):
            return 1, r"no egress-proxy run in this container; use the container that runs "
    raise AssertionError(f"{argv}: state here what it prints")


def failure(
    title: str, argv: tuple[str, ...], done: subprocess.CompletedProcess[str], daemon: str
) -> str:
    """What is wrong with how a command ended, under a `title`; empty if nothing is."""
    status, pattern = expectation(argv, daemon=daemon)
    output = done.stdout + done.stderr
    if (
        done.returncode == status
        and re.search(pattern, output, re.MULTILINE)
        and "Traceback" not in output
    ):
        return ""
    return f"{title}: exit {done.returncode}, not {status} with {pattern!r}:\n{output}"


@pytest.mark.parametrize("name", [*OVERLAYS, *EXAMPLES])
def test_every_quoted_command_works_in_every_container(lab: Lab, tmp_path: Path, name: str) -> None:
    with running_pod(lab, name, tmp_path) as (pod, containers):
        in_pod = "pod" if DAEMON in containers.values() else "nowhere"

        def wrong_in(container: str, argv: tuple[str, ...]) -> str:
            done = pod.execute(*argv, container=container)
            daemon = "container" if containers[container] == DAEMON else in_pod
            return failure(f"{container}: {shlex.join(argv)}", argv, done, daemon)

        def wrong_like_init(argv: tuple[str, ...]) -> str:
            done = pod.run_instead_of_init(*argv)
            return failure(f"like init: {shlex.join(argv)}", argv, done, in_pod)

        with ThreadPoolExecutor(max_workers=4) as pool:
            results = [
                pool.submit(wrong_in, container, argv)
                for container in containers
                for argv in {each.argv for each in QUOTED if each.container in {"", container}}
            ]
            if pod.has_init:
                anywhere = {each.argv for each in QUOTED if not each.container}
                results += [pool.submit(wrong_like_init, argv) for argv in anywhere]
        failures = [text for result in results if (text := result.result())]
        assert not failures, "\n".join(failures)


@contextmanager
def running_pod(lab: Lab, name: str, directory: Path) -> Iterator[tuple[Pod, dict[str, str]]]:
    """The pod of a manifest with all containers ready, and the image of each by its name.

    All its destinations are there, in the outside.
    """
    with ExitStack() as stack:
        if name in EXAMPLES:
            spec, volumes = example(name)["spec"], {}
        else:
            resources = render(name)
            spec = pod_of(resources)["spec"]
            volumes = mounted(resources, directory)
            api = {}
            if any(each["name"] == "api-server" for each in spec.get("volumes", ())):
                api = start_api_server(stack, lab, pod_of(resources), directory, volumes)
            resolve_environment(resources, api)
        use_addresses_of_lab(spec)
        containers = spec.get("initContainers", []) + spec["containers"]
        variables = {entry["name"]: entry["value"] for each in containers for entry in each["env"]}
        attach(lab, variables.get("EGRESS_INTERFACE", "macvlan0"), macvlan("lan0", ipam={}))
        dns = DnsServer(lab.node.bind(CLUSTER_DNS.v4, 53), lab.node.listen(CLUSTER_DNS.v4, 53))
        stack.enter_context(dns)
        provide(stack, lab, dns, destinations(variables, volumes))
        pod = stack.enter_context(Pod(lab, {"spec": spec}, directory, volumes))
        if pod.has_init:
            with pod.init() as init:
                assert init.wait(timeout_s=30) == 0, init.transcript()
        for container in spec["containers"]:
            process = stack.enter_context(pod.start(container["name"]))
            process.wait_for(ready_event(container), timeout_s=30)
        yield pod, {each["name"]: image_of(each) for each in spec["containers"]}


def ready_event(container: Resource) -> str:
    """The record that says that the container is at work."""
    if container["name"] == "egress-hold":
        return "hold.active"
    return "daemon.ready" if image_of(container) == DAEMON else "init.waiting"


def mounted(resources: list[Resource], directory: Path) -> dict[str, Path]:
    """A directory for each volume of the pod that is a ConfigMap, with its files."""
    volumes = {}
    for volume in pod_of(resources)["spec"].get("volumes", ()):
        if "configMap" in volume:
            config = one(resources, "ConfigMap", name=volume["configMap"]["name"])
            volumes[volume["name"]] = path = directory / volume["name"]
            path.mkdir()
            for file, text in config["data"].items():
                (path / file).write_text(text)
    return volumes


def start_api_server(
    stack: ExitStack, lab: Lab, pod: Resource, directory: Path, volumes: dict[str, Path]
) -> dict[str, str]:
    """Start one that has the pod; its address as variables. `volumes` gets the account's mount."""
    folder = volumes["api-server"] = directory / "api-server"
    folder.mkdir()
    server = ApiProcess(folder, address=NODE_TO_PODS.v4, port=6443, namespace=lab.node)
    stack.enter_context(server)
    server.create_pod(
        NAMESPACE, DOWNWARD["metadata.name"], labels=pod["metadata"]["labels"], ip=POD.v4
    )
    (mount,) = next(each for each in pod["spec"]["containers"] if each["name"] == "egress-hold")[
        "volumeMounts"
    ]
    assert mount["mountPath"] == str(MOUNT)
    return server.environment


def resolve_environment(resources: list[Resource], api: dict[str, str]) -> None:
    """Write each container's variables out in its ``env``, as the kubelet does it."""
    pod = pod_of(resources)
    labels = {f"metadata.labels['{key}']": text for key, text in pod["metadata"]["labels"].items()}
    fields = DOWNWARD | labels
    for container in pod["spec"]["initContainers"] + pod["spec"]["containers"]:
        own = {
            entry["name"]: fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for entry in container.get("env", ())
        }
        every = environment(resources, container) | api | own
        container["env"] = [{"name": key, "value": text} for key, text in every.items()]


def use_addresses_of_lab(spec: Resource) -> None:
    """Replace the reserved address and the gateway, wherever the manifest gives them."""
    lab = {"EGRESS_SOURCE": str(RESERVED.interface4), "EGRESS_GATEWAY": GATEWAY.v4}
    for container in spec.get("initContainers", []) + spec["containers"]:
        for entry in container["env"]:
            entry["value"] = lab.get(entry["name"], entry["value"])


def destinations(variables: dict[str, str], volumes: dict[str, Path]) -> tuple[Destination, ...]:
    """Those of the pod; none in redirect mode."""
    if "EGRESS_DNS_PROXY_DESTINATION_FILE" in variables:
        file = str(volumes["destinations"] / "destinations")
        return read_settings({"EGRESS_DNS_PROXY_DESTINATION_FILE": file}).destinations
    if "EGRESS_DNS_PROXY_DESTINATION" not in variables:
        return ()
    text = variables["EGRESS_DNS_PROXY_DESTINATION"]
    return read_settings({"EGRESS_DNS_PROXY_DESTINATION": text}).destinations


def provide(stack: ExitStack, lab: Lab, dns: DnsServer, wanted: tuple[Destination, ...]) -> None:
    """Have the outside listen wherever a destination leads, at its address or under its name."""
    endpoints = set()
    for destination in wanted:
        if isinstance(destination.host, str):
            dns.zone[destination.host] = Name(a=(OUTSIDE.v4,))
            endpoints.add((OUTSIDE.v4, destination.remote_port))
        else:
            endpoints.add((str(destination.host), destination.remote_port))
    for address in {address for address, _ in endpoints} - {OUTSIDE.v4}:
        lab.outside.configure("lo", Host.of(f"{address}/32", "2001:db8:0:4::ffff/128"))
        lab.gateway.route(Host.of(f"{address}/32", "2001:db8:0:4::ffff/128"), OUTSIDE)
    for address, port in endpoints:
        stack.enter_context(lab.outside.listen(address, port))
