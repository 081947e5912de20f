"""Links between the documents lead to a file that exists, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "images/*.md")
    for path in ROOT.glob(pattern)
)
_CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)$", re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them: no punctuation, hyphens for blanks."""
    headings = _HEADING.findall(_CODE.sub("", document.read_text()))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def problem(document: Path, link: str) -> str | None:
    """Why the relative `link` in `document` leads nowhere."""
    name, _, anchor = link.partition("#")
    target = document.parent / name if name else document
    if not target.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(target):
        return f"{link}: no such heading"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    links = ["".join(groups) for groups in _LINK.findall(_CODE.sub("", document.read_text()))]
    local = [link for link in links if "://" not in link]
    assert [found for link in local if (found := problem(document, link))] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("# What runs, and why\n```\n# no heading\n```\n")
    assert problem(document, "#what-runs-and-why") is None
    assert problem(document, "a.md#no-heading") == "a.md#no-heading: no such heading"
    assert problem(document, "b.md") == "b.md: no such file"
