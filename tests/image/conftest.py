"""What the tests of images and manifests ask of the machine."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.image.containers import IMAGES, LIMITS, podman, require
from tests.support.attachments import require_plugins
from tests.support.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def images() -> None:
    """Both images are built, and containers can be started."""
    require(os.getuid() == 0, "containers in a given network namespace need root")
    require(shutil.which("podman"), "no podman: apt-get install podman runc")
    for image in IMAGES:
        found = podman("image", "exists", image, check=False).returncode == 0
        require(found, f"no image {image}: run `make images`")
    tried = podman("run", "--rm", "--network=none", *LIMITS, IMAGES[0], "--help", check=False)
    require(tried.returncode == 0, f"podman can't start a container here: {tried.stderr}")


@pytest.fixture
def lab(images: None) -> Iterator[Lab]:  # noqa: ARG001 - for its order
    """The laboratory, with a pod that has no egress interface yet."""
    require_plugins()
    with Lab() as built:
        index = built.pod.index("macvlan0")
        built.pod.netlink(lambda ip: ip.link("del", index=index))
        yield built
