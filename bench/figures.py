"""The pure part: what the generators print, and medians and ratios of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class OutputError(ValueError):
    """A generator's output is not what it prints after a run without any error."""


@dataclass(frozen=True, slots=True)
class WrkResult:
    """`requests` were answered with a good status; the median is in microseconds."""

    requests: int
    latency_us: float


def parse_wrk(output: str) -> WrkResult:
    """The JSON line that wrk.lua adds to what wrk prints.

    Raises `OutputError` if there is none, or if wrk counted any error.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if len(lines) != 1:
        raise OutputError(f"no summary in the output of wrk: {output}")
    summary: dict[str, Any] = json.loads(lines[0])
    errors = {kind: count for kind, count in summary["errors"].items() if count}
    if errors or not summary["requests"]:
        raise OutputError(f"wrk: {summary['requests']} requests, errors: {errors}")
    return WrkResult(summary["requests"], histogram_median(summary["latency_us"]))


def histogram_median(pairs: Iterable[Sequence[int]]) -> float:
    """The median of whole numbers given as ``(value, count)``.

    Values that were rounded to n are taken as spread evenly from n - ½ to n + ½, so that the
    median of many does not jump from one whole number to the next.
    """
    ordered = sorted((value, count) for value, count in pairs)
    half = sum(count for _, count in ordered) / 2
    below = 0
    for value, count in ordered:
        if below + count >= half:
            return value - 0.5 + (half - below) / count
        below += count
    raise OutputError("no latencies")


def parse_iperf3(output: str) -> int:
    """The octets that the iperf3 server received. Raises `OutputError` if anything failed."""
    try:
        report = json.loads(output)
    except ValueError:
        raise OutputError(f"no report of iperf3: {output}") from None
    received = report.get("end", {}).get("sum_received", {}).get("bytes", 0)
    if "error" in report or received <= 0:
        raise OutputError(f"iperf3: {received} octets, error: {report.get('error')}")
    return int(received)


def parse_strace(output: str) -> dict[str, int]:
    """Calls by name in the table that ``strace -c`` writes."""
    calls: dict[str, int] = {}
    for line in output.splitlines():
        fields = line.split()
        # % time, seconds, usecs/call, calls, [errors,] syscall
        if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
            calls[fields[-1]] = int(fields[3])
    if not calls:
        raise OutputError(f"no table of strace: {output}")
    return calls


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Our figure divided by theirs, for each round that both took part in.

    The two are moments apart, so what disturbs the machine for longer than that cancels out.
    """
    return [ours[number] / theirs[number] for number in sorted(ours) if theirs.get(number)]


def median_or_none(values: Iterable[float | None]) -> float | None:
    """The median of those that are there."""
    present = [value for value in values if value is not None]
    return median(present) if present else None


def rotated(items: Sequence[str], by: int) -> list[str]:
    """`items` in the same order, beginning with another one each time."""
    by %= len(items)
    return [*items[by:], *items[:by]]
