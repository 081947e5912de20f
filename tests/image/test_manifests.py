"""What is under `deploy/`: it renders, the API server would take it, and its parts agree."""

from __future__ import annotations

import json
import os
import subprocess
from copy import deepcopy
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import SchemaNotFoundError

from egress_proxy.config.settings import read_settings
from tests.image.containers import ROOT, Resource, example, require

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = ROOT / "deploy"

OVERLAYS = (
    "overlays/configmap",
    "overlays/ha",
    "overlays/kernel",
    "overlays/multus",
    "overlays/openshift-ovn",
    "overlays/openshift-sdn",
    "overlays/ovn-localnet",
    "examples/available",
    "examples/shop/database",
    "examples/shop/payments",
)
# Applied once per cluster or namespace; they hold no router.
ONCE = ("cluster/openshift", "cluster/openshift-sdn", "monitoring", "namespace")
EXAMPLES = ("pod-privileged", "pod-least-privilege", "pod-redirect")
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
ROLE_LABEL = "egress-proxy/role"


def require_kubectl() -> str:
    """A kubectl with a current kustomize: the machine's, or one unpacked from Debian's package."""
    found = subprocess.run(
        ["images/kubectl.sh"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    require(found.returncode == 0, f"no kubectl, and none from Debian: {found.stderr}")
    return str(ROOT / found.stdout.strip())


def render(directory: str | Path) -> list[Resource]:
    """A directory below `deploy/`, or any other by its absolute path; a copy for the caller."""
    return deepcopy(_rendered(directory))


@cache
def _rendered(directory: str | Path) -> list[Resource]:
    command = [require_kubectl(), "kustomize", str(DEPLOY / directory)]
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


def proxy_of(resources: list[Resource]) -> Resource:
    return container_of(pod_of(resources), "egress-dns-proxy")


def container_of(pod: Resource, name: str) -> Resource:
    (found,) = (each for each in pod["spec"]["containers"] if each["name"] == name)
    container: Resource = found
    return container


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", ["base", *OVERLAYS, *ONCE, "examples/shop"])
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
    proxy = proxy_of(resources)
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
    assert {port["port"] for port in monitoring["ports"]} == {
        port["containerPort"]
        for container in pod_of(resources)["spec"]["containers"]
        for port in container["ports"]
    }
    assert proxy["ports"] == [{"name": "admin", "containerPort": ADMIN_PORT}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_log_of_every_container_is_json(overlay: str) -> None:
    resources = render(overlay)
    spec = pod_of(resources)["spec"]
    for container in spec["initContainers"] + spec["containers"]:
        assert environment(resources, container)["EGRESS_DNS_PROXY_LOG_FORMAT"] == "json"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_is_given_time_to_drain(overlay: str) -> None:
    resources = render(overlay)
    proxy = proxy_of(resources)
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
        *(
            pytest.param(lambda overlay=overlay: pod_of(render(overlay)), id=overlay)
            for overlay in OVERLAYS
            if overlay not in {"overlays/openshift-sdn", "overlays/kernel"}
        ),
        pytest.param(lambda: example("pod-least-privilege"), id="example"),
    ],
)
def test_the_pod_has_the_least_privilege(pod: Any) -> None:  # noqa: ANN401 - a lazy one
    spec = pod()["spec"]
    (init,) = spec["initContainers"]
    assert_least(init, root=True, capabilities=["NET_ADMIN", "NET_RAW"])
    for container in spec["containers"]:
        if container["name"] == "egress-hold":
            assert_least(container, root=True, capabilities=["NET_ADMIN", "NET_RAW"])
        else:
            assert_least(container, root=False, capabilities=[])
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"} in spec["securityContext"][
        "sysctls"
    ]


def test_with_the_kernel_as_data_plane_the_proxy_gets_one_capability() -> None:
    resources = render("overlays/kernel")
    proxy = proxy_of(resources)
    assert_least(proxy, root=True, capabilities=["NET_ADMIN"])
    assert dict(environment(resources, proxy))["EGRESS_DNS_PROXY_DATAPLANE"] == "kernel"


def test_openshift_sdn_gets_its_one_privileged_container_and_no_second() -> None:
    resources = render("overlays/openshift-sdn")
    (init,) = pod_of(resources)["spec"]["initContainers"]
    proxy = proxy_of(resources)
    assert init["securityContext"]["privileged"] is True
    # The API server refuses privileged together with a ban on escalation.
    assert init["securityContext"]["allowPrivilegeEscalation"] is True
    assert_least(proxy, root=False, capabilities=[])


