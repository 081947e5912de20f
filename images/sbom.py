"""Print an image's bill of materials (CycloneDX 1.6, JSON); runs inside the image.

    podman run --rm --interactive --entrypoint python3 IMAGE - NAME < images/sbom.py

It asks what is really there: installed distributions, Debian's package list, and the C libraries
inside the wheels, which no package list knows, for their own versions. The same image gives the
same text. A base that is not Debian's contributes no packages here; its own maker describes it.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import uuid
from pathlib import Path
from typing import Any

import pycares
from uvloop.loop import libuv_get_version  # type: ignore[attr-defined] # not in its stubs

Component = dict[str, Any]

# One file a package, written when the base was made.
DEBIAN_PACKAGES = Path("/var/lib/dpkg/status.d")
PROJECT = "egress-proxy"


def bundled_libraries() -> dict[str, list[Component]]:
    """The C libraries that are linked into a distribution's extension modules."""
    # UV_VERSION_HEX of uv/version.h.
    uv = libuv_get_version()
    libuv = f"{uv >> 16}.{uv >> 8 & 0xFF}.{uv & 0xFF}"
    return {
        "uvloop": [library("libuv", "pkg:github/libuv/libuv@v", libuv)],
        "pycares": [library("c-ares", "pkg:github/c-ares/c-ares@v", pycares.ARES_VERSION)],
        # It tells its version to no one.
        "cffi": [{"type": "library", "name": "libffi", "purl": "pkg:github/libffi/libffi"}],
    }


def library(name: str, purl: str, version: str) -> Component:
    return {"type": "library", "name": name, "version": version, "purl": f"{purl}{version}"}


def distributions() -> list[Component]:
    """What pip installed, with the C libraries inside."""
    bundled = bundled_libraries()
    found = []
    for distribution in importlib.metadata.distributions():
        name = distribution.name.lower().replace("_", "-")
        component = library(name, f"pkg:pypi/{name}@", distribution.version)
        if "License-Expression" in distribution.metadata:
            component["licenses"] = [{"expression": distribution.metadata["License-Expression"]}]
        if name in bundled:
            component["components"] = bundled.pop(name)
        found.append(component)
    if bundled:
        sys.exit(f"not installed: {', '.join(bundled)}; correct bundled_libraries()")
    return sorted(found, key=lambda component: str(component["name"]))


def debian_packages() -> list[Component]:
    """What the base was made of."""
    if not DEBIAN_PACKAGES.is_dir():
        return []
    release = platform.freedesktop_os_release()
    packages = []
    for path in sorted(DEBIAN_PACKAGES.iterdir()):
        lines = path.read_text().splitlines()
        fields = dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != " ")
        name, version = fields["Package"], fields["Version"]
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}"
        purl += f"?arch={fields['Architecture']}&distro={release['ID']}-{release['VERSION_ID']}"
        packages.append({"type": "library", "name": name, "version": version, "purl": purl})
    return packages


def bill_of_materials(image: str) -> Component:
    python = [component for component in distributions() if component["name"] != PROJECT]
    components = python + debian_packages()
    for component in components:
        component["bom-ref"] = component["purl"]
        for inner in component.get("components", []):
            inner["bom-ref"] = inner["purl"]
    name = f"{image}@{importlib.metadata.version(PROJECT)}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name + json.dumps(components))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": name,
                "name": image,
                "version": importlib.metadata.version(PROJECT),
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": components,
    }


if __name__ == "__main__":
    json.dump(bill_of_materials(sys.argv[1]), sys.stdout, indent=2)
