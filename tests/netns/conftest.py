"""The laboratory of the tests in this directory, or the reason why there is none."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import Lab
from tests.support.namespaces import LabUnavailableError, become_root
from tests.support.needs import do_without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.workermanage import WorkerController

_REFUSAL = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Become root before any thread is started: the kernel refuses it afterwards.

    A worker of pytest-xdist has a thread from its start, and is root if its parent is.
    """
    refusal = getattr(config, "workerinput", {}).get("refusal")
    if refusal is None:
        try:
            become_root()
            refusal = ""
        except LabUnavailableError as error:
            refusal = str(error)
    config.stash[_REFUSAL] = refusal


def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput["refusal"] = node.config.stash[_REFUSAL]


@pytest.fixture(scope="session", autouse=True)
def laboratory(pytestconfig: pytest.Config) -> None:
    refusal = pytestconfig.stash[_REFUSAL]
    if refusal:
        do_without(refusal)


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor, a thread or a process behind."""

    def held() -> tuple[set[Path], list[threading.Thread]]:
        return {entry.readlink() for entry in _descriptors()}, threading.enumerate()

    before = held()
    yield
    assert held() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def _descriptors() -> Iterator[Path]:
    """The open descriptors, without the one that lists them."""
    return (entry for entry in Path("/proc/self/fd").iterdir() if entry.exists())


@pytest.fixture
def rp_filter() -> int:
    """Strict; a test that wants another one is parametrized with it."""
    return 1


@contextmanager
def _built(rp_filter: int) -> Iterator[Lab]:
    try:
        built = Lab(rp_filter=rp_filter)
    except LabUnavailableError as error:
        do_without(str(error))
    with built:
        yield built


@pytest.fixture
def lab(rp_filter: int) -> Iterator[Lab]:
    """A new topology."""
    with _built(rp_filter) as built:
        yield built


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """One for a whole file, whose tests leave it as it is."""
    with _built(1) as built:
        yield built