@pytest.mark.parametrize(
    ("overlay", "cluster"),
    [
        ("overlays/openshift-ovn", "cluster/openshift"),
        ("overlays/openshift-sdn", "cluster/openshift-sdn"),
        ("examples/shop/payments", "cluster/openshift"),
        ("examples/available", "cluster/openshift"),
    ],
)
def test_the_service_account_may_use_a_constraint_that_admits_its_pod(
    overlay: str, cluster: str
) -> None:
    resources, once = render(overlay), render(cluster)
    constraint = one(once, "SecurityContextConstraints")
    role = one(once, "ClusterRole")
    (rule,) = role["rules"]
    assert rule["resourceNames"] == [constraint["metadata"]["name"]]
    (binding,) = (
        resource
        for resource in resources
        if resource["kind"] == "RoleBinding" and resource["roleRef"]["kind"] == "ClusterRole"
    )
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (
        "ClusterRole",
        role["metadata"]["name"],
    )
    (subject,) = binding["subjects"]
    spec = pod_of(resources)["spec"]
    assert subject["name"] == spec["serviceAccountName"]
    for container in (*spec["initContainers"], *spec["containers"]):
        context = container["securityContext"]
        assert not context.get("privileged") or constraint["allowPrivilegedContainer"]
        assert not context["allowPrivilegeEscalation"] or constraint["allowPrivilegeEscalation"]
        added = (context.get("capabilities") or {}).get("add", [])
        assert set(added) <= set(constraint["allowedCapabilities"])


def test_the_two_constraints_have_their_own_names_and_only_one_is_privileged() -> None:
    found = {
        resource["metadata"]["name"]: resource["allowPrivilegedContainer"]
        for directory in ("cluster/openshift", "cluster/openshift-sdn")
        for resource in render(directory)
        if resource["kind"] == "SecurityContextConstraints"
    }
    assert found == {"egress-router": False, "egress-router-sdn": True}


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if "sdn" not in name])
def test_the_pod_is_attached_and_its_address_is_in_one_place_only(overlay: str) -> None:
    resources = render(overlay)
    attachment = one(resources, "NetworkAttachmentDefinition")
    annotations = pod_of(resources)["metadata"]["annotations"]
    assert annotations["k8s.v1.cni.cncf.io/networks"] == attachment["metadata"]["name"]
    (init,) = pod_of(resources)["spec"]["initContainers"]
    variables = environment(resources, init)
    # What Multus calls the interface of the first network.
    assert variables["EGRESS_INTERFACE"] == "net1"
    source = variables["EGRESS_SOURCE"].partition("/")[0]
    assert json.dumps(resources).count(source) == 1


@pytest.mark.parametrize(
    "overlay", ["overlays/multus", "overlays/openshift-ovn", "examples/shop/payments"]
)
def test_the_attachment_is_a_bare_macvlan_that_ignores_advertisements(overlay: str) -> None:
    attachment = one(render(overlay), "NetworkAttachmentDefinition")
    macvlan, tuning = json.loads(attachment["spec"]["config"])["plugins"]
    assert (macvlan["type"], macvlan["ipam"]) == ("macvlan", {})
    assert tuning == {"type": "tuning", "sysctl": {"net.ipv6.conf.IFNAME.accept_ra": "0"}}


def build(directory: Path, **kustomization: object) -> list[Resource]:
    """A kustomization in `directory` on top of `deploy/`, rendered."""
    text = yaml.safe_dump(kustomization).replace("DEPLOY", os.path.relpath(DEPLOY, directory))
    (directory / "kustomization.yaml").write_text(text)
    return render(directory)


@pytest.mark.parametrize("overlay", ["overlays/multus", "overlays/openshift-ovn"])
def test_an_address_that_the_cni_gives_is_still_in_one_place_only(
    overlay: str, tmp_path: Path
) -> None:
    resources = build(
        tmp_path,
        namespace="shop",
        namePrefix="swift-",
        resources=[f"DEPLOY/{overlay}"],
        components=["DEPLOY/components/cni-address"],
        transformers=["DEPLOY/components/cni-address/names"],
        configMapGenerator=[
            {
                "name": "egress-settings",
                "behavior": "merge",
                "literals": ["EGRESS_SOURCE=192.0.2.77/26"],
            }
        ],
    )
    attachment = one(resources, "NetworkAttachmentDefinition")
    annotations = pod_of(resources)["metadata"]["annotations"]
    assert json.loads(annotations["k8s.v1.cni.cncf.io/networks"]) == [
        {"name": attachment["metadata"]["name"], "ips": ["192.0.2.77/26"]}
    ]
    macvlan, tuning = json.loads(attachment["spec"]["config"])["plugins"]
    assert (macvlan["capabilities"], macvlan["ipam"]) == ({"ips": True}, {"type": "static"})
    assert tuning["type"] == "tuning"


