"""The overlay of `deploy/` in a namespace of a test's cluster."""

from __future__ import annotations

import copy
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
Resource = dict[str, Any]


@cache
def _render(overlay: str) -> list[Resource]:
    kubectl = subprocess.run(
        [ROOT / "images/kubectl.sh"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    done = subprocess.run(
        [ROOT / kubectl, "kustomize", ROOT / "deploy" / overlay],
        capture_output=True,
        text=True,
        check=True,
    )
    return list(yaml.safe_load_all(done.stdout))


def overlay_of(namespace: str, *kinds: str) -> list[Resource]:
    """The resources of these kinds of `deploy/overlays/ha`, in `namespace`."""
    found = copy.deepcopy([entry for entry in _render("overlays/ha") if entry["kind"] in kinds])
    for resource in found:
        resource["metadata"]["namespace"] = namespace
        for subject in resource.get("subjects", []):
            subject["namespace"] = namespace
    return found
