"""Draw the plot, as SVG: one panel per load, one bar per peer; shorter is better."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bench.loads import LOADS
from bench.peers import LOGGING, PEERS, PROJECT
from bench.samples import IDLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.summary import Row

# Pixels.
_COLUMNS = 2
_PANEL_WIDTH = 430
_LABEL_WIDTH = 150
_BAR_WIDTH = 210
_BAR_HEIGHT = 16
_BAR_STEP = 22
_TITLE_HEIGHT = 36

_OURS, _THEIRS = "#1f6feb", "#9aa4b2"
_STYLE = (
    "text { font: 12px sans-serif; fill: #24292f } .title { font-weight: bold }"
    " .label { text-anchor: end }"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """The figure of one peer."""

    label: str
    value: float
    ours: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """The bars of one load."""

    title: str
    bars: list[Bar]


def draw(rows: Sequence[Row]) -> str:
    """An SVG document with a panel for each load in `rows`."""
    panels = [panel for panel in _panels(rows) if panel.bars]
    height = _TITLE_HEIGHT + _BAR_STEP * max((len(panel.bars) for panel in panels), default=0) + 12
    drawn = [
        part
        for number, panel in enumerate(panels)
        for part in _draw_panel(
            panel, x=number % _COLUMNS * _PANEL_WIDTH, y=number // _COLUMNS * height
        )
    ]
    lines = -(-len(panels) // _COLUMNS)
    size = f'width="{_COLUMNS * _PANEL_WIDTH}" height="{lines * height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="white"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _panels(rows: Sequence[Row]) -> list[Panel]:
    panels = [
        Panel(
            f"{load.title}: CPU, {load.unit}",
            # IP forwarding has no proxy, so its cost is 0: leave it out.
            _bars(rows, load.name, lambda row: row.proxy_cost or None),
        )
        for load in LOADS
        if load.name != "latency"
    ]
    panels += [
        Panel("one kept connection: median, µs", _bars(rows, "latency", lambda r: r.latency_us)),
        Panel("idle connections: memory, KiB/pair", _bars(rows, IDLE, _kibibytes)),
    ]
    return [panel for panel in panels if panel.bars]


def _kibibytes(row: Row) -> float | None:
    return None if row.octets_per_pair is None else row.octets_per_pair / 1024


def _bars(rows: Sequence[Row], load: str, figure: Callable[[Row], float | None]) -> list[Bar]:
    """One bar per peer, in the order of `PEERS`."""
    order = list(PEERS)
    chosen = [row for row in rows if row.load == load and row.peer != LOGGING.name]
    return [
        Bar(row.peer, value, row.peer == PROJECT.name)
        for row in sorted(chosen, key=lambda row: order.index(row.peer))
        if (value := figure(row)) is not None
    ]


def _draw_panel(panel: Panel, *, x: int, y: int) -> list[str]:
    longest = max(bar.value for bar in panel.bars)
    parts = [f'<text class="title" x="{x + 12}" y="{y + 24}">{escape(panel.title)}</text>']
    for number, bar in enumerate(panel.bars):
        top = y + _TITLE_HEIGHT + number * _BAR_STEP
        left = x + _LABEL_WIDTH
        width = round(_BAR_WIDTH * bar.value / longest, 1)
        colour = _OURS if bar.ours else _THEIRS
        parts += [
            f'<text class="label" x="{left - 8}" y="{top + 12}">{escape(bar.label)}</text>',
            f'<rect x="{left}" y="{top}" width="{width}" height="{_BAR_HEIGHT}" fill="{colour}"/>',
            f'<text x="{left + width + 6}" y="{top + 12}">{bar.value:.3g}</text>',
        ]
    return parts