def test_a_localnet_attachment_names_itself_as_ovn_kubernetes_wants(tmp_path: Path) -> None:
    resources = build(
        tmp_path,
        namespace="shop",
        namePrefix="swift-",
        nameSuffix="-2",
        resources=["DEPLOY/overlays/ovn-localnet"],
        components=["DEPLOY/components/openshift"],
        transformers=["DEPLOY/overlays/ovn-localnet/names"],
    )
    attachment = one(resources, "NetworkAttachmentDefinition")
    config = json.loads(attachment["spec"]["config"])
    assert attachment["metadata"]["name"] == "swift-egress-router-2"
    assert config["netAttachDefName"] == "shop/swift-egress-router-2"
    assert (config["type"], config["topology"]) == ("ovn-k8s-cni-overlay", "localnet")
    annotations = pod_of(resources)["metadata"]["annotations"]
    assert annotations["k8s.v1.cni.cncf.io/networks"] == attachment["metadata"]["name"]


def test_high_availability_can_be_added_to_any_overlay(tmp_path: Path) -> None:
    resources = build(
        tmp_path,
        namespace="shop",
        resources=["DEPLOY/overlays/ovn-localnet"],
        components=["DEPLOY/components/high-availability"],
        transformers=["DEPLOY/overlays/ovn-localnet/names"],
    )
    assert container_of(pod_of(resources), "egress-hold")
    assert environment(resources, proxy_of(resources))["EGRESS_HA"] == "lease"


def labels_of(resource: Resource) -> dict[str, str]:
    labels: dict[str, str] = resource["spec"]["template"]["metadata"]["labels"]
    return labels


def selectors(resource: Resource) -> Iterator[dict[str, str]]:
    """Every selector of pods in `resource`, but for those of a policy's clients."""
    spec = resource.get("spec", {})
    selector = spec.get("podSelector", spec.get("selector"))
    if selector is not None:
        yield selector.get("matchLabels", selector)


