"""The floors: an import goes down, never up, so that each module can be read with those below it.

Every import counts, wherever it stands: at the top, in a function, or for the type checker alone.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import egress_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "egress_proxy"
ROOT = Path(egress_proxy.__file__).parent

# The rows of the table whose first cell is a number.
ROWS = re.findall(
    r"^\| (\d+) \| ([^|]+) \|", (ROOT.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE
)
FLOOR_OF = {name: int(floor) for floor, names in ROWS for name in re.findall(r"`(\w+)`", names)}

# init stands beside the floors: what it may use of them, and who may use it.
INIT_MAY_USE = {name for name, floor in FLOOR_OF.items() if floor <= 2} | {"logs"}
USERS_OF_INIT = {"cli"}
INIT_RULE = "init uses floors 0 to 2, and logs"

# Third-party packages that only these modules know.
OWNERS = {
    "pyroute2": {"init.netlink"},
    "aiodns": {"resolver"},
    "pycares": {"resolver"},
    "structlog": {"logs", "init.run", "init.takeover"},
    "uvloop": {"cli"},
    "psutil": {"addresses"},
    "idna": {"destinations"},
    "prometheus_client": {"metrics"},
    "h11": {"admin"},
}


def module_of(path: Path) -> str:
    """``connector``, ``init.plan``; a package is its ``__init__``."""
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


def is_init(module: str) -> bool:
    return module.partition(".")[0] == "init"


def complaint(importer: str, imported: str) -> str | None:
    """What is wrong with `importer` importing `imported`, a module of this package; or nothing."""
    if is_init(importer):
        allowed = is_init(imported) or imported in INIT_MAY_USE
        return None if allowed else INIT_RULE
    if is_init(imported):
        return None if importer in USERS_OF_INIT else "the daemon does not use init"
    above, below = FLOOR_OF[importer], FLOOR_OF[imported]
    return None if above > below else f"floor {above} imports from floor {below}"


SOURCES = modules()
IMPORTS = {name: set(imports_of(source, set(SOURCES))) for name, source in SOURCES.items()}


def test_every_module_has_its_floor() -> None:
    assert {name for name in SOURCES if not is_init(name)} == set(FLOOR_OF)


def test_imports_go_down() -> None:
    complaints = [
        f"{importer} imports {imported}: {told}"
        for importer, found in IMPORTS.items()
        for imported in sorted(found & set(SOURCES))
        if (told := complaint(importer, imported))
    ]
    assert complaints == []


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
    ("importer", "imported", "told"),
    [
        ("connector", "reactor", None),
        ("cli", "errors", None),
        ("cli", "init.run", None),
        ("init.run", "init.plan", None),
        ("init.run", "logs", None),
        ("init.settings", "variables", None),
        ("init.settings", "denials", None),
        ("errors", "records", "floor 0 imports from floor 1"),
        ("variables", "records", "floor 1 imports from floor 1"),
        ("relay", "connector", "floor 3 imports from floor 3"),
        ("daemon", "cli", "floor 8 imports from floor 9"),
        ("daemon", "init.settings", "the daemon does not use init"),
        ("__main__", "init", "the daemon does not use init"),
        ("init.run", "resolver", INIT_RULE),
        ("init.run", "cli", INIT_RULE),
    ],
)
def test_the_rule(importer: str, imported: str, told: str | None) -> None:
    assert complaint(importer, imported) == told


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
