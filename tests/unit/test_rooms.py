"""The rooms: a room imports only rooms below it, so that each can be read with those below it.

Every import counts, wherever it stands: at the top, in a function, or for the type checker alone.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import egress_proxy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

PACKAGE = "egress_proxy"
ROOT = Path(egress_proxy.__file__).parent

# The rows of the table of rooms: a room's name, and the rooms that it may import.
ROWS = re.findall(
    r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$",
    (ROOT.parent / "CONTRIBUTING.md").read_text(),
    re.MULTILINE,
)
MAY_IMPORT = {room: frozenset(re.findall(r"`(\w+)`", rooms)) for room, rooms in ROWS}

# Third-party packages that only these modules know.
OWNERS = {
    "pyroute2": {"init.netlink"},
    "aiodns": {"dns.channel", "dns.resolver"},
    "pycares": {"dns.channel", "dns.resolver"},
    "structlog": {"telemetry.logs"},
    "uvloop": {"cli"},
    "psutil": {"pod.addresses"},
    "idna": {"config.host_names"},
    "h11": {"telemetry.admin", "hold.http"},
}


def module_of(path: Path) -> str:
    """``cli``, ``init.plan``; a package is its ``__init__``."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def modules() -> dict[str, str]:
    """The source of every module, the package's own ``__init__`` left out: it has a version."""
    sources = {module_of(path): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
    del sources["__init__"]
    return sources


def imports_of(source: str, known: set[str]) -> Iterator[str]:
    """What `source` imports: this package's modules by their short names, others by their package.

    ``from egress_proxy import x`` is an import of the module x, where there is one.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports say the whole name"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            top, _, rest = name.partition(".")
            if top != PACKAGE:
                yield top
                continue
            while rest and rest not in known:
                rest = rest.rpartition(".")[0]
            if rest:
                yield rest


def room_of(module: str) -> str:
    return module.partition(".")[0]


def complaint(importer: str, imported: str) -> str | None:
    """What is wrong with `importer` importing `imported`, a module of this package; or nothing."""
    above, below = room_of(importer), room_of(imported)
    if above == below or below in MAY_IMPORT[above]:
        return None
    return f"{above} does not import {below}"


def cycle_in(arrows: Mapping[str, Collection[str]]) -> list[str] | None:
    """The members of a cycle in a graph of names, or None."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


SOURCES = modules()
IMPORTS = {name: set(imports_of(source, set(SOURCES))) for name, source in SOURCES.items()}


def test_every_room_has_a_row_and_every_row_a_room() -> None:
    assert set(map(room_of, SOURCES)) == set(MAY_IMPORT)


def test_a_room_imports_the_rooms_of_its_row_alone() -> None:
    complaints = [
        f"{importer} imports {imported}: {reason}"
        for importer, found in IMPORTS.items()
        for imported in sorted(found & set(SOURCES))
        if (reason := complaint(importer, imported))
    ]
    assert complaints == []


def test_a_row_names_no_room_that_is_not_imported() -> None:
    used: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for importer, found in IMPORTS.items():
        used[room_of(importer)] |= {room_of(imported) for imported in found & set(SOURCES)}
    assert {room: rooms - {room} for room, rooms in used.items()} == MAY_IMPORT


def test_imports_of_rooms_make_no_cycle() -> None:
    assert cycle_in(MAY_IMPORT) is None


def test_imports_of_modules_make_no_cycle() -> None:
    assert (
        cycle_in({name: found & set(SOURCES) - {name} for name, found in IMPORTS.items()}) is None
    )


def test_a_cycle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"a"}}) is not None


@pytest.mark.parametrize(("package", "owners"), OWNERS.items())
def test_a_third_party_package_has_its_owners(package: str, owners: set[str]) -> None:
    assert {name for name, found in IMPORTS.items() if package in found} <= owners


def test_every_dependency_is_imported_and_every_import_is_declared() -> None:
    declared = {
        requirement.partition(">")[0].replace("-", "_")
        for requirement in importlib.metadata.requires("egress-proxy") or ()
        if "extra ==" not in requirement
    }
    found = set().union(*IMPORTS.values())
    assert declared <= found
    assert {name for name in OWNERS if name in found} <= declared


@pytest.mark.parametrize(
    ("importer", "imported", "reason"),
    [
        ("relay.flow", "relay.reactor", None),
        ("forwarding.race", "relay.reactor", None),
        ("cli", "errors", None),
        ("cli", "init.run", None),
        ("errors", "events", "errors does not import events"),
        ("relay.relay", "forwarding.race", "relay does not import forwarding"),
        ("run.daemon", "cli", "run does not import cli"),
        ("run.daemon", "init.settings", "run does not import init"),
        ("init.run", "dns.resolver", "init does not import dns"),
    ],
)
def test_the_rule(importer: str, imported: str, reason: str | None) -> None:
    assert complaint(importer, imported) == reason


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import egress_proxy.errors", {"errors"}),
        ("import egress_proxy", set()),
        ("from egress_proxy import errors, __version__", {"errors"}),
        ("from egress_proxy.errors import Problem", {"errors"}),
        ("from egress_proxy.init import settings", {"init.settings"}),
        ("from egress_proxy.init.settings import Source as S", {"init.settings"}),
        ("import egress_proxy.init.settings as s", {"init.settings"}),
        ("def f():\n    from egress_proxy import errors", {"errors"}),
        ("if TYPE_CHECKING:\n    import egress_proxy.errors", {"errors"}),
        ("try:\n    import uvloop\nexcept ImportError: pass", {"uvloop"}),
        ("import os.path, pyroute2.netlink", {"os", "pyroute2"}),
        ("from pyroute2.netlink import rtnl", {"pyroute2"}),
        ("# import pyroute2", set()),
    ],
)
def test_how_imports_are_found(source: str, found: set[str]) -> None:
    assert set(imports_of(source, {"errors", "init", "init.settings"})) == found
