"""The built images: few files, described by labels, reproducible."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import egress_proxy
from tests.image.containers import IMAGES, LIMITS, PROXY, ROOT, ROUTER, podman

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("images")

AGAIN = "localhost/egress-test-again/"
BASE = os.environ.get("BASE", "localhost/egress-proxy-base:trixie")
# Run inside; prints every file's mode and every importable distribution.
INVENTORY = """
import importlib.metadata, json, os
files = {}
for base, directories, names in os.walk("/"):
    if base == "/":
        directories[:] = sorted(set(directories) - {"proc", "sys", "dev"})
    for name in names:
        path = os.path.join(base, name)
        files[path] = os.lstat(path).st_mode
print(json.dumps([files, sorted(d.name.lower() for d in importlib.metadata.distributions())]))
"""


def inspect(image: str) -> dict[str, Any]:
    (found,) = json.loads(podman("image", "inspect", image).stdout)
    result: dict[str, Any] = found
    return result


def inventory(image: str) -> tuple[dict[str, int], set[str]]:
    """All files with their modes, and the names of the installed distributions."""
    done = podman(
        "run", "--rm", "--network=none", *LIMITS, "--entrypoint=python3", image, "-c", INVENTORY
    )
    files, distributions = json.loads(done.stdout)
    return files, set(distributions)


@pytest.mark.parametrize("image", IMAGES)
def test_no_tool_to_build_install_or_gain_privileges_is_in_the_image(image: str) -> None:
    files, distributions = inventory(image)
    commands = {path.rpartition("/")[2] for path in files if "/bin/" in path or "/sbin/" in path}
    assert commands <= {"egress-proxy", "nft", "python", "python3", "python3.13"}
    assert not distributions & {"pip", "setuptools", "wheel", "hatchling"}
    assert not [path for path, mode in files.items() if mode & (stat.S_ISUID | stat.S_ISGID)]
    assert not [path for path in files if "ensurepip" in path or "/site-packages/pip/" in path]


def test_both_images_have_all_packages() -> None:
    for image in IMAGES:
        assert inventory(image)[1] == {"egress-proxy", *(name for name, _ in pins())}


@pytest.mark.parametrize("image", IMAGES)
def test_every_module_is_compiled_beforehand(image: str) -> None:
    files, _ = inventory(image)
    sources = [path for path in files if path.endswith(".py") and "/egress_proxy/" in path]
    assert sources
    for source in sources:
        directory, _, name = source.rpartition("/")
        assert f"{directory}/__pycache__/{name[:-3]}.cpython-313.pyc" in files


@pytest.mark.parametrize(("image", "command"), [(ROUTER, "init"), (PROXY, "run")])
def test_the_image_configuration_has_what_kubernetes_reads(image: str, command: str) -> None:
    config = inspect(image)["Config"]
    name = image.rpartition("/")[2]
    assert config["Entrypoint"] == ["/opt/egress-proxy/bin/egress-proxy", command]
    assert "Cmd" not in config
    assert all(part.isdecimal() for part in config["User"].split(":"))
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == name
    assert labels["org.opencontainers.image.version"] == egress_proxy.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40
    assert {"io.k8s.display-name", "io.k8s.description", "io.openshift.tags"} <= labels.keys()


def test_both_images_are_the_same_layers() -> None:
    proxy, router = (inspect(image)["RootFS"]["Layers"] for image in (PROXY, ROUTER))
    assert proxy == router


@pytest.fixture
def built_again() -> Iterator[list[list[str]]]:
    """The layers of both images, built anew with nothing taken from earlier builds."""
    environment = {**os.environ, "ENGINE": "podman", "IMAGE_PREFIX": AGAIN, "BASE": BASE}
    names = [image.replace("localhost/", AGAIN) for image in IMAGES]
    try:
        subprocess.run(
            ["images/build.sh"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        yield [inspect(name)["RootFS"]["Layers"] for name in names]
    finally:
        # No --force: equal builds are the same image, which keeps its other tags.
        for name in names:
            podman("rmi", f"{name}:latest", f"{name}:{egress_proxy.__version__}", check=False)


def test_two_builds_of_one_commit_have_the_same_layers(built_again: list[list[str]]) -> None:
    revisions = {
        inspect(image)["Config"]["Labels"]["org.opencontainers.image.revision"]
        for image in (*IMAGES, *(image.replace("localhost/", AGAIN) for image in IMAGES))
    }
    assert len(revisions) == 1, "the images are of another commit: run `make images`"
    assert built_again == [inspect(image)["RootFS"]["Layers"] for image in IMAGES]


def test_a_base_needs_no_package_manager_and_no_shell() -> None:
    files, _ = inventory(BASE)
    commands = [path for path in files if "/bin/" in path or "/sbin/" in path]
    assert sorted(commands) == [
        "/usr/bin/python3",
        "/usr/bin/python3.13",
        "/usr/sbin/nft",
    ]


def pins() -> set[tuple[str, str]]:
    """Name and version of every package that the lock file gives the images."""
    text = (ROOT / "images/requirements.txt").read_text()
    return {(match[1], match[2]) for match in re.finditer(r"(?m)^([a-z0-9-]+)==(\S+)", text)}


@pytest.mark.parametrize("image", IMAGES)
def test_the_bill_of_materials_names_the_wheels_and_the_libraries_inside(image: str) -> None:
    script = (ROOT / "images/sbom.py").read_text()
    command = ["podman", "run", "--rm", "--interactive", "--network=none", *LIMITS]
    text = subprocess.run(
        [*command, "--entrypoint=python3", image, "-", image.rpartition("/")[2]],
        input=script,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = json.loads(text)["components"]
    python = [entry for entry in components if entry["purl"].startswith("pkg:pypi/")]
    assert {(entry["name"], entry["version"]) for entry in python} == pins()
    inside = {
        inner["name"]: inner.get("version")
        for entry in python
        for inner in entry.get("components", [])
    }
    assert inside.keys() == {"c-ares", "libffi", "libuv"}
    assert inside["c-ares"]
    assert re.fullmatch(r"1\.[0-9]+\.[0-9]+", inside["libuv"])
    assert any(entry["purl"].startswith("pkg:deb/debian/libc6@") for entry in components)


def test_every_dependency_is_pinned_as_the_project_asks() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = dict(pins())
    for requirement in map(Requirement, data["project"]["dependencies"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