def strings(value: object) -> Iterator[str]:
    """Every text in a resource, those of its keys left out."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("names", [("namePrefix", "{}-"), ("nameSuffix", "-{}")])
@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.startswith("overlays/")])
def test_of_two_routers_in_one_namespace_none_selects_anything_of_the_other(
    overlay: str, names: tuple[str, str], tmp_path: Path
) -> None:
    field, form = names
    routers = {}
    for router in ("database", "payments"):
        directory = tmp_path / router
        directory.mkdir()
        renamed: dict[str, object] = {field: form.format(router)}
        if overlay.endswith("localnet"):
            renamed["transformers"] = ["DEPLOY/overlays/ovn-localnet/names"]
        routers[router] = build(
            directory, namespace="shop", resources=[f"DEPLOY/{overlay}"], **renamed
        )
    together = build(tmp_path, resources=["database", "payments"])
    assert sorted(map(str, together)) == sorted(map(str, chain(*routers.values())))

    for router, resources in routers.items():
        (other,) = set(routers) - {router}
        labels = {name: labels_of(one(routers[name], "Deployment")) for name in routers}
        found = [selector for resource in resources for selector in selectors(resource)]
        # Those of Deployment, Service and NetworkPolicy, and of the PodDisruptionBudget.
        assert len(found) == (4 if overlay == "overlays/ha" else 3)
        for selector in found:
            # `hold` makes it "active", in one of the router's own pods.
            static = {key: value for key, value in selector.items() if key != ROLE_LABEL}
            assert static.items() <= labels[router].items()
            assert not static.items() <= labels[other].items()
        # No name is left that a resource had before, and none is the other's.
        mentioned = set(strings(resources))
        for resource in routers[other]:
            assert resource["metadata"]["name"] not in mentioned
        for resource in resources:
            assert router in resource["metadata"]["name"]


def test_the_shop_has_two_routers_that_its_clients_reach() -> None:
    resources = render("examples/shop")
    namespace = one(resources, "Namespace")["metadata"]
    assert {
        resource["metadata"]["namespace"]
        for resource in resources
        if resource["kind"] != "Namespace"
    } == {namespace["name"]}
    for router in ("database", "payments"):
        policy = one(resources, "NetworkPolicy", name=f"{router}-egress-router")
        clients, _ = policy["spec"]["ingress"]
        (client,) = clients["from"]
        assert client["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "shop"}
        destinations = DEPLOY / "examples/shop" / router
        made = subprocess.run(
            [DEPLOY / "ports.sh", destinations / "destinations"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert (destinations / "ports/kustomization.yaml").read_text() == made, "run ports.sh"


def test_ports_are_made_from_every_way_to_write_destinations(tmp_path: Path) -> None:
    text = (
        "# first\r\n\r\n80 198.51.100.11\r\n  8443\tweb.example.com 443 # a comment\n5432 a.example"
    )
    (tmp_path / "destinations").write_text(text)
    made = subprocess.run(
        [DEPLOY / "ports.sh", tmp_path / "destinations"], capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "ports").mkdir()
    (tmp_path / "ports/kustomization.yaml").write_text(made)
    resources = build(tmp_path, resources=["DEPLOY/overlays/multus"], components=["ports"])
    assert [port["port"] for port in one(resources, "Service")["spec"]["ports"]] == [80, 8443, 5432]
    clients, _ = one(resources, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in clients["ports"]] == [80, 8443, 5432]


def test_the_namespace_admits_the_pods_and_its_quota_too() -> None:
    resources = render("examples/shop")
    labels = one(resources, "Namespace")["metadata"]["labels"]
    # NET_ADMIN and root violate the levels "baseline" and "restricted".
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    hard = dict(one(resources, "ResourceQuota")["spec"]["hard"])
    pods = [resource for resource in resources if resource["kind"] == "Deployment"]
    assert len(pods) <= int(hard.pop("pods"))
    for entry, most in hard.items():
        kind, _, resource = entry.partition(".")
        # Kubernetes counts the greater of the init container's and the others' sum.
        used = sum(
            max(
                *(quantity(c["resources"][kind][resource]) for c in spec["initContainers"]),
                sum(quantity(c["resources"][kind][resource]) for c in spec["containers"]),
            )
            for spec in (pod["spec"]["template"]["spec"] for pod in pods)
        )
        assert used <= quantity(most)


def quantity(text: str) -> float:
    """A Kubernetes quantity of the units that `deploy/` uses."""
    for unit, factor in (("m", 0.001), ("Mi", 2**20), ("Gi", 2**30)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def runbooks(resources: list[Resource]) -> set[str]:
    """The runbook's URL in every alert, without the section."""
    groups = one(resources, "PrometheusRule")["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    urls = [rule["annotations"]["runbook_url"] for rule in rules]
    assert [url.partition("#")[2] for url in urls] == [rule["alert"].lower() for rule in rules]
    return {url.partition("#")[0] for url in urls}


def test_every_alert_has_an_absolute_url_and_a_team_can_set_its_own(tmp_path: Path) -> None:
    # The default leads nowhere and says why: .invalid is never resolved (RFC 2606).
    (url,) = runbooks(render("monitoring"))
    assert url == "https://runbook-is-not-set-in-deploy-monitoring.invalid/docs/runbook.md"
    resources = build(
        tmp_path,
        namespace="shop",
        resources=["DEPLOY/monitoring"],
        configMapGenerator=[
            {
                "name": "monitoring-variables",
                "behavior": "merge",
                "literals": ["RUNBOOK=https://wiki.example.com/egress"],
            }
        ],
        transformers=["DEPLOY/monitoring/runbook"],
    )
    assert runbooks(resources) == {"https://wiki.example.com/egress"}


def test_monitoring_finds_the_pods_of_every_router_and_grafana_the_dashboard() -> None:
    monitoring = render("monitoring")
    monitor = one(monitoring, "PodMonitor")["spec"]
    # A port twice would be scraped twice.
    assert [each["port"] for each in monitor["podMetricsEndpoints"]] == ["admin", "hold-admin"]
    selector = monitor["selector"]["matchLabels"]
    for router in ("database", "payments"):
        (deployment,) = (
            resource
            for resource in render(f"examples/shop/{router}")
            if resource["kind"] == "Deployment"
        )
        assert selector.items() <= labels_of(deployment).items()
        # As EgressRouterAbsent finds it.
        assert "egress-router" in deployment["metadata"]["name"]
    # The only ConfigMap: what kustomize alone uses is not applied.
    dashboard = one(monitoring, "ConfigMap")
    assert dashboard["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(dashboard["data"]["egress-router.json"])["panels"]


def test_the_privileged_example_is_the_pod_as_it_always_was() -> None:
    spec = example("pod-privileged")["spec"]
    (init,) = spec["initContainers"]
    (proxy,) = spec["containers"]
    assert [init["image"], proxy["image"]] == ["egress-router", "egress-dns-proxy"]
    assert init["securityContext"] == proxy["securityContext"] == {"privileged": True}
    variables = {entry["name"]: entry["value"] for entry in proxy["env"]}
    assert [entry.port for entry in read_settings(variables).destinations] == [80, 100, 8443]
