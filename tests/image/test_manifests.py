"""What is under `deploy/`: it renders, the API server would take it, and its parts agree."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import SchemaNotFoundError

from egress_proxy.config.settings import read_settings
from tests.image.containers import ROOT, Resource, example, require

OVERLAYS = ("overlays/openshift-sdn", "overlays/multus", "overlays/configmap", "examples/shop")
EXAMPLES = ("pod-privileged", "pod-least-privilege")
# The oldest with a schema, OpenShift 4.14's (the last with OpenShift SDN in support), a newer one,
# and the newest that the package knows.
VERSIONS = ("1.25", "1.27", "1.31", kubernetes_validate.latest_version())
# Defined by operators; Kubernetes has no schema for them.
FOREIGN = {
    "NetworkAttachmentDefinition",
    "PodMonitor",
    "PrometheusRule",
    "SecurityContextConstraints",
}
ADMIN_PORT = 9153


def require_kubectl() -> str:
    """A kubectl with a current kustomize: the machine's, or one unpacked from Debian's package."""
    found = subprocess.run(
        ["images/kubectl.sh"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    require(found.returncode == 0, f"no kubectl, and none from Debian: {found.stderr}")
    return str(ROOT / found.stdout.strip())


@cache
def render(directory: str) -> list[Resource]:
    command = [require_kubectl(), "kustomize", f"{ROOT}/deploy/{directory}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # A warning is a deprecated field.
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


def one(resources: list[Resource], kind: str, **metadata: str) -> Resource:
    (found,) = (
        resource
        for resource in resources
        if resource["kind"] == kind and metadata.items() <= resource["metadata"].items()
    )
    return found


def environment(resources: list[Resource], container: Resource) -> dict[str, str]:
    """What the ConfigMap gives the container; its generated name must be the one referred to."""
    (source,) = container["envFrom"]
    settings: dict[str, str] = one(resources, "ConfigMap", **source["configMapRef"])["data"]
    return settings


def pod_of(resources: list[Resource]) -> Resource:
    pod: Resource = one(resources, "Deployment")["spec"]["template"]
    return pod


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", ["base", *OVERLAYS])
def test_every_manifest_renders_and_is_valid(overlay: str, version: str) -> None:
    for resource in render(overlay):
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except SchemaNotFoundError:
            assert resource["kind"] in FOREIGN


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(example(name), version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_destinations_service_and_policy_name_the_same_ports(overlay: str, tmp_path: Path) -> None:
    resources = render(overlay)
    (proxy,) = pod_of(resources)["spec"]["containers"]
    variables = dict(environment(resources, proxy))
    if "EGRESS_DNS_PROXY_DESTINATION_FILE" in variables:
        mounted = Path(variables["EGRESS_DNS_PROXY_DESTINATION_FILE"])
        (mount,) = proxy["volumeMounts"]
        assert mount["mountPath"] == str(mounted.parent)
        assert "subPath" not in mount
        text = one(resources, "ConfigMap", name="egress-destinations")["data"][mounted.name]
        variables["EGRESS_DNS_PROXY_DESTINATION_FILE"] = str(tmp_path / "destinations")
        (tmp_path / "destinations").write_text(text)

    settings = read_settings(variables)

    ports = {destination.port for destination in settings.destinations}
    service = one(resources, "Service")["spec"]
    assert {port["port"] for port in service["ports"]} == ports
    assert {port["targetPort"] for port in service["ports"]} == ports
    clients, monitoring = one(resources, "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for port in clients["ports"]} == ports
    assert {port["port"] for port in monitoring["ports"]} == {ADMIN_PORT}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_is_given_time_to_drain(overlay: str) -> None:
    resources = render(overlay)
    (proxy,) = pod_of(resources)["spec"]["containers"]
    variables = {
        **environment(resources, proxy),
        "EGRESS_DNS_PROXY_DESTINATION": "80 198.51.100.11",
        "EGRESS_DNS_PROXY_DESTINATION_FILE": "",
    }
    # Two seconds in which endpoints go, before the drain begins.
    assert (
        pod_of(resources)["spec"]["terminationGracePeriodSeconds"]
        > 2 + read_settings(variables).drain_timeout_s
    )


def assert_least(container: Resource, *, root: bool, capabilities: list[str]) -> None:
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["capabilities"].get("add", []) == capabilities
    assert not context.get("privileged", False)
    assert (context["runAsUser"] == 0) is root
    assert context.get("runAsNonRoot", False) is not root


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(lambda: pod_of(render("overlays/multus")), id="multus"),
        pytest.param(lambda: pod_of(render("overlays/configmap")), id="configmap"),
        pytest.param(lambda: pod_of(render("examples/shop")), id="shop"),
        pytest.param(lambda: example("pod-least-privilege"), id="example"),
    ],
)
def test_the_pod_has_the_least_privilege(pod: Any) -> None:  # noqa: ANN401 - a lazy one
    spec = pod()["spec"]
    (init,) = spec["initContainers"]
    (proxy,) = spec["containers"]
    assert_least(init, root=True, capabilities=["NET_ADMIN", "NET_RAW"])
    assert_least(proxy, root=False, capabilities=[])
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"} in spec["securityContext"][
        "sysctls"
    ]


def test_openshift_sdn_gets_its_one_privileged_container_and_no_second() -> None:
    resources = render("overlays/openshift-sdn")
    (init,) = pod_of(resources)["spec"]["initContainers"]
    (proxy,) = pod_of(resources)["spec"]["containers"]
    assert init["securityContext"]["privileged"] is True
    # The API server refuses privileged together with a ban on escalation.
    assert init["securityContext"]["allowPrivilegeEscalation"] is True
    assert_least(proxy, root=False, capabilities=[])


def test_the_service_account_may_use_the_constraint_that_is_there() -> None:
    resources = render("overlays/openshift-sdn")
    constraint = one(resources, "SecurityContextConstraints")
    (rule,) = one(resources, "Role")["rules"]
    assert rule["resourceNames"] == [constraint["metadata"]["name"]]
    (subject,) = one(resources, "RoleBinding")["subjects"]
    assert subject["name"] == pod_of(resources)["spec"]["serviceAccountName"]
    assert constraint["allowPrivilegedContainer"] is True


@pytest.mark.parametrize("overlay", ["overlays/multus", "overlays/configmap", "examples/shop"])
def test_the_attachment_has_the_source_address_and_the_egress_interface(overlay: str) -> None:
    resources = render(overlay)
    attachment = one(resources, "NetworkAttachmentDefinition")
    config = json.loads(attachment["spec"]["config"])
    (init,) = pod_of(resources)["spec"]["initContainers"]
    variables = environment(resources, init)
    assert config["type"] == "macvlan"
    assert [entry["address"] for entry in config["ipam"]["addresses"]] == [
        variables["EGRESS_SOURCE"]
    ]
    networks = json.loads(
        pod_of(resources)["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"]
    )
    assert networks == [{"name": attachment["metadata"]["name"], "interface": "macvlan0"}]


def test_the_privileged_example_is_the_pod_as_it_always_was() -> None:
    spec = example("pod-privileged")["spec"]
    (init,) = spec["initContainers"]
    (proxy,) = spec["containers"]
    assert [init["image"], proxy["image"]] == ["egress-router", "egress-dns-proxy"]
    assert init["securityContext"] == proxy["securityContext"] == {"privileged": True}
    variables = {entry["name"]: entry["value"] for entry in proxy["env"]}
    assert [entry.port for entry in read_settings(variables).destinations] == [80, 100, 8443]
