"""Waits, by polling, for conditions that no event reports."""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# How long a step may take before something is broken.
TIMEOUT_S = 20


def wait_until(true: Callable[[], bool], *, timeout_s: float = TIMEOUT_S) -> None:
    """Ask over and over."""
    given_up_at = monotonic() + timeout_s
    while not true():
        assert monotonic() < given_up_at, f"nothing in {timeout_s} s"
        sleep(0.01)
