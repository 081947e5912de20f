"""What the tests of images and manifests ask of the machine, and what they say where it lacks it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def require(available: object, reason: str) -> None:
    """Skip with `reason` unless `available`; in continuous integration that is a failure."""
    if available:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
