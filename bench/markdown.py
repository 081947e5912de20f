"""Figures as text, and tables of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.summary import Ratio

# What there is no figure for.
NONE = "\N{EN DASH}"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def spread(ratio: Ratio | None, goal: float | None = None) -> str:
    """The median with the lowest and highest, and what is wanted of it."""
    if ratio is None:
        return NONE
    text = f"{ratio.middle:.2f}"
    if ratio.low < ratio.high:
        text += f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return text if goal is None else f"{text}, goal {goal:.2f}"


def figure(value: float | None) -> str:
    """Three digits or so, which is more than a benchmark can promise."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def calls(number: float) -> str:
    """A number of calls for each connection; what comes once in a while is no part of it."""
    return f"{number:.1f}" if number >= 0.1 else ""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---" if column == 0 else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
