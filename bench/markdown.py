"""Format figures as text and as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.summary import Ratio

# Stands for a missing figure.
NONE = "\N{EN DASH}"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def spread(ratio: Ratio | None, goal: float | None = None) -> str:
    """The median, the lowest and the highest value, and the goal."""
    if ratio is None:
        return NONE
    text = f"{ratio.middle:.2f}"
    if ratio.low < ratio.high:
        text += f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return text if goal is None else f"{text}, goal {goal:.2f}"


def figure(value: float | None) -> str:
    """Three significant digits, or a whole number from 100."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def calls(number: float) -> str:
    """Calls per connection; empty for calls that are made only occasionally."""
    return f"{number:.1f}" if number >= 0.1 else ""


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---" if column == 0 else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
