"""docs/configuration.md says what the code says, and the README's variables exist."""

from __future__ import annotations

import re
from pathlib import Path

from docs.configuration import PAGE, page
from egress_proxy.config import hold_variables, run_variables
from egress_proxy.init import settings as init_settings

README = Path(__file__).parents[2] / "README.md"
KNOWN = {
    variable.name
    for variables in (run_variables.VARIABLES, init_settings.VARIABLES, hold_variables.VARIABLES)
    for variable in variables
}


def test_the_page_is_what_make_docs_makes_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_variable_is_on_the_page() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == KNOWN


def test_the_readme_names_no_variable_that_does_not_exist() -> None:
    rows = re.findall(r"^\| `(EGRESS_[A-Z_]+)`", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows
    assert set(rows) <= KNOWN
