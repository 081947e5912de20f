"""What `deploy/overlays/ha` adds: two pods of which one has the address, and what `hold` may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from egress_proxy.config.hold_variables import read_hold_settings
from egress_proxy.hold.labels import ACTIVE, LEASE_LABEL, ROLE_LABEL, STANDBY
from tests.image.test_manifests import (
    container_of,
    environment,
    labels_of,
    one,
    pod_of,
    proxy_of,
    render,
)

if TYPE_CHECKING:
    from tests.image.containers import Resource

OVERLAYS = ("overlays/ha", "examples/available")
MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# What the downward API would say, by the path that is asked for.
POD = {"metadata.name": "router-a", "metadata.namespace": "egress", "status.podIP": "192.0.2.10"}

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def hold_of(resources: list[Resource]) -> Resource:
    return container_of(pod_of(resources), "egress-hold")


def downward(resources: list[Resource], path: str) -> str:
    """A field of the pod, as the downward API has it."""
    if path.startswith("metadata.labels['"):
        label = path.removeprefix("metadata.labels['").removesuffix("']")
        return labels_of(one(resources, "Deployment"))[label]
    return POD[path]


def test_hold_has_all_its_variables(overlay: str) -> None:
    resources = render(overlay)
    hold = hold_of(resources)
    settings = read_hold_settings(
        environment(resources, hold)
        | {
            entry["name"]: downward(resources, entry["valueFrom"]["fieldRef"]["fieldPath"])
            for entry in hold["env"]
        }
    )
    assert settings.lease == one(resources, "Deployment")["metadata"]["name"]
    assert hold["command"][-1] == "hold"
    # All three read the same ConfigMap.
    (init,) = pod_of(resources)["spec"]["initContainers"]
    assert hold["envFrom"] == proxy_of(resources)["envFrom"] == init["envFrom"]


def test_the_lease_is_the_one_that_the_role_names(overlay: str) -> None:
    resources = render(overlay)
    labels = labels_of(one(resources, "Deployment"))
    role = one(resources, "Role")
    names = [name for rule in role["rules"] for name in rule.get("resourceNames", [])]
    assert names == [labels[LEASE_LABEL]]
    (binding,) = (
        resource
        for resource in resources
        if resource["kind"] == "RoleBinding" and resource["roleRef"]["kind"] == "Role"
    )
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert subject["name"] == pod_of(resources)["spec"]["serviceAccountName"]


def test_a_pod_starts_as_standby_and_the_service_wants_the_active_one(overlay: str) -> None:
    resources = render(overlay)
    deployment, service = one(resources, "Deployment"), one(resources, "Service")["spec"]
    assert labels_of(deployment)[ROLE_LABEL] == STANDBY
    assert service["selector"][ROLE_LABEL] == ACTIVE
    # What hold changes must not take the pod out of the Deployment or the budget.
    budget = one(resources, "PodDisruptionBudget")["spec"]
    for selector in (deployment["spec"]["selector"], budget["selector"]):
        assert not {ROLE_LABEL, LEASE_LABEL} & selector["matchLabels"].keys()
    assert budget["minAvailable"] == 1


def test_two_pods_are_never_on_one_node(overlay: str) -> None:
    deployment = one(render(overlay), "Deployment")["spec"]
    assert deployment["replicas"] == 2
    affinity = deployment["template"]["spec"]["affinity"]["podAntiAffinity"]
    (rule,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"] == deployment["selector"]


def test_a_rollout_can_go_on_with_the_nodes_that_there_are(overlay: str) -> None:
    strategy = one(render(overlay), "Deployment")["spec"]["strategy"]
    unavailable, surge = (1, 0) if overlay == "examples/available" else (0, 1)
    assert strategy == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge},
    }


def test_hold_alone_has_a_token(overlay: str) -> None:
    pod = pod_of(render(overlay))["spec"]
    assert pod["automountServiceAccountToken"] is False
    (volume,) = pod["volumes"]
    paths = {
        path
        for source in volume["projected"]["sources"]
        for path in (
            [source["serviceAccountToken"]["path"]]
            if "serviceAccountToken" in source
            else [item["path"] for item in source["configMap"]["items"]]
        )
    }
    assert paths == {"token", "ca.crt"}
    mounts = {
        container["name"]: [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        for container in (*pod["initContainers"], *pod["containers"])
    }
    assert mounts == {"egress-router": [], "egress-dns-proxy": [], "egress-hold": [MOUNT]}


def test_hold_is_not_throttled(overlay: str) -> None:
    assert "cpu" not in hold_of(render(overlay))["resources"]["limits"]


def test_hold_reaches_the_api_server(overlay: str) -> None:
    egress = one(render(overlay), "NetworkPolicy")["spec"]["egress"]
    open_ports = {port["port"] for rule in egress for port in rule["ports"] if "to" not in rule}
    assert {443, 6443} <= open_ports
