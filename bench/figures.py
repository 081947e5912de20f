"""Pure functions: parse the output of the load generators, compute medians and ratios."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class OutputError(ValueError):
    """A load generator's output is incomplete or reports an error."""


@dataclass(frozen=True, slots=True)
class WrkResult:
    """The number of requests with a 2xx or 3xx answer, and their median latency in microseconds."""

    requests: int
    latency_us: float


def parse_wrk(output: str, connections: int) -> WrkResult:
    """Parse the JSON line that wrk.lua adds to the output of wrk, after a load of `connections`.

    Raises `OutputError` if the line is missing, if wrk counted an error, or if latencies are
    missing.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if len(lines) != 1:
        raise OutputError(f"no summary in the output of wrk: {output}")
    summary: dict[str, Any] = json.loads(lines[0])
    errors = {kind: count for kind, count in summary["errors"].items() if count}
    if errors or not summary["requests"]:
        raise OutputError(f"wrk: {summary['requests']} requests, errors: {errors}")
    expected_us = summary["duration_us"] // max(summary["requests"] // connections, 1)
    measured = without_correction(summary["latency_us"], expected_us)
    if sum(measured.values()) != summary["requests"]:
        raise OutputError(f"wrk: {sum(measured.values())} latencies of {summary['requests']}")
    return WrkResult(summary["requests"], histogram_median(measured.items()))


def without_correction(pairs: Iterable[Sequence[int]], expected_us: int) -> dict[int, int]:
    """The latencies that wrk measured, without those that wrk adds for requests it never sent.

    `expected_us` is the mean interval between the requests of a connection. For each latency of at
    least twice that, wrk adds the latencies of the requests that it would have sent during the wait
    (stats_correct in its stats.c). On a machine that stalls sometimes, these would decide the
    median.
    """
    counts: Counter[int] = Counter()
    for value, count in pairs:
        counts[value] += count
    # In descending order: what longer latencies have added to a count is already subtracted.
    for value in sorted(counts, reverse=True):
        if value < 2 * expected_us:
            break
        added = counts[value]
        for shorter in range(value - expected_us, expected_us, -expected_us):
            counts[shorter] -= added
    return {value: count for value, count in counts.items() if count}


def histogram_median(pairs: Iterable[Sequence[int]]) -> float:
    """The median of whole numbers given as ``(value, count)`` pairs.

    A value n is assumed to be spread evenly from n - ½ to n + ½, so that the median changes
    gradually and not in steps of 1.
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
    """The number of octets that the iperf3 server received. Raises `OutputError` if it failed."""
    try:
        report = json.loads(output)
    except ValueError:
        raise OutputError(f"no report of iperf3: {output}") from None
    received = report.get("end", {}).get("sum_received", {}).get("bytes", 0)
    if "error" in report or received <= 0:
        raise OutputError(f"iperf3: {received} octets, error: {report.get('error')}")
    return int(received)


def parse_strace(output: str) -> dict[str, int]:
    """The number of calls by name, from the table that ``strace -c`` writes."""
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
    """Our figure divided by theirs, for each round that has both.

    The two are measured seconds apart, so a disturbance that lasts longer affects both alike.
    """
    return [ours[number] / theirs[number] for number in sorted(ours) if theirs.get(number)]


def median_or_none(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None."""
    present = [value for value in values if value is not None]
    return median(present) if present else None


def rotated(items: Sequence[str], by: int) -> list[str]:
    """`items` in the same cyclic order, from index `by` (modulo the length) on."""
    by %= len(items)
    return [*items[by:], *items[:by]]
