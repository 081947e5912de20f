"""A real control plane for all tests of this directory, and a namespace of its own for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.control_plane import NAMESPACES, ControlPlane
from tests.cluster.lan import API, make_bridge
from tests.cluster.manifests import overlay_of
from tests.support.namespaces import LabUnavailableError, become_root
from tests.support.needs import do_without
from tests.support.network import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = pytest.StashKey[Namespace | str]()
_free = iter(NAMESPACES)


def pytest_configure(config: pytest.Config) -> None:
    """Become root, and enter a network where the ports of the control plane are free."""
    try:
        become_root()
        here = Namespace("cluster")
        here.enter()
        config.stash[_HERE] = here
    except LabUnavailableError as error:
        config.stash[_HERE] = str(error)


@pytest.fixture(scope="session")
def control_plane(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    here = pytestconfig.stash[_HERE]
    if isinstance(here, str):
        do_without(here)
    make_bridge(here, "br0", "02:00:00:00:00:fd", API)
    with ControlPlane(here, API.v4, tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A new namespace with the Role of the overlay."""
    name = next(_free)
    control_plane.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for resource in overlay_of(name, "ServiceAccount", "Role", "RoleBinding"):
        control_plane.create(resource, name)
    return name


@pytest.fixture(scope="session")
def controllers(control_plane: ControlPlane) -> None:
    """What reconciles Deployments and Services; kube-proxy has the control plane's network."""
    control_plane.start_controllers(
        *("deployment", "replicaset", "endpoint", "endpointslice", "root-ca-cert-publisher")
    )
    control_plane.start_scheduler()
    control_plane.start_program(
        "kube-proxy",
        f"--kubeconfig={control_plane.kubeconfig}",
        *("--proxy-mode=iptables", "--hostname-override=router", f"--bind-address={API.v4}"),
        *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"),
        *("--conntrack-tcp-timeout-close-wait=0", "--healthz-bind-address=127.0.0.1:10256"),
        "--metrics-bind-address=127.0.0.1:10249",
    )
